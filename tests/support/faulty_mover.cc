#include "tests/support/faulty_mover.h"

#include <thread>

#include "base/check.h"
#include "base/status_macros.h"

namespace overfill {

absl::StatusOr<KvMoveResult> FaultyMover::Move(
    std::span<const BlockCopy> blocks, int32_t first_position) {
  const TransferFault fault = DrawFault(options_.rates, random_);
  const uint64_t random = random_();
  {
    MutexLock lock(&mu_);
    ++counts_.transfers;
    counts_.delayed += fault == TransferFault::kDelay;
    counts_.stalled += fault == TransferFault::kStall;
    counts_.failed += fault == TransferFault::kFail;
    changed_.NotifyAll();
  }
  switch (fault) {
    case TransferFault::kDelay:
      std::this_thread::sleep_for(
          options_.max_delay * (static_cast<double>(random >> 11) * 0x1p-53));
      break;
    case TransferFault::kStall:
      return Stall(blocks, random);
    case TransferFault::kFail:
      return absl::UnavailableError("a planted failure");
    case TransferFault::kTruncate:
    case TransferFault::kFlip:
      if (blocks.empty()) break;
      return Spoil(blocks, first_position, fault == TransferFault::kTruncate,
                   random);
    default:
      break;
  }
  return inner_->Move(blocks, first_position);
}

absl::StatusOr<KvMoveResult> FaultyMover::Spoil(
    std::span<const BlockCopy> blocks, int32_t first_position, bool truncates,
    uint64_t random) {
  // Moved in full, then spoiled: the digest of what was sent is of all of it.
  ASSIGN_OR_RETURN(KvMoveResult result, inner_->Move(blocks, first_position));
  if (!result.received_digest) return result;
  const BlockCopy& spoiled =
      truncates ? blocks.back() : blocks[random % blocks.size()];
  if (options_.hooks.flip && options_.hooks.received_digest) {
    options_.hooks.flip(spoiled.destination, spoiled.num_tokens, random >> 8);
    result.received_digest =
        options_.hooks.received_digest(blocks, first_position);
  } else {
    *result.received_digest ^= 1;
  }
  MutexLock lock(&mu_);
  ++(truncates ? counts_.truncated : counts_.flipped);
  return result;
}

absl::Status FaultyMover::Stall(std::span<const BlockCopy> blocks,
                                uint64_t random) {
  MutexLock lock(&mu_);
  while (!is_released_) {
    if (options_.hooks.flip && !blocks.empty()) {
      const BlockCopy& copy = blocks[random % blocks.size()];
      options_.hooks.flip(copy.destination, copy.num_tokens, random >> 8);
      random = NextRandom(random);
    }
    changed_.WaitFor(&mu_, std::chrono::microseconds(200));
  }
  return absl::UnavailableError("a planted stall");
}

void FaultyMover::Release() {
  MutexLock lock(&mu_);
  is_released_ = true;
  changed_.NotifyAll();
}

void FaultyMover::AwaitStall() {
  MutexLock lock(&mu_);
  for (int seconds = 0; counts_.stalled == 0; ++seconds) {
    OVERFILL_CHECK(seconds < 60) << "nothing stalls";
    changed_.WaitFor(&mu_, std::chrono::seconds(1));
  }
}

FaultCounts FaultyMover::counts() const {
  MutexLock lock(&mu_);
  return counts_;
}

}  // namespace overfill
