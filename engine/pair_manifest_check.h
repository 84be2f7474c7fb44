// Whether a pair is the one that its manifest was written for.
#ifndef OVERFILL_ENGINE_PAIR_MANIFEST_CHECK_H_
#define OVERFILL_ENGINE_PAIR_MANIFEST_CHECK_H_

#include <string>

#include "absl/status/status.h"
#include "engine/kv_map.h"
#include "engine/pair_check.h"
#include "engine/pair_manifest.h"
#include "engine/safetensors.h"

namespace overfill {

// OK when the widths and layers are those of the two configs, and the layers
// of `map`, which passes CheckKvMap, those of the manifest. INVALID_ARGUMENT
// names the manifest, the field and both values.
absl::Status CheckPairManifest(const PairManifest& manifest,
                               const PairSide& full, const PairSide& pruned,
                               const KvMapSpec& map);

enum class PairHalf { kFull, kDecode };

// Compares the digests of all that the manifest names of one half in
// `directory`, but for .safetensors files. INVALID_ARGUMENT names the manifest,
// the field and the directory.
absl::Status CheckManifestFiles(const PairManifest& manifest, PairHalf half,
                                const std::string& directory);

// The same for the .safetensors files, the checkpoint's all among them. Reads
// each once more, in parallel by up to `num_threads` threads: about a second
// per 1.5 GB of the largest file, where it lies in the page cache.
absl::Status CheckManifestWeights(const PairManifest& manifest, PairHalf half,
                                  const std::string& directory,
                                  const Checkpoint& checkpoint,
                                  int num_threads);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_PAIR_MANIFEST_CHECK_H_
