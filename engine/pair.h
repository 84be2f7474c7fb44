// A pair: the full and the pruned checkpoint, proven to fit together, with the
// map from the full model's KV to the pruned model's.
#ifndef OVERFILL_ENGINE_PAIR_H_
#define OVERFILL_ENGINE_PAIR_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/phase_times.h"
#include "base/sha256.h"
#include "engine/kv_map.h"
#include "engine/model_config.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/weights.h"
#include "kernels/device.h"

namespace overfill {

enum class LoadFormat {
  kSafetensors,
  kDummy,  // seeded noise in the shapes of config.json: for speed, not text
};

struct PairOptions {
  std::string prefill_model_dir;
  std::string decode_model_dir;
  // Empty: what the decode model's manifest says, else identity.
  std::string kv_map_file;
  LoadFormat load_format = LoadFormat::kSafetensors;
  // Of the products: kBF16, kF32 or kInt8. int8's KV is bf16's.
  DType prefill_weights = DType::kBF16;
  DType decode_weights = DType::kBF16;
};

// One half of a pair, loaded.
struct PairModel {
  std::string name;  // the last component of its directory
  ModelWeights weights;
  Sha256Digest digest{};  // of the checkpoint's content and its weights' type
  int64_t num_parameters = 0;
};

// Immutable after Load; safe for any thread.
class Pair {
 public:
  // Loads both checkpoints to `device`, which outlives the pair. Compatibility
  // is proven from the small files first: vocabulary and tokenizer content, KV
  // heads, head_dim, RoPE parameters, KV dtype and the layer map. Where the
  // decode model's directory has an overfill.json (pair_manifest.h), and is not
  // the full model's, both checkpoints must be those that it names: widths,
  // layer map and digests of the small files first, then those of the weights,
  // which are read once more for it before any is converted. Of dummies no
  // digest is checked. Errors are one line that names the file, or both files,
  // and the field or tensor.
  // What took how long is told to `times`, where it is not null.
  static absl::StatusOr<std::unique_ptr<Pair>> Load(
      Device& device, const PairOptions& options, PhaseTimes* times = nullptr);

  const PairModel& full() const { return full_; }
  // full() itself where both directories, and both types of weights, are one.
  const PairModel& pruned() const { return is_one_model_ ? full_ : pruned_; }
  // Whether nothing says that the pruned model was made from the full one:
  // two models, and no manifest (pair_manifest.h).
  bool lacks_manifest() const { return lacks_manifest_; }
  const KvMap& kv_map() const { return kv_map_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // The full model's, for requests that leave a field unset.
  const GenerationConfig& generation() const { return generation_; }
  // What ends an answer: the ids of the full model's generation_config.json,
  // else of its config.json, else the tokenizer's EOS. Sorted, unique.
  const std::vector<int32_t>& eos_ids() const { return eos_ids_; }
  // Over the content of both checkpoints, the tokenizer and the KV map.
  const Sha256Digest& digest() const { return digest_; }

 private:
  friend class PairLoader;  // in pair.cc
  Pair() = default;

  PairModel full_;
  PairModel pruned_;
  bool is_one_model_ = false;
  bool lacks_manifest_ = false;
  KvMap kv_map_;
  std::unique_ptr<Tokenizer> tokenizer_;
  GenerationConfig generation_;
  std::vector<int32_t> eos_ids_;
  Sha256Digest digest_{};
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_PAIR_H_
