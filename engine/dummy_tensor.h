// Seeded noise in place of a checkpoint's tensors.
#ifndef OVERFILL_ENGINE_DUMMY_TENSOR_H_
#define OVERFILL_ENGINE_DUMMY_TENSOR_H_

#include <cstdint>
#include <vector>

#include "engine/weight_plan.h"
#include "kernels/tensor.h"

namespace overfill {

// A function of (seed, name, shape, role) alone: a matrix [.., in] is uniform
// noise of variance 1 / in, so that activations keep their size; a gain is 1,
// a bias 0. bf16; the tensor points into `storage`.
HostTensor MakeDummyTensor(const PlannedTensor& planned, uint64_t seed,
                           std::vector<uint16_t>& storage);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_DUMMY_TENSOR_H_
