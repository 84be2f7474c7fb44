// How the full model's KV becomes the pruned model's.
#ifndef OVERFILL_ENGINE_KV_MAP_H_
#define OVERFILL_ENGINE_KV_MAP_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/sha256.h"
#include "engine/model_config.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace overfill {

enum class KvMapKind {
  kIdentity,    // the same layers: the pruned model reads what is there
  kLayers,      // a pruned model of fewer layers reads those of its kept ones
  kProjection,  // a trained linear map per kept layer, for K and V alike
};
const char* KvMapKindName(KvMapKind kind);  // "identity", "layers", ...
std::optional<KvMapKind> KvMapKindOf(absl::string_view name);

// The text of a kv_map file:
//   {"kind": "identity"}
//   {"kind": "layers", "layers": [0, 2, 3]}
//   {"kind": "projection", "layers": [0, 2, 3], "file": "maps.safetensors"}
// layers[l] is the full model's layer that layer l of the pruned model is made
// of, strictly ascending. The file, beside the kv_map, holds "layers.L.k" and
// "layers.L.v" [Hkv' D', Hkv D] for each pruned layer L: they map K as it is
// cached, after q/k norm and RoPE. "layers.L.k.bias" and "layers.L.v.bias"
// [Hkv' D'] may be there too; they are added.
struct KvMapSpec {
  KvMapKind kind = KvMapKind::kIdentity;
  std::vector<int32_t> layers;  // empty for kIdentity
  std::string file;             // for kProjection; a plain file name
};
absl::StatusOr<KvMapSpec> ParseKvMapSpec(absl::string_view json,
                                         absl::string_view origin);

// Whether the map can lead from the full model's layers, KV heads and head_dim
// to the pruned model's. INVALID_ARGUMENT names the field.
absl::Status CheckKvMap(const KvMapSpec& spec, const ModelConfig& full,
                        const ModelConfig& pruned);

// A map in device memory.
struct KvMap {
  KvMapKind kind = KvMapKind::kIdentity;
  std::vector<int32_t> source_layers;  // [pruned layers]; identity: 0, 1, ...
  // Per pruned layer, f32; empty but for kProjection.
  std::vector<std::unique_ptr<LinearWeight>> k_maps;  // [Hkv' D', Hkv D]
  std::vector<std::unique_ptr<LinearWeight>> v_maps;  // [Hkv' D', Hkv D]
  Sha256Digest digest{};                              // of the map's content
};

// Loads the map, which passes CheckKvMap; its file lies in `directory`.
// INVALID_ARGUMENT names the file and the tensor.
absl::StatusOr<KvMap> LoadKvMap(Device& device, const KvMapSpec& spec,
                                const std::string& directory,
                                const ModelConfig& full,
                                const ModelConfig& pruned);

// The same with noise for maps, a function of `seed`; reads no file.
absl::StatusOr<KvMap> MakeDummyKvMap(Device& device, const KvMapSpec& spec,
                                     const ModelConfig& full,
                                     const ModelConfig& pruned, uint64_t seed);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_KV_MAP_H_
