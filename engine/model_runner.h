// One model on one device, behind the scheduler's seam.
#ifndef OVERFILL_ENGINE_MODEL_RUNNER_H_
#define OVERFILL_ENGINE_MODEL_RUNNER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kv_store.h"
#include "engine/step.h"
#include "engine/transformer.h"
#include "engine/weights.h"
#include "kernels/device.h"

namespace overfill {

struct ModelRunnerOptions {
  StepLimits limits;
  StreamPriority priority = StreamPriority::kLow;
  // The store's layer that each layer of the model reads and writes. Empty:
  // its own number.
  std::vector<int32_t> kv_layers;
  // Where set: called within Run for each draw, in the batch's order, with the
  // raw logits [V] of the row that it drew from. For tests; costs a copy per
  // draw.
  std::function<void(int32_t sequence, std::span<const float> logits)>
      logits_hook;
};

// Run may be called by one thread at a time; nothing else here has state. A
// batch that breaks the limits, a null draw, an id outside the vocabulary or
// the store, is INVALID_ARGUMENT before anything is issued.
class ModelRunner : public StepRunner {
 public:
  // Device, weights and store outlive the runner. INVALID_ARGUMENT when model
  // and store do not fit together.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(
      Device& device, const ModelWeights& weights, const KvStore& store,
      ModelRunnerOptions options);

  StepLimits limits() const override { return options_.limits; }
  absl::StatusOr<StepResult> Run(const StepBatch& batch) override;

 private:
  // Host copies of what one step sends to the device. Kept between steps, so
  // that a steady load allocates nothing.
  struct Staging {
    std::vector<int32_t> token_ids;        // [T]
    std::vector<int32_t> positions;        // [T]
    std::vector<int32_t> row_sequence;     // [T]
    std::vector<int32_t> row_begin;        // [S + 1]
    std::vector<int32_t> block_tables;     // [S, max_blocks]
    std::vector<int32_t> sample_rows;      // [R] one for each draw
    std::vector<int32_t> sample_sequence;  // [R] the row's s
    std::vector<int32_t> sample_token;     // [R] index into the result's tokens
    std::vector<SampleParams> params;      // [R]
    std::vector<TokenAdjustment> adjustments;
    std::vector<std::byte> packed;      // all of the above, as sent
    std::vector<SampleResult> results;  // [R]
    std::vector<float> raw_logits;      // [R, V], where the hook is set
  };

  ModelRunner(Device& device, const ModelWeights& weights, const KvStore& store,
              ModelRunnerOptions options);

  absl::Status Check(const StepBatch& batch) const;
  absl::Status CheckSequence(const SequenceStep& sequence) const;
  // Fills staging_ and the sizes of the two views.
  void Stage(const StepBatch& batch, BatchView& view, SampleBatch& samples,
             StepResult& result);
  // Adds the draw's token to `result`, failed already where it cannot be drawn.
  void StageDraw(const SamplingState& draw, int32_t sequence, int32_t row,
                 StepResult& result);
  // Sends staging_ to the device and points the views there.
  absl::Status Send(BatchView& view, SampleBatch& samples);
  void Collect(StepResult& result) const;

  Device& device_;
  const ModelWeights& weights_;
  const KvStore& store_;
  const ModelRunnerOptions options_;
  std::unique_ptr<Transformer> transformer_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Buffer> inputs_;      // staging_.packed; grows
  std::unique_ptr<Buffer> results_;     // [max_sequences] SampleResult
  std::unique_ptr<Buffer> raw_logits_;  // [max_sequences, V] f32, or null
  Staging staging_;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_MODEL_RUNNER_H_
