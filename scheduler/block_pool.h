// Who holds which KV block of one store, and which blocks hold the KV of a
// prompt's prefix: accounting on integers, without a device, without a thread.
#ifndef OVERFILL_SCHEDULER_BLOCK_POOL_H_
#define OVERFILL_SCHEDULER_BLOCK_POOL_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "scheduler/prefix_keys.h"

namespace overfill {

// A block is
//   free         nobody holds it and nothing touches it
//   owned        someone holds a reference
//   quarantined  nobody holds it any more, but a launched step or a copy that
//                touches it is not finished; it is free, or cached, when the
//                last one is
//   cached       nobody holds it and nothing touches it, its content is kept
//                for reuse until the block is needed
//
// A credit is the promise of a block that has not been allocated: there are
// never more credits out than free and cached blocks, so an allocation against
// a credit cannot fail.
//
// A published block has a key, which names its content; a key names at most one
// block. The block keeps it while it is owned, quarantined or cached.
//
// Cached blocks go in the order in which they became cached. A block of a chain
// is of no use without those before it, so it must become cached before they
// do: release a table back to front. Unpin looks after its own blocks. (Whoever
// publishes the later blocks of a chain whose first ones are another's does not
// hold those. Where they go first, the later ones go in their turn, unless the
// first are published anew.)
//
// All operations take constant time per block (amortized), FindPrefix per block
// found, CheckIntegrity per block of the pool.
//
// Not thread-safe. Misuse (a release of what is not held, an allocation
// without a credit) is our own bug and is CHECKed.
class BlockPool {
 public:
  using Owner = uint64_t;  // not 0

  explicit BlockPool(int32_t num_blocks);  // >= 0

  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_cached() const { return num_cached_; }
  int32_t num_owned() const { return num_owned_; }
  int32_t num_quarantined() const { return num_quarantined_; }
  int32_t credits() const { return credits_; }
  // Blocks that can still be promised.
  int32_t available() const { return num_free() + num_cached_ - credits_; }

  // Takes `count` credits; false, and no change, when they are not available.
  [[nodiscard]] bool Reserve(int32_t count);
  void Unreserve(int32_t count);

  // Turns one credit into a block that `owner` alone holds: a free one, else
  // the one that is cached for longest, whose key is forgotten.
  int32_t Allocate(Owner owner);
  // One more reference, for whoever shares the block; from now on it has no
  // single owner.
  void Share(int32_t block);
  // The block changes hands; no byte moves. No effect on a block that is or
  // was shared.
  void Transfer(int32_t block, Owner from, Owner to);
  // Gives up a reference. `owner` is not looked at for a block that is or was
  // shared.
  void Release(int32_t block, Owner owner);

  // Somebody holds the block, and its content is the key's from now on; nobody
  // writes it any more. No effect where the key is another block's, or already
  // this one's.
  void Publish(int32_t block, const BlockKey& key);
  // The block's content is not to be reused: forgets its key, if it has one. A
  // cached block becomes free.
  void Withdraw(int32_t block);
  // The blocks of the longest run of keys, from the first on, that are all
  // there, whatever their state. They stay until the next Allocate or Withdraw.
  std::vector<int32_t> FindPrefix(std::span<const BlockKey> keys) const;
  bool IsCached(int32_t block) const;
  // One more reference to a published block. A cached one becomes `owner`'s,
  // for one credit; so does a quarantined one, without a credit; one that is
  // held becomes shared.
  void Reuse(int32_t block, Owner owner);
  // Changes whenever FindPrefix or IsCached may answer differently.
  uint64_t version() const { return version_; }

  // A step or a copy, named by `what`, touches `blocks` until Unpin.
  uint64_t Pin(std::span<const int32_t> blocks, std::string what);
  void Unpin(uint64_t pin);

  // What one owner says it holds here.
  struct Holding {
    Owner owner;
    std::span<const int32_t> blocks;
    int32_t credits;
  };
  // INTERNAL names the first thing that does not add up: the states' sum, the
  // order of the cached blocks, a key that is not its block's, a block in two
  // tables or in none, an id out of range, the credits.
  absl::Status CheckIntegrity(std::span<const Holding> holdings) const;

 private:
  friend class BlockPoolPeer;  // breaks pools, in tests

  static constexpr int32_t kNone = -1;

  struct Block {
    int32_t references = 0;
    int32_t pins = 0;
    Owner owner = 0;        // 0 when nobody holds it, or it is or was shared
    int32_t older = kNone;  // the neighbours of a cached block
    int32_t newer = kNone;
    bool has_key = false;
    BlockKey key{};
  };
  struct PinRecord {
    std::vector<int32_t> blocks;
    std::string what;
  };
  enum class State : uint8_t { kFree, kOwned, kQuarantined, kCached };

  Block& At(int32_t block);
  const Block& At(int32_t block) const;
  static State StateOf(const Block& block);
  static const char* StateName(State state);
  // Nobody holds it and nothing touches it: to the free or the cached ones.
  void Retire(int32_t block);
  // Into and out of the order of the cached blocks.
  void Link(int32_t block);
  void Unlink(int32_t block);
  void ForgetKey(Block& block);
  absl::Status CheckStates() const;
  absl::Status CheckLists() const;
  absl::Status CheckCachedOrder(std::vector<bool>& is_cached) const;
  absl::Status CheckKeys() const;
  absl::Status CheckPins() const;
  absl::Status CheckHoldings(std::span<const Holding> holdings) const;

  std::vector<Block> blocks_;
  std::vector<int32_t> free_;  // the last one goes out first
  absl::flat_hash_map<BlockKey, int32_t> by_key_;
  int32_t oldest_ = kNone;  // of the cached blocks
  int32_t newest_ = kNone;
  int32_t num_cached_ = 0;
  int32_t num_owned_ = 0;
  int32_t num_quarantined_ = 0;
  int32_t credits_ = 0;
  uint64_t version_ = 0;
  uint64_t next_pin_ = 1;
  std::map<uint64_t, PinRecord> pins_;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_BLOCK_POOL_H_
