// Ops on a CPU: checks shapes, splits work over the thread team, and calls the
// vector kernels of this folder. All activations are f32.
#ifndef OVERFILL_KERNELS_CPU_CPU_OPS_H_
#define OVERFILL_KERNELS_CPU_CPU_OPS_H_

#include <memory>
#include <span>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_info.h"
#include "kernels/cpu/linear.h"
#include "kernels/ops.h"

namespace overfill {

class CpuOps : public Ops {
 public:
  // `batch_invariant` as in DeviceOptions.
  CpuOps(CpuIsa isa, bool batch_invariant,
         std::shared_ptr<MemoryAccount> account)
      : isa_(isa),
        batch_invariant_(batch_invariant),
        account_(std::move(account)) {}

  absl::StatusOr<std::unique_ptr<LinearWeight>> MakeLinear(
      std::span<const HostTensor> weights, std::span<const HostTensor> biases,
      DType dtype) override;
  absl::StatusOr<std::unique_ptr<Buffer>> MakeVector(
      const HostTensor& values) override;

  void Embedding(Stream& stream, const LinearWeight& table,
                 const BatchView& batch, Matrix out) override;
  void RmsNorm(Stream& stream, Matrix x, const float* gain, float eps,
               Matrix out) override;
  void Linear(Stream& stream, Matrix x, const LinearWeight& weight, Matrix out,
              bool accumulate) override;
  void RopeAngles(Stream& stream, const BatchView& batch,
                  const float* inverse_frequencies, Matrix cos_sin) override;
  void QkNormRopeWrite(Stream& stream, const AttentionShape& shape,
                       const AttentionWeights& weights, const BatchView& batch,
                       Matrix cos_sin, const KvView& kv, int32_t kv_layer,
                       Matrix qkv) override;
  void PagedAttention(Stream& stream, const AttentionShape& shape,
                      const BatchView& batch, const KvView& kv,
                      int32_t kv_layer, Matrix qkv, Matrix out) override;
  void SiluMul(Stream& stream, Matrix gate_up, Matrix gated) override;
  void GatherRows(Stream& stream, Matrix x, const int32_t* rows,
                  Matrix out) override;
  void CopyRows(Stream& stream, Matrix x, float* out) override;
  void Sample(Stream& stream, Matrix logits, const uint8_t* is_token,
              const SampleBatch& batch, SampleResult* results) override;

  void CopyBlocks(Stream& stream, const KvView& source,
                  const KvView& destination,
                  std::span<const int32_t> source_layers,
                  std::span<const BlockCopy> blocks) override;
  void ProjectBlocks(Stream& stream, const KvView& source,
                     const KvView& destination,
                     std::span<const int32_t> source_layers,
                     std::span<const LinearWeight* const> k_maps,
                     std::span<const LinearWeight* const> v_maps,
                     std::span<const BlockCopy> blocks) override;

 private:
  ProductPath PathOf(DType weights) const;

  const CpuIsa isa_;
  const bool batch_invariant_;
  const std::shared_ptr<MemoryAccount> account_;
};

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_CPU_OPS_H_
