// Packed weights and the choice of a product's path.
#ifndef OVERFILL_KERNELS_CPU_LINEAR_H_
#define OVERFILL_KERNELS_CPU_LINEAR_H_

#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/matvec.h"
#include "kernels/ops.h"

namespace overfill {

// W [out, in] as panels of kPanelCols output columns, each with its whole depth
// in one piece (see PanelProduct and Int8Product); out is padded with zero
// columns, and the depth with zeros to kPanelDepth in bf16, to whole groups in
// int8. All product paths read the same bytes, which are tiles for AMX as they
// lie.
class CpuLinearWeight : public LinearWeight {
 public:
  static absl::StatusOr<std::unique_ptr<CpuLinearWeight>> Make(
      std::span<const HostTensor> weights, std::span<const HostTensor> biases,
      DType dtype, const std::shared_ptr<MemoryAccount>& account);

  DType dtype() const { return dtype_; }
  int64_t num_panels() const { return num_panels_; }
  int64_t panel_bytes() const { return panel_bytes_; }
  const void* panel(int64_t index, int64_t offset_bytes = 0) const {
    return static_cast<const char*>(panels_->data()) + index * panel_bytes_ +
           offset_bytes;
  }
  // [out], or null.
  const float* bias() const {
    return bias_ == nullptr ? nullptr : static_cast<float*>(bias_->data());
  }
  // Columns of `panel` that are outputs.
  int64_t panel_cols(int64_t panel) const;
  // out[k] = W[row, k].
  void CopyRow(int64_t row, float* out) const;

 private:
  CpuLinearWeight(int64_t in, int64_t out, DType dtype, int64_t num_panels,
                  int64_t panel_bytes, std::unique_ptr<Buffer> panels,
                  std::unique_ptr<Buffer> bias);

  const DType dtype_;
  const int64_t num_panels_;
  const int64_t panel_bytes_;
  const std::unique_ptr<Buffer> panels_;
  const std::unique_ptr<Buffer> bias_;
};

// What a product's instructions are.
enum class ProductPath {
  // AVX2, or AVX-512 where f32 is multiplied; bf16 weights are widened to f32.
  // A
  // row's result does not depend on the others.
  kAvx2,
  // AVX-512 dot products, of BF16 or VNNI. bf16: the input is taken to bf16 in
  // two halves for few rows, rounded for many.
  kDot,
  // The same in tiles of AMX, for more than two rows.
  kAmx,
};

// out (+)= x W^T + b, all rows f32. Shapes are checked by the caller.
void MultiplyLinear(CpuStream& stream, ProductPath path, Matrix x,
                    const CpuLinearWeight& weight, Matrix out, bool accumulate);

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_LINEAR_H_
