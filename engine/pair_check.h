// Whether a full and a pruned model can share a KV cache.
#ifndef OVERFILL_ENGINE_PAIR_CHECK_H_
#define OVERFILL_ENGINE_PAIR_CHECK_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/kv_map.h"
#include "engine/model_config.h"
#include "engine/tokenizer/tokenizer.h"
#include "kernels/tensor.h"

namespace overfill {

// All that the check looks at of one half of a pair.
struct PairSide {
  std::string directory;  // for messages
  ModelConfig config;
  GenerationConfig generation;
  const Tokenizer* tokenizer = nullptr;  // not owned
  DType kv_dtype = DType::kBF16;         // of its KV store
};

// OK when the pruned model can read the full model's KV through `map`, and
// when both mean the same tokens. Else INVALID_ARGUMENT, one line that names
// both directories, the first field that does not fit, and its two values.
absl::Status CheckPair(const PairSide& full, const PairSide& pruned,
                       const KvMapSpec& map);

// What ends an answer: the ids of generation_config.json, else of config.json,
// else the tokenizer's EOS. Sorted, unique. INVALID_ARGUMENT when one is not
// in the vocabulary.
absl::StatusOr<std::vector<int32_t>> EosIds(const PairSide& side);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_PAIR_CHECK_H_
