// Who holds which KV block of one store: accounting on integers, without a
// device, without a thread.
#ifndef OVERFILL_SCHEDULER_BLOCK_POOL_H_
#define OVERFILL_SCHEDULER_BLOCK_POOL_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace overfill {

// A block is
//   free         nobody holds it and nothing touches it
//   owned        someone holds a reference
//   quarantined  nobody holds it any more, but a launched step or a copy that
//                touches it is not finished; it is free when the last one is
//   cached       nobody holds it, its content is kept for reuse (none yet)
//
// A credit is the promise of a block that has not been allocated: there are
// never more credits out than free blocks, so an allocation against a credit
// cannot fail.
//
// Not thread-safe. Misuse (a release of what is not held, an allocation
// without a credit) is our own bug and is CHECKed.
class BlockPool {
 public:
  using Owner = uint64_t;  // not 0

  explicit BlockPool(int32_t num_blocks);  // >= 0

  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_cached() const { return 0; }
  int32_t num_owned() const { return num_owned_; }
  int32_t num_quarantined() const { return num_quarantined_; }
  int32_t credits() const { return credits_; }
  // Blocks that can still be promised.
  int32_t available() const { return num_free() - credits_; }

  // Takes `count` credits; false, and no change, when they are not available.
  [[nodiscard]] bool Reserve(int32_t count);
  void Unreserve(int32_t count);

  // Turns one credit into a block that `owner` alone holds.
  int32_t Allocate(Owner owner);
  // One more reference, for whoever shares the block; from now on it has no
  // single owner.
  void Share(int32_t block);
  // The block changes hands; no byte moves.
  void Transfer(int32_t block, Owner from, Owner to);
  // Gives up a reference. `owner` is not looked at for a shared block.
  void Release(int32_t block, Owner owner);

  // A step or a copy, named by `what`, touches `blocks` until Unpin.
  uint64_t Pin(std::span<const int32_t> blocks, std::string what);
  void Unpin(uint64_t pin);

  // What one owner says it holds here.
  struct Holding {
    Owner owner;
    std::span<const int32_t> blocks;
    int32_t credits;
  };
  // INTERNAL names the first thing that does not add up: the states' sum, a
  // block in two tables or in none, an id out of range, the credits.
  absl::Status CheckIntegrity(std::span<const Holding> holdings) const;

 private:
  struct Block {
    int32_t references = 0;
    int32_t pins = 0;
    Owner owner = 0;  // 0 when free, quarantined or shared
  };
  struct PinRecord {
    std::vector<int32_t> blocks;
    std::string what;
  };

  Block& At(int32_t block);
  absl::Status CheckStates() const;
  absl::Status CheckPins() const;
  absl::Status CheckHoldings(std::span<const Holding> holdings) const;

  std::vector<Block> blocks_;
  std::vector<int32_t> free_;  // the last one goes out first
  int32_t num_owned_ = 0;
  int32_t num_quarantined_ = 0;
  int32_t credits_ = 0;
  uint64_t next_pin_ = 1;
  std::map<uint64_t, PinRecord> pins_;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_BLOCK_POOL_H_
