// The forward pass of every architecture that the engine knows.
#ifndef OVERFILL_ENGINE_TRANSFORMER_H_
#define OVERFILL_ENGINE_TRANSFORMER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model_config.h"
#include "engine/weights.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace overfill {

// One model's layers over one work space. Forward may be called by one thread
// at a time; nothing is allocated after construction.
class Transformer {
 public:
  // The work space holds steps of up to `max_rows` rows, of which up to
  // `max_sample_rows` are sampled. Layer l reads and writes layer kv_layers[l]
  // of the KV store. Device and weights outlive the transformer.
  static absl::StatusOr<std::unique_ptr<Transformer>> Create(
      Device& device, const ModelWeights& weights, int32_t max_rows,
      int32_t max_sample_rows, std::vector<int32_t> kv_layers);

  // Issues one step on `stream`: the rows' KV is written to `kv`, and the rows
  // of `samples` are sampled into `results` [samples.num_rows], in device
  // memory. `raw_logits`, where not null, receives their raw logits
  // [samples.num_rows, V] f32.
  void Forward(Stream& stream, const BatchView& batch,
               const SampleBatch& samples, const KvView& kv, float* raw_logits,
               SampleResult* results);

  const ModelConfig& config() const { return weights_.config; }

 private:
  Transformer(Device& device, const ModelWeights& weights,
              std::vector<int32_t> kv_layers);
  absl::Status AllocateWorkSpace(int32_t max_rows, int32_t max_sample_rows);
  absl::StatusOr<Matrix> NewMatrix(int64_t rows, int64_t cols, DType dtype);

  Device& device_;
  const ModelWeights& weights_;
  const AttentionShape shape_;
  const std::vector<int32_t> kv_layers_;         // [num_layers]
  std::unique_ptr<Buffer> inverse_frequencies_;  // [D / 2] f32
  std::vector<std::unique_ptr<Buffer>> buffers_;
  Matrix x_;          // [max_rows, H] the residual stream
  Matrix cos_sin_;    // [max_rows, D] f32
  Matrix attention_;  // [max_rows, Hq D]
  StepScratch scratch_;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TRANSFORMER_H_
