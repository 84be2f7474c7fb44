// The blocks of all stores, and what each sequence holds of them.
#ifndef OVERFILL_SCHEDULER_KV_LEDGER_H_
#define OVERFILL_SCHEDULER_KV_LEDGER_H_

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/step.h"
#include "scheduler/block_pool.h"
#include "scheduler/observer.h"
#include "scheduler/route.h"
#include "scheduler/sequence.h"
#include "scheduler/stores.h"

namespace overfill {

// The sizes of the stores; see stores.h for their numbers.
struct KvStores {
  int32_t block_tokens = 0;
  int32_t prefill_blocks = 0;
  int32_t decode_blocks = 0;             // 0: the pools share one store
  std::array<int32_t, 2> swap_blocks{};  // of the swap space of each

  bool is_shared() const { return decode_blocks == 0; }
  int StoreOf(PoolId pool) const {
    return is_shared() ? 0 : static_cast<int>(pool);
  }
  // Of the stores that models read.
  std::array<int32_t, 2> Total() const {
    return {prefill_blocks, decode_blocks};
  }
  // Whether sequences of the store can be preempted, so that more may run than
  // would fit if all grew to their limits.
  bool CanSwap(int store) const { return swap_blocks[store] > 0; }

  // Blocks of each store that `num_samples` answers to one prompt hold when
  // each has `answer_tokens` tokens: the prompt's full blocks once, the rest
  // for each. An answer's last token never goes into a model, and has no KV.
  std::array<int64_t, 2> BlocksFor(const Route& route, int64_t prompt_tokens,
                                   int64_t answer_tokens,
                                   int64_t num_samples) const;
  // The most of them that a request needs at once: to start, with all of its
  // samples, and to finish, with at least one of them at its limit.
  std::array<int64_t, 2> WorstCase(const Route& route, int64_t prompt_tokens,
                                   int64_t max_tokens,
                                   int64_t num_samples = 1) const;
  // What a request holds before it starts: with a swap space room for its
  // prompt and a little growth, without one for all that it may come to.
  int64_t AnswerTokensAtStart(const Route& route, int64_t max_tokens) const;
};

// Not thread-safe.
class KvLedger {
 public:
  explicit KvLedger(const KvStores& stores);

  // Blocks of a store that can still be promised.
  int32_t Available(int store) const { return pools_[store].available(); }
  // Blocks that come free without anybody's doing: those that a step or a
  // transfer still touches.
  int32_t Quarantined(int store) const {
    return pools_[store].num_quarantined();
  }

  // Takes credits; CHECKs that they are available.
  void Reserve(Sequence& sequence, int store, int32_t blocks);
  // Gives back the credits that are left.
  void Unreserve(Sequence& sequence, int store);

  // The longest prefix of `keys` that is there.
  using Prefix = CachedPrefix;
  Prefix FindPrefix(int store, std::span<const BlockKey> keys) const;
  uint64_t prefix_version(int store) const { return pools_[store].version(); }
  // Puts the prefix into the empty table of the pool's store.
  void AdoptPrefix(Sequence& sequence, PoolId pool, const Prefix& prefix);
  // The prompt's full blocks can be found from now on.
  void Publish(Sequence& sequence, PoolId pool, std::span<const BlockKey> keys);
  // What the sequence holds is not to be found any more: it may be broken.
  void Withdraw(const Sequence& sequence);

  // Allocates, against credits, until the pool's table covers the positions
  // [0, num_tokens).
  void Cover(Sequence& sequence, PoolId pool, int32_t num_tokens);
  // The same, with blocks that are available where the credits do not do;
  // false, and no change, where those do not do either.
  [[nodiscard]] bool Grow(Sequence& sequence, PoolId pool, int32_t num_tokens);
  // The same in a swap space, all or nothing.
  [[nodiscard]] bool CoverSwap(Sequence& sequence, int swap_store,
                               int32_t num_tokens);

  // A handoff in a shared store: every unshared block's owner becomes `to`.
  void HandOver(Sequence& sequence, PoolId to);
  // All that `from` holds becomes `to`'s, and what that holds `from`'s.
  void Exchange(Sequence& from, Sequence& to);
  // `to` shares the full blocks of the first `num_tokens` positions, and gets
  // a block of its own, against a credit, for the rest of them: the copy that
  // is to be made, if any. Until ReturnLent it shares that copy's source, too.
  std::optional<BlockCopy> Fork(const Sequence& from, Sequence& to, PoolId pool,
                                int32_t num_tokens);
  void ReturnLent(Sequence& sequence, int store);

  // Gives back blocks and credits; what is pinned is quarantined.
  void Release(Sequence& sequence, int store);
  void ReleaseAll(Sequence& sequence);

  uint64_t Pin(int store, std::span<const int32_t> blocks, std::string what);
  void Unpin(int store, uint64_t pin);

  std::vector<BlockCounts> Counts() const;
  // See Scheduler::CheckIntegrity; `sequences` are all live ones.
  absl::Status CheckIntegrity(std::span<const Sequence* const> sequences) const;

 private:
  void CoverStore(Sequence& sequence, int store, BlockPool::Owner owner,
                  int32_t num_tokens);

  const KvStores sizes_;
  std::array<BlockPool, kNumStores> pools_;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_KV_LEDGER_H_
