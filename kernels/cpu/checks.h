// Checks that the ops of this folder share.
#ifndef OVERFILL_KERNELS_CPU_CHECKS_H_
#define OVERFILL_KERNELS_CPU_CHECKS_H_

#include "base/check.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/ops.h"

namespace overfill {

inline CpuStream& AsCpuStream(Stream& stream) {
  return static_cast<CpuStream&>(stream);
}

inline void CheckMatrix(const Matrix& matrix, int64_t rows, int64_t cols) {
  OVERFILL_CHECK(matrix.dtype == DType::kF32);
  OVERFILL_CHECK_EQ(matrix.rows, rows);
  OVERFILL_CHECK_EQ(matrix.cols, cols);
  OVERFILL_CHECK_GE(matrix.stride, cols);
  OVERFILL_CHECK(matrix.data != nullptr || rows == 0);
}

// The kv store and the layer fit the shape.
void CheckAttention(const AttentionShape& shape, const KvView& kv,
                    int32_t kv_layer);

// INTERNAL where a row's position or sequence, or a block that the batch would
// touch, is out of range: the op then touches nothing.
absl::Status CheckBatch(const char* op, const BatchView& batch,
                        const KvView& kv);

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_CHECKS_H_
