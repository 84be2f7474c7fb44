#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "engine/model_config.h"
#include "engine/token_ids.h"

namespace overfill {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;

// A number within [min, max] that float holds, `min` itself only where
// `with_min` says so.
absl::StatusOr<std::optional<float>> FloatIn(const Json& json, const char* key,
                                             double min, bool with_min,
                                             double max,
                                             absl::string_view origin) {
  ASSIGN_OR_RETURN(const auto value, JsonNumber(json, key, origin));
  if (!value) return std::optional<float>();
  const float narrow = static_cast<float>(*value);
  if (narrow < min || (narrow == min && !with_min) || narrow > max) {
    return absl::InvalidArgumentError(absl::StrCat(
        origin, ": ", key, " must be ", with_min ? "between " : "above ", min,
        with_min ? " and " : " and at most ", max, ", is ", *value));
  }
  return std::optional<float>(narrow);
}

}  // namespace

absl::StatusOr<GenerationConfig> ParseGenerationConfig(
    absl::string_view json, absl::string_view origin) {
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr int32_t kMaxInt = std::numeric_limits<int32_t>::max();
  ASSIGN_OR_RETURN(const Json raw, ParseJsonObject(json, origin));
  GenerationConfig config;
  ASSIGN_OR_RETURN(config.do_sample, JsonBool(raw, "do_sample", origin));
  ASSIGN_OR_RETURN(config.temperature,
                   FloatIn(raw, "temperature", 0, true, kMax, origin));
  ASSIGN_OR_RETURN(config.top_p, FloatIn(raw, "top_p", 0, false, 1, origin));
  ASSIGN_OR_RETURN(config.min_p, FloatIn(raw, "min_p", 0, true, 1, origin));
  ASSIGN_OR_RETURN(config.repetition_penalty,
                   FloatIn(raw, "repetition_penalty", 0, false, kMax, origin));
  ASSIGN_OR_RETURN(const auto top_k, JsonInt(raw, "top_k", 0, kMaxInt, origin));
  if (top_k) config.top_k = static_cast<int32_t>(*top_k);
  ASSIGN_OR_RETURN(config.eos_ids,
                   ParseTokenIds(raw, "eos_token_id", kMaxInt, origin));
  return config;
}

absl::StatusOr<GenerationConfig> LoadGenerationConfig(
    const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/generation_config.json");
  const auto text = ReadFile(path, kMaxFileBytes);
  if (absl::IsNotFound(text.status())) return GenerationConfig();
  RETURN_IF_ERROR(text.status());
  return ParseGenerationConfig(*text, path);
}

}  // namespace overfill
