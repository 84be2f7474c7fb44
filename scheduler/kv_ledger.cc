#include "scheduler/kv_ledger.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/checked_math.h"

namespace overfill {
namespace {

// What a request of a store with a swap space reserves for its answer: enough
// that a prompt that has just started is not preempted at once.
constexpr int64_t kGrowthBlocks = 2;

// A sequence in a pool. In a shared store a handoff is thus a change of owner.
BlockPool::Owner OwnerOf(const Sequence& sequence, PoolId pool) {
  return sequence.uid * 2 + static_cast<uint64_t>(pool);
}

}  // namespace

std::array<int64_t, 2> KvStores::BlocksFor(const Route& route,
                                           int64_t prompt_tokens,
                                           int64_t answer_tokens,
                                           int64_t num_samples) const {
  std::array<int64_t, 2> blocks{};
  blocks[StoreOf(PoolOf(route, Span::kPrompt))] =
      CeilDiv(prompt_tokens, block_tokens);
  if (answer_tokens > 1) {
    const int64_t shared = prompt_tokens / block_tokens;
    const int64_t whole =
        CeilDiv(prompt_tokens + answer_tokens - 1, block_tokens);
    blocks[StoreOf(PoolOf(route, Span::kRest))] =
        shared + num_samples * (whole - shared);
  }
  return blocks;
}

std::array<int64_t, 2> KvStores::WorstCase(const Route& route,
                                           int64_t prompt_tokens,
                                           int64_t max_tokens,
                                           int64_t num_samples) const {
  const auto start =
      BlocksFor(route, prompt_tokens, AnswerTokensAtStart(route, max_tokens),
                num_samples);
  const auto end = BlocksFor(route, prompt_tokens, max_tokens, 1);
  return {std::max(start[0], end[0]), std::max(start[1], end[1])};
}

int64_t KvStores::AnswerTokensAtStart(const Route& route,
                                      int64_t max_tokens) const {
  if (!CanSwap(StoreOf(PoolOf(route, Span::kRest)))) return max_tokens;
  return std::min(max_tokens, kGrowthBlocks * block_tokens);
}

KvLedger::KvLedger(const KvStores& stores)
    : sizes_(stores),
      pools_{BlockPool(stores.prefill_blocks), BlockPool(stores.decode_blocks),
             BlockPool(stores.swap_blocks[0]),
             BlockPool(stores.swap_blocks[1])} {}

void KvLedger::Reserve(Sequence& sequence, int store, int32_t blocks) {
  OVERFILL_CHECK(pools_[store].Reserve(blocks))
      << blocks << " blocks of store " << store;
  sequence.holdings[store].credits += blocks;
}

void KvLedger::Unreserve(Sequence& sequence, int store) {
  pools_[store].Unreserve(sequence.holdings[store].credits);
  sequence.holdings[store].credits = 0;
}

KvLedger::Prefix KvLedger::FindPrefix(int store,
                                      std::span<const BlockKey> keys) const {
  Prefix prefix{.blocks = pools_[store].FindPrefix(keys)};
  for (int32_t block : prefix.blocks) {
    if (pools_[store].IsCached(block)) break;
    ++prefix.num_held;
  }
  return prefix;
}

void KvLedger::AdoptPrefix(Sequence& sequence, PoolId pool,
                           const Prefix& prefix) {
  const int store = sizes_.StoreOf(pool);
  StoreHolding& holding = sequence.holdings[store];
  OVERFILL_CHECK(holding.table.empty());
  holding.owner = OwnerOf(sequence, pool);
  for (int32_t block : prefix.blocks) {
    if (pools_[store].IsCached(block)) --holding.credits;
    pools_[store].Reuse(block, holding.owner);
  }
  OVERFILL_CHECK_GE(holding.credits, 0);
  holding.table = prefix.blocks;
}

void KvLedger::Publish(Sequence& sequence, PoolId pool,
                       std::span<const BlockKey> keys) {
  const int store = sizes_.StoreOf(pool);
  const StoreHolding& holding = sequence.holdings[store];
  OVERFILL_CHECK_LE(keys.size(), holding.table.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    pools_[store].Publish(holding.table[i], keys[i]);
  }
}

void KvLedger::Withdraw(const Sequence& sequence) {
  for (int store = 0; store < kNumStores; ++store) {
    for (int32_t block : sequence.holdings[store].table) {
      pools_[store].Withdraw(block);
    }
  }
}

void KvLedger::Cover(Sequence& sequence, PoolId pool, int32_t num_tokens) {
  CoverStore(sequence, sizes_.StoreOf(pool), OwnerOf(sequence, pool),
             num_tokens);
}

void KvLedger::CoverStore(Sequence& sequence, int store, BlockPool::Owner owner,
                          int32_t num_tokens) {
  StoreHolding& holding = sequence.holdings[store];
  if (holding.owner == 0) holding.owner = owner;
  OVERFILL_CHECK(holding.owner == owner) << "the blocks are another pool's";
  const auto needed =
      static_cast<size_t>(CeilDiv(int64_t{num_tokens}, sizes_.block_tokens));
  while (holding.table.size() < needed) {
    OVERFILL_CHECK(holding.credits > 0) << "growth without a credit";
    --holding.credits;
    holding.table.push_back(pools_[store].Allocate(owner));
  }
}

bool KvLedger::Grow(Sequence& sequence, PoolId pool, int32_t num_tokens) {
  const int store = sizes_.StoreOf(pool);
  const StoreHolding& holding = sequence.holdings[store];
  const auto lacking = static_cast<int32_t>(
      CeilDiv(int64_t{num_tokens}, sizes_.block_tokens) -
      static_cast<int64_t>(holding.table.size()) - holding.credits);
  if (lacking > Available(store)) return false;
  if (lacking > 0) Reserve(sequence, store, lacking);
  Cover(sequence, pool, num_tokens);
  return true;
}

bool KvLedger::CoverSwap(Sequence& sequence, int swap_store,
                         int32_t num_tokens) {
  const auto blocks =
      static_cast<int32_t>(CeilDiv(int64_t{num_tokens}, sizes_.block_tokens));
  if (blocks > Available(swap_store)) return false;
  Reserve(sequence, swap_store, blocks);
  CoverStore(sequence, swap_store, sequence.uid, num_tokens);
  return true;
}

void KvLedger::HandOver(Sequence& sequence, PoolId to) {
  OVERFILL_CHECK(sizes_.is_shared());
  StoreHolding& holding = sequence.holdings[0];
  const BlockPool::Owner owner = OwnerOf(sequence, to);
  for (int32_t block : holding.table) {
    pools_[0].Transfer(block, holding.owner, owner);
  }
  holding.owner = owner;
}

void KvLedger::Exchange(Sequence& from, Sequence& to) {
  for (int store = 0; store < kNumStores; ++store) {
    StoreHolding& a = from.holdings[store];
    StoreHolding& b = to.holdings[store];
    OVERFILL_CHECK(b.table.empty()) << "both hold blocks";
    std::swap(a, b);
    if (b.owner == 0) continue;
    const BlockPool::Owner owner = to.uid * 2 + b.owner % 2;
    for (int32_t block : b.table) {
      pools_[store].Transfer(block, b.owner, owner);
    }
    b.owner = owner;
  }
}

std::optional<BlockCopy> KvLedger::Fork(const Sequence& from, Sequence& to,
                                        PoolId pool, int32_t num_tokens) {
  const int store = sizes_.StoreOf(pool);
  const StoreHolding& source = from.holdings[store];
  StoreHolding& holding = to.holdings[store];
  OVERFILL_CHECK(holding.table.empty());
  holding.owner = OwnerOf(to, pool);
  const int32_t num_shared = num_tokens / sizes_.block_tokens;
  for (int32_t i = 0; i < num_shared; ++i) {
    pools_[store].Share(source.table[i]);
    holding.table.push_back(source.table[i]);
  }
  const int32_t rest = num_tokens % sizes_.block_tokens;
  if (rest == 0) return std::nullopt;
  Cover(to, pool, num_tokens);
  holding.lent = source.table[num_shared];
  pools_[store].Share(*holding.lent);
  return BlockCopy{.source = *holding.lent,
                   .destination = holding.table[num_shared],
                   .num_tokens = rest};
}

void KvLedger::ReturnLent(Sequence& sequence, int store) {
  StoreHolding& holding = sequence.holdings[store];
  if (holding.lent) pools_[store].Release(*holding.lent, holding.owner);
  holding.lent.reset();
}

void KvLedger::Release(Sequence& sequence, int store) {
  StoreHolding& holding = sequence.holdings[store];
  ReturnLent(sequence, store);
  // From the back: a cached block is of no use without those before it, so the
  // last ones are to be forgotten first.
  for (size_t i = holding.table.size(); i-- > 0;) {
    pools_[store].Release(holding.table[i], holding.owner);
  }
  pools_[store].Unreserve(holding.credits);
  holding = {};
}

void KvLedger::ReleaseAll(Sequence& sequence) {
  for (int store = 0; store < kNumStores; ++store) Release(sequence, store);
}

uint64_t KvLedger::Pin(int store, std::span<const int32_t> blocks,
                       std::string what) {
  return pools_[store].Pin(blocks, std::move(what));
}

void KvLedger::Unpin(int store, uint64_t pin) { pools_[store].Unpin(pin); }

std::vector<BlockCounts> KvLedger::Counts() const {
  static constexpr const char* kShared[] = {"shared", "", "swap", ""};
  static constexpr const char* kOwn[] = {"prefill", "decode", "prefill_swap",
                                         "decode_swap"};
  std::vector<BlockCounts> counts;
  for (int store = 0; store < kNumStores; ++store) {
    const BlockPool& pool = pools_[store];
    if (pool.num_blocks() == 0) continue;
    counts.push_back({
        .store = (sizes_.is_shared() ? kShared : kOwn)[store],
        .free = pool.num_free(),
        .cached = pool.num_cached(),
        .owned = pool.num_owned(),
        .quarantined = pool.num_quarantined(),
    });
  }
  return counts;
}

absl::Status KvLedger::CheckIntegrity(
    std::span<const Sequence* const> sequences) const {
  for (int store = 0; store < kNumStores; ++store) {
    std::vector<BlockPool::Holding> holdings;
    for (const Sequence* sequence : sequences) {
      const StoreHolding& held = sequence->holdings[store];
      holdings.push_back({held.owner, held.table, held.credits});
      if (held.lent) holdings.push_back({held.owner, {&*held.lent, 1}, 0});
    }
    const absl::Status status = pools_[store].CheckIntegrity(holdings);
    if (!status.ok()) {
      return absl::InternalError(
          absl::StrCat("store ", store, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace overfill
