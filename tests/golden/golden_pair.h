// One model, or a pair with its KV map, on one device: what a server holds
// below its scheduler.
#ifndef OVERFILL_TESTS_GOLDEN_GOLDEN_PAIR_H_
#define OVERFILL_TESTS_GOLDEN_GOLDEN_PAIR_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/json.h"
#include "engine/kv_mover.h"
#include "engine/kv_store.h"
#include "engine/model_runner.h"
#include "engine/pair.h"
#include "engine/step.h"
#include "kernels/device.h"
#include "tests/golden/engine_driver.h"

namespace overfill {

class GoldenPair {
 public:
  // Reads the job's members:
  //   full, decode    checkpoint directories; without decode there is one
  //                   model, which is both halves
  //   kv_map          file, or absent: identity
  //   copy            separate stores although the map needs none
  //   weights, kv     "f32" or "bf16"
  //   block_tokens
  // The device outlives the pair.
  static absl::StatusOr<std::unique_ptr<GoldenPair>> Load(Device& device,
                                                          const Json& job);

  ModelRunner* prefill() { return prefill_.runner.get(); }
  ModelRunner* decode() {
    return decode_.runner ? decode_.runner.get() : prefill();
  }
  const KvStore& prefill_store() const { return *store_; }
  const KvStore& decode_store() const {
    return decode_store_ ? *decode_store_ : *store_;
  }
  // The layers of prefill_store() that the decode model's are made of, and
  // where those lie in decode_store().
  const std::vector<int32_t>& kept_layers() const { return kept_layers_; }
  const std::vector<int32_t>& decode_layers() const { return decode_layers_; }
  BlockMover* mover() { return mover_.get(); }
  StepLimits limits() const;

  // The pools with runners that may stand around this pair's.
  DrivenPools Pools(StepRunner* prefill, StepRunner* decode) const;
  // Fills the stores with NaN: whatever is read before it is written shows.
  absl::Status PoisonStores();

 private:
  struct Half {
    LogitsTable logits;  // of the last Run, by sequence
    std::unique_ptr<ModelRunner> runner;
  };

  explicit GoldenPair(Device& device) : device_(device) {}
  absl::Status MakeRunner(const ModelWeights& weights, const KvStore& store,
                          std::vector<int32_t> kv_layers, Half& half);
  absl::Status MakeStores(const Json& job, DType kv_dtype);

  Device& device_;
  std::unique_ptr<Pair> pair_;
  Half prefill_;
  Half decode_;
  std::unique_ptr<KvStore> store_;         // the full model's, or both's
  std::unique_ptr<KvStore> decode_store_;  // null where they share one
  std::vector<int32_t> kept_layers_;
  std::vector<int32_t> decode_layers_;
  std::unique_ptr<BlockMover> mover_;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_GOLDEN_GOLDEN_PAIR_H_
