// overfill.json in a pruned model's directory: which full model it was made
// from, how, and the digests of both. Training writes it; without one a pair is
// served all the same.
#ifndef OVERFILL_ENGINE_PAIR_MANIFEST_H_
#define OVERFILL_ENGINE_PAIR_MANIFEST_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/kv_map.h"

namespace overfill {

inline constexpr char kPairManifestName[] = "overfill.json";

// What the manifest says of one model.
struct ManifestModel {
  std::string name;  // for people; may be empty
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_layers = 0;
  // Plain names in the model's directory -> SHA-256 of the content, 64 digits
  // of lower-case hex. Has config.json and tokenizer.json.
  std::map<std::string, std::string, std::less<>> files;
};

// Consistent in itself, as ParsePairManifest leaves it.
struct PairManifest {
  std::string path;  // begins every message
  KvMapKind kv_map = KvMapKind::kIdentity;
  // [decode layers]: the full model's layer that each is made of, ascending;
  // 0, 1, ... up to the full model's last for kIdentity.
  std::vector<int32_t> layer_map;
  // The full model's channels that were kept, ascending: [decode hidden] and
  // [decode layers][decode intermediate]. Absent where they are not known.
  std::optional<std::vector<int32_t>> kept_hidden;
  std::optional<std::vector<std::vector<int32_t>>> kept_intermediate;
  ManifestModel full;
  ManifestModel decode;
};

// The text of a manifest:
//   {"format": "overfill-pair", "version": 1, "kv_map": "layers",
//    "layer_map": [0, 2], "kept_hidden": [0, 3, ...] or null,
//    "kept_intermediate": [[1, 2, ...], ...] or null,
//    "full": {"name": "...", "hidden_size": 128, "intermediate_size": 256,
//             "num_hidden_layers": 3, "files": {"config.json": "9f86...",
//             ...}},
//    "decode": {...}}
// Other members are left alone. INVALID_ARGUMENT is "PATH: FIELD ...".
absl::StatusOr<PairManifest> ParsePairManifest(absl::string_view json,
                                               absl::string_view path);

// The one of the directory, or nullopt where there is none.
absl::StatusOr<std::optional<PairManifest>> LoadPairManifest(
    const std::string& directory);

// The map for a pair that was given no other. INVALID_ARGUMENT for a
// projection: its file must be given.
absl::StatusOr<KvMapSpec> KvMapOfManifest(const PairManifest& manifest);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_PAIR_MANIFEST_H_
