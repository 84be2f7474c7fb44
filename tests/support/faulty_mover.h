// A KvMover that fails as memory and devices do, at given rates.
#ifndef OVERFILL_TESTS_SUPPORT_FAULTY_MOVER_H_
#define OVERFILL_TESTS_SUPPORT_FAULTY_MOVER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <span>

#include "base/mutex.h"
#include "engine/step.h"
#include "tests/support/faulty_transport.h"

namespace overfill {

// As KvMover: one thread at a time; Release and counts from any thread. The
// number of a move and the seed decide its fault.
class FaultyMover : public KvMover {
 public:
  // See FaultHooks; of the destination's store.
  struct Hooks {
    std::function<void(int32_t block, int32_t num_tokens, uint64_t random)>
        flip;
    std::function<std::optional<uint64_t>(std::span<const BlockCopy> blocks,
                                          int32_t first_position)>
        received_digest;
  };
  struct Options {
    uint64_t seed = 1;
    // delay, truncate, flip, stall and fail: a mover sends no messages.
    // truncate: the last block is not what it should be, and nobody says so.
    // A stall does not return, and writes into its destination, until Release.
    FaultRates rates = {};
    std::chrono::nanoseconds max_delay = std::chrono::milliseconds(20);
    Hooks hooks = {};
  };
  // `inner` outlives this. Without both hooks, truncate and flip are seen in
  // received_digest alone; without digests they are left out.
  FaultyMover(KvMover* inner, Options options)
      : inner_(inner), options_(std::move(options)), random_(options_.seed) {}

  absl::StatusOr<KvMoveResult> Move(std::span<const BlockCopy> blocks,
                                    int32_t first_position) override;
  // Ends every stall, and those to come.
  void Release();
  // Waits until a move stalls; fails after a minute.
  void AwaitStall();
  FaultCounts counts() const;

 private:
  absl::StatusOr<KvMoveResult> Spoil(std::span<const BlockCopy> blocks,
                                     int32_t first_position, bool truncates,
                                     uint64_t random);
  absl::Status Stall(std::span<const BlockCopy> blocks, uint64_t random);

  KvMover* const inner_;
  const Options options_;
  std::mt19937_64 random_;
  mutable Mutex mu_;
  CondVar changed_;
  bool is_released_ ABSL_GUARDED_BY(mu_) = false;
  FaultCounts counts_ ABSL_GUARDED_BY(mu_);
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_SUPPORT_FAULTY_MOVER_H_
