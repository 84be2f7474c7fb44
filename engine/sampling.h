// How a sequence's tokens are chosen, and what the choice depends on.
#ifndef OVERFILL_ENGINE_SAMPLING_H_
#define OVERFILL_ENGINE_SAMPLING_H_

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace overfill {

// The request's rules, checked and complete; see SampleParams for the meaning
// and the order in which they apply.
struct SamplingParams {
  float temperature = 1;         // 0: greedy
  float top_p = 1;               // (0, 1]
  float min_p = 0;               // [0, 1]
  int32_t top_k = 0;             // 0: all
  float repetition_penalty = 1;  // > 0
  float presence_penalty = 0;    // [-2, 2]
  float frequency_penalty = 0;   // [-2, 2]
  uint64_t seed = 0;
  int32_t num_logprobs = -1;  // -1: none, else 0..kMaxTopLogprobs
  std::vector<std::pair<int32_t, float>> logit_bias;  // unique ids
  // Banned while fewer than min_tokens were sampled: EOS and stop ids.
  int32_t min_tokens = 0;
  std::vector<int32_t> min_tokens_banned_ids;
};

// One sequence's sampling state: it follows the sequence from pool to pool.
// Not thread-safe; copyable.
class SamplingState {
 public:
  // `params` outlives the state. Only rules that look back keep counts.
  SamplingState(const SamplingParams* params,
                std::span<const int32_t> prompt_ids, uint32_t sample_index);

  // The token was sampled and belongs to the output now.
  void Accept(int32_t token_id);

  // Tokens accepted so far: the index of the next one.
  uint32_t token_index() const { return token_index_; }
  const SamplingParams& params() const { return *params_; }

  // Appends this row's adjustments, and returns its params, ranges set.
  SampleParams Fill(std::vector<TokenAdjustment>& adjustments) const;

 private:
  const SamplingParams* params_;
  uint32_t sample_index_;
  uint32_t token_index_ = 0;
  // Sorted by token_id: every id with a bias, a count or a seen mark.
  std::vector<TokenAdjustment> adjustments_;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_SAMPLING_H_
