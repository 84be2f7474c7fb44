// A loaded pair made ready to run: its KV stores with their swap space, a
// runner for each pool, and the movers between the stores.
#ifndef OVERFILL_ENGINE_PAIR_ENGINE_H_
#define OVERFILL_ENGINE_PAIR_ENGINE_H_

#include <array>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kv_mover.h"
#include "engine/kv_store.h"
#include "engine/model_runner.h"
#include "engine/pair.h"
#include "kernels/device.h"

namespace overfill {

struct PairEngineOptions {
  // Of all stores together; 0: what a full decode batch of full sequences
  // takes, but at most half of what the weights leave of the device's memory.
  int64_t kv_cache_bytes = 0;
  // Host memory that the stores' blocks can be swapped out to, of all stores
  // together; 0: none. -1: as much as the stores take, but at most an eighth of
  // the device's memory and half of what weights and stores leave of it; none
  // where even that is not to be had.
  int64_t swap_bytes = -1;
  int32_t block_tokens = 16;
  // 0: the smaller of both models' max_positions, or what the stores hold
  // where that is less. A stated one that they do not hold is refused.
  int32_t max_sequence_tokens = 0;
  int32_t prefill_chunk_tokens = 512;  // prompt rows of one step
  int32_t max_decode_batch = 64;       // sequences of one step
};

// Immutable after Create. The runners and the movers have the threading rules
// of step.h, each mover for itself.
//
// Stores go by number: 0 is the prefill pool's, or the shared one; 1 is the
// decode pool's own.
class PairEngine {
 public:
  // Device and pair outlive the engine. INVALID_ARGUMENT when the options do
  // not fit the pair, RESOURCE_EXHAUSTED when memory does not do.
  static absl::StatusOr<std::unique_ptr<PairEngine>> Create(
      Device& device, const Pair& pair, const PairEngineOptions& options);

  StepRunner* prefill() const { return prefill_.get(); }
  StepRunner* decode() const { return decode_.get(); }
  // Null where both pools share one store: identity and layers.
  KvMover* mover() const { return mover_.get(); }
  const KvStore& prefill_store() const { return *prefill_store_; }
  // The prefill pool's where they share it.
  const KvStore& decode_store() const {
    return decode_store_ ? *decode_store_ : *prefill_store_;
  }
  bool shares_store() const { return decode_store_ == nullptr; }
  const KvStore& store(int number) const {
    return number == 0 ? prefill_store() : decode_store();
  }
  int num_stores() const { return shares_store() ? 1 : 2; }

  // Of a store's swap space, which has the store's layout; 0: none.
  int32_t swap_blocks(int number) const;
  // Null where swap_blocks is 0.
  const KvStore* swap_store(int number) const { return swaps_[number].get(); }
  // Copies blocks to the swap space and back, byte for byte. Null where
  // swap_blocks is 0.
  KvMover* swap_out(int number) const { return swap_outs_[number].get(); }
  KvMover* swap_in(int number) const { return swap_ins_[number].get(); }
  // Copies blocks of a store to others of the same one; null where there is no
  // such store.
  KvMover* fork_mover(int number) const { return forks_[number].get(); }

  int32_t max_sequence_tokens() const { return max_sequence_tokens_; }

 private:
  PairEngine() = default;
  absl::Status MakeStores(Device& device, const Pair& pair,
                          const PairEngineOptions& options);
  absl::Status MakeForks(Device& device);
  absl::Status MakeSwapSpace(Device& device, const Pair& pair,
                             const PairEngineOptions& options);
  absl::Status MakeSwapStores(Device& device, int64_t num_blocks);
  absl::Status MakeRunners(Device& device, const Pair& pair,
                           const PairEngineOptions& options);

  std::unique_ptr<KvStore> prefill_store_;
  std::unique_ptr<KvStore> decode_store_;  // null: shared
  std::unique_ptr<BlockMover> mover_;      // null: shared
  // By store; null where there is none.
  std::array<std::unique_ptr<KvStore>, 2> swaps_;
  std::array<std::unique_ptr<BlockMover>, 2> swap_outs_;
  std::array<std::unique_ptr<BlockMover>, 2> swap_ins_;
  std::array<std::unique_ptr<BlockMover>, 2> forks_;
  std::unique_ptr<ModelRunner> prefill_;
  std::unique_ptr<ModelRunner> decode_;
  int32_t max_sequence_tokens_ = 0;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_PAIR_ENGINE_H_
