// Arbitrary text as a kv_map file.
#include <cstddef>
#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "base/check.h"
#include "engine/kv_map.h"

namespace overfill {
namespace {

void CheckSpec(const KvMapSpec& spec) {
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    OVERFILL_CHECK(spec.layers[l] >= 0);
    OVERFILL_CHECK(l == 0 || spec.layers[l] > spec.layers[l - 1]);
  }
  OVERFILL_CHECK_EQ(spec.layers.empty(), spec.kind == KvMapKind::kIdentity);
  OVERFILL_CHECK_EQ(spec.file.empty(), spec.kind != KvMapKind::kProjection);
  OVERFILL_CHECK(!absl::StrContains(spec.file, '/'));

  ModelConfig full;
  full.num_layers = 4;
  full.num_kv_heads = 2;
  full.head_dim = 64;
  ModelConfig pruned = full;
  pruned.num_layers =
      spec.layers.empty() ? 4 : static_cast<int32_t>(spec.layers.size());
  const bool fits = spec.layers.empty() || spec.layers.back() < 4;
  OVERFILL_CHECK_EQ(CheckKvMap(spec, full, pruned).ok(), fits);
}

}  // namespace
}  // namespace overfill

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto spec = overfill::ParseKvMapSpec(text, "fuzz");
  if (spec.ok()) overfill::CheckSpec(*spec);
  return 0;
}
