// Arbitrary text as config.json and as generation_config.json: what is
// accepted must be a model that the engine can work with.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "base/check.h"
#include "engine/kv_store.h"
#include "engine/model_config.h"
#include "engine/weights.h"

namespace overfill {
namespace {

void CheckConfig(const ModelConfig& config) {
  OVERFILL_CHECK(config.num_layers > 0 && config.hidden_size > 0 &&
                 config.intermediate_size > 0 && config.max_positions > 0);
  OVERFILL_CHECK_EQ(config.num_heads % config.num_kv_heads, 0);
  OVERFILL_CHECK(config.head_dim > 0 && config.head_dim <= 256 &&
                 config.head_dim % 8 == 0);
  OVERFILL_CHECK(std::isfinite(config.norm_eps) && config.norm_eps > 0);
  for (const int32_t id : config.eos_ids) {
    OVERFILL_CHECK(id >= 0 && id < config.vocab_size);
  }
  for (const float f : InverseFrequencies(config.rope, config.head_dim)) {
    OVERFILL_CHECK(std::isfinite(f) && f >= 0 && f <= 1);
  }
  OVERFILL_CHECK_OK(
      KvTokenBytes(KvLayoutOf(config, DType::kBF16, 16)).status());
  OVERFILL_CHECK(NumParameters(config) > 0);
}

void CheckGeneration(const GenerationConfig& config) {
  const float temperature = config.temperature.value_or(1);
  OVERFILL_CHECK(std::isfinite(temperature) && temperature >= 0);
  const float top_p = config.top_p.value_or(1);
  OVERFILL_CHECK(top_p > 0 && top_p <= 1);
  const float min_p = config.min_p.value_or(0);
  OVERFILL_CHECK(min_p >= 0 && min_p <= 1);
  const float penalty = config.repetition_penalty.value_or(1);
  OVERFILL_CHECK(std::isfinite(penalty) && penalty > 0);
  OVERFILL_CHECK(config.top_k.value_or(0) >= 0);
}

// One line of a readable length, whatever the file holds.
void CheckRefusal(const absl::Status& status) {
  OVERFILL_CHECK(!absl::StrContains(status.message(), '\n'));
  OVERFILL_CHECK_LE(status.message().size(), size_t{2000});
}

}  // namespace
}  // namespace overfill

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = overfill::ParseModelConfig(text, "fuzz");
  if (config.ok()) {
    overfill::CheckConfig(*config);
  } else {
    overfill::CheckRefusal(config.status());
  }
  const auto generation = overfill::ParseGenerationConfig(text, "fuzz");
  if (generation.ok()) {
    overfill::CheckGeneration(*generation);
  } else {
    overfill::CheckRefusal(generation.status());
  }
  return 0;
}
