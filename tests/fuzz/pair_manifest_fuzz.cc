// Arbitrary text as an overfill.json.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "base/check.h"
#include "engine/pair_manifest.h"
#include "engine/pair_manifest_check.h"

namespace overfill {
namespace {

void CheckIndices(const std::vector<int32_t>& indices, int32_t count,
                  int32_t limit) {
  OVERFILL_CHECK_EQ(indices.size(), static_cast<size_t>(count));
  for (size_t i = 0; i < indices.size(); ++i) {
    OVERFILL_CHECK(indices[i] >= 0 && indices[i] < limit);
    OVERFILL_CHECK(i == 0 || indices[i] > indices[i - 1]);
  }
}

PairSide CheckModel(const ManifestModel& model) {
  for (const auto& [name, digest] : model.files) {
    OVERFILL_CHECK(!name.empty() && name[0] != '.');
    OVERFILL_CHECK(!absl::StrContains(name, '/'));
    OVERFILL_CHECK(!absl::StrContains(name, '\0'));
    OVERFILL_CHECK_EQ(digest.size(), size_t{64});
  }
  OVERFILL_CHECK(model.files.contains("config.json"));
  OVERFILL_CHECK(model.files.contains("tokenizer.json"));
  PairSide side;
  side.config.hidden_size = model.hidden_size;
  side.config.intermediate_size = model.intermediate_size;
  side.config.num_layers = model.num_layers;
  side.config.num_kv_heads = 2;
  side.config.head_dim = 64;
  return side;
}

void CheckManifest(const PairManifest& manifest) {
  const PairSide full = CheckModel(manifest.full);
  PairSide decode = CheckModel(manifest.decode);
  CheckIndices(manifest.layer_map, manifest.decode.num_layers,
               manifest.full.num_layers);
  if (manifest.kept_hidden) {
    CheckIndices(*manifest.kept_hidden, manifest.decode.hidden_size,
                 manifest.full.hidden_size);
  }
  if (manifest.kept_intermediate) {
    OVERFILL_CHECK_EQ(manifest.kept_intermediate->size(),
                      static_cast<size_t>(manifest.decode.num_layers));
    for (const std::vector<int32_t>& kept : *manifest.kept_intermediate) {
      CheckIndices(kept, manifest.decode.intermediate_size,
                   manifest.full.intermediate_size);
    }
  }
  const auto map = KvMapOfManifest(manifest);
  OVERFILL_CHECK_EQ(map.ok(), manifest.kv_map != KvMapKind::kProjection);
  if (!map.ok()) return;
  // Its own map fits the pair that it describes, and no other pair does.
  OVERFILL_CHECK_OK(CheckKvMap(*map, full.config, decode.config));
  OVERFILL_CHECK_OK(CheckPairManifest(manifest, full, decode, *map));
  ++decode.config.hidden_size;
  OVERFILL_CHECK(!CheckPairManifest(manifest, full, decode, *map).ok());
}

}  // namespace
}  // namespace overfill

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto manifest = overfill::ParsePairManifest(text, "fuzz");
  if (manifest.ok()) overfill::CheckManifest(*manifest);
  return 0;
}
