#include "scheduler/kv_ledger.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/checked_math.h"

namespace overfill {
namespace {

// A sequence in a pool. In a shared store a handoff is thus a change of owner.
BlockPool::Owner OwnerOf(const Sequence& sequence, PoolId pool) {
  return sequence.uid * 2 + static_cast<uint64_t>(pool);
}

}  // namespace

std::array<int64_t, 2> KvStores::WorstCase(const Route& route,
                                           int64_t prompt_tokens,
                                           int64_t max_tokens) const {
  const int prompt_store = StoreOf(PoolOf(route, Span::kPrompt));
  const int rest_store = StoreOf(PoolOf(route, Span::kRest));
  std::array<int64_t, 2> blocks{};
  blocks[prompt_store] = CeilDiv(prompt_tokens, block_tokens);
  if (max_tokens > 1) {
    blocks[rest_store] = CeilDiv(prompt_tokens + max_tokens - 1, block_tokens);
  }
  return blocks;
}

KvLedger::KvLedger(const KvStores& stores)
    : sizes_(stores),
      stores_{BlockPool(stores.prefill_blocks),
              BlockPool(stores.decode_blocks)} {}

std::array<int32_t, 2> KvLedger::Available() const {
  return {stores_[0].available(), stores_[1].available()};
}

void KvLedger::Reserve(Sequence& sequence,
                       const std::array<int32_t, 2>& blocks) {
  for (int store = 0; store < 2; ++store) {
    OVERFILL_CHECK(stores_[store].Reserve(blocks[store]))
        << blocks[store] << " blocks of store " << store;
    sequence.holdings[store].credits += blocks[store];
  }
}

void KvLedger::Cover(Sequence& sequence, PoolId pool, int32_t num_tokens) {
  const int store = sizes_.StoreOf(pool);
  StoreHolding& holding = sequence.holdings[store];
  if (holding.owner == 0) holding.owner = OwnerOf(sequence, pool);
  OVERFILL_CHECK(holding.owner == OwnerOf(sequence, pool))
      << "the blocks are not with the " << PoolName(pool) << " pool";
  const auto needed =
      static_cast<size_t>(CeilDiv(int64_t{num_tokens}, sizes_.block_tokens));
  while (holding.table.size() < needed) {
    OVERFILL_CHECK(holding.credits > 0) << "growth without a credit";
    --holding.credits;
    holding.table.push_back(stores_[store].Allocate(holding.owner));
  }
}

void KvLedger::HandOver(Sequence& sequence, PoolId to) {
  OVERFILL_CHECK(sizes_.is_shared());
  StoreHolding& holding = sequence.holdings[0];
  const BlockPool::Owner owner = OwnerOf(sequence, to);
  for (int32_t block : holding.table) {
    stores_[0].Transfer(block, holding.owner, owner);
  }
  holding.owner = owner;
}

void KvLedger::Release(Sequence& sequence, int store) {
  StoreHolding& holding = sequence.holdings[store];
  for (int32_t block : holding.table) {
    stores_[store].Release(block, holding.owner);
  }
  stores_[store].Unreserve(holding.credits);
  holding = {};
}

void KvLedger::ReleaseAll(Sequence& sequence) {
  Release(sequence, 0);
  Release(sequence, 1);
}

uint64_t KvLedger::Pin(int store, std::span<const int32_t> blocks,
                       std::string what) {
  return stores_[store].Pin(blocks, std::move(what));
}

void KvLedger::Unpin(int store, uint64_t pin) { stores_[store].Unpin(pin); }

std::vector<BlockCounts> KvLedger::Counts() const {
  std::vector<BlockCounts> counts;
  for (int store = 0; store < (sizes_.is_shared() ? 1 : 2); ++store) {
    const BlockPool& pool = stores_[store];
    counts.push_back({
        .store = sizes_.is_shared() ? "shared"
                                    : PoolName(static_cast<PoolId>(store)),
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
  for (int store = 0; store < 2; ++store) {
    std::vector<BlockPool::Holding> holdings;
    for (const Sequence* sequence : sequences) {
      const StoreHolding& held = sequence->holdings[store];
      holdings.push_back({held.owner, held.table, held.credits});
    }
    const absl::Status status = stores_[store].CheckIntegrity(holdings);
    if (!status.ok()) {
      return absl::InternalError(
          absl::StrCat("store ", store, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace overfill
