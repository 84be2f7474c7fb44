// The blocks of all stores, and what each sequence holds of them.
#ifndef OVERFILL_SCHEDULER_KV_LEDGER_H_
#define OVERFILL_SCHEDULER_KV_LEDGER_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "scheduler/block_pool.h"
#include "scheduler/kv_transport.h"
#include "scheduler/observer.h"
#include "scheduler/route.h"
#include "scheduler/sequence.h"

namespace overfill {

// The sizes of the stores. Store 0 is the prefill pool's, or the one that both
// pools share; store 1 is the decode pool's own.
struct KvStores {
  int32_t block_tokens = 0;
  int32_t prefill_blocks = 0;
  int32_t decode_blocks = 0;  // 0: the pools share one store

  bool is_shared() const { return decode_blocks == 0; }
  int StoreOf(PoolId pool) const {
    return is_shared() ? 0 : static_cast<int>(pool);
  }
  std::array<int32_t, 2> Total() const {
    return {prefill_blocks, decode_blocks};
  }
  // The most blocks of each store that a request can come to hold: there is no
  // preemption, so all of them are promised before it starts. The last token
  // of an answer never goes into a model, and has no KV.
  std::array<int64_t, 2> WorstCase(const Route& route, int64_t prompt_tokens,
                                   int64_t max_tokens) const;
};

// Not thread-safe.
class KvLedger {
 public:
  explicit KvLedger(const KvStores& stores);

  // Blocks of each store that can still be promised.
  std::array<int32_t, 2> Available() const;

  // Takes the credits of the worst case; CHECKs that they are available.
  void Reserve(Sequence& sequence, const std::array<int32_t, 2>& blocks);
  // Allocates until the pool's table covers the positions [0, num_tokens).
  void Cover(Sequence& sequence, PoolId pool, int32_t num_tokens);
  // A handoff in a shared store: every block's owner becomes `to`.
  void HandOver(Sequence& sequence, PoolId to);
  // Gives back blocks and credits; what is pinned is quarantined.
  void Release(Sequence& sequence, int store);
  void ReleaseAll(Sequence& sequence);

  uint64_t Pin(int store, std::span<const int32_t> blocks, std::string what);
  void Unpin(int store, uint64_t pin);

  std::vector<BlockCounts> Counts() const;
  // See Scheduler::CheckIntegrity; `sequences` are all live ones.
  absl::Status CheckIntegrity(std::span<const Sequence* const> sequences) const;

 private:
  const KvStores sizes_;
  std::array<BlockPool, 2> stores_;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_KV_LEDGER_H_
