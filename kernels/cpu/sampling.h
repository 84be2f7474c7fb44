// Sampling of one row of logits, as SampleParams states it.
#ifndef OVERFILL_KERNELS_CPU_SAMPLING_H_
#define OVERFILL_KERNELS_CPU_SAMPLING_H_

#include <cstdint>
#include <span>

#include "kernels/ops.h"

namespace overfill {

// One token on its way through a selection.
struct Candidate {
  float logit;
  int32_t id;
};

// What SampleRow works in, uninitialized.
struct SampleWork {
  Candidate* candidates = nullptr;  // [vocab_size]
  float* adjusted_raw = nullptr;    // [adjustments]
};

// `logits` [vocab_size] is overwritten. `is_token` [vocab_size] or null.
// `adjustments` are the row's own, with ids in range.
SampleResult SampleRow(std::span<float> logits, const uint8_t* is_token,
                       const SampleParams& params,
                       std::span<const TokenAdjustment> adjustments,
                       const SampleWork& work);

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_SAMPLING_H_
