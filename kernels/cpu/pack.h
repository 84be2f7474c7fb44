// Weights on their way from a file's rows to panels, and back.
#ifndef OVERFILL_KERNELS_CPU_PACK_H_
#define OVERFILL_KERNELS_CPU_PACK_H_

#include <cstdint>

#include "kernels/tensor.h"

namespace overfill {

// Of one panel (see PanelProduct and Int8Product) of weights [.., depth].
int64_t PanelBytes(DType dtype, int64_t depth);

// Puts `tensor` [rows, depth] into the output columns from `first` of zeroed
// panels of `dtype` (kF32, kBF16 or kInt8).
void PackRows(const HostTensor& tensor, int64_t first, DType dtype,
              void* panels);

// out[k] = the weight at depth k < depth of column `col` of a panel.
void UnpackColumn(DType dtype, const void* panel, int64_t col, int64_t depth,
                  float* out);

// Element `index` of a host tensor of any type and alignment, as f32.
float HostElement(const HostTensor& tensor, int64_t index);

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_PACK_H_
