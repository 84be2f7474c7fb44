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
// in one piece (see PanelProduct); out is padded with zero columns, and the
// depth of bf16 weights with zeros to kPanelDepth. All product paths read the
// same bytes; those of bf16 are tiles for AMX as they lie.
class CpuLinearWeight : public LinearWeight {
 public:
  static absl::StatusOr<std::unique_ptr<CpuLinearWeight>> Make(
      std::span<const HostTensor> weights, std::span<const HostTensor> biases,
      DType dtype, const std::shared_ptr<MemoryAccount>& account);

  DType dtype() const { return dtype_; }
  int64_t num_panels() const { return num_panels_; }
  int64_t panel_bytes() const { return panel_bytes_; }
  const void* panel(int64_t index) const {
    return static_cast<const char*>(panels_->data()) + index * panel_bytes_;
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

enum class ProductPath {
  // Weights are widened to f32. A row's result does not depend on the others.
  kF32,
  // The input becomes bf16: in two halves for few rows, rounded for many. Needs
  // AVX-512 BF16 and bf16 weights.
  kBF16,
  // The same in tiles. Needs AMX BF16.
  kAmx,
};

// out (+)= x W^T + b, all rows f32. Shapes are checked by the caller.
void MultiplyLinear(CpuStream& stream, ProductPath path, Matrix x,
                    const CpuLinearWeight& weight, Matrix out, bool accumulate);

// Element `index` of a host tensor of any type and alignment, as f32.
float HostElement(const HostTensor& tensor, int64_t index);

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_LINEAR_H_
