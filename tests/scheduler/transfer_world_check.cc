// What is looked at in each state of a TransferWorld.
#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "tests/scheduler/transfer_world.h"

namespace overfill {

std::string TransferWorld::Check() const {
  if (!violation_.empty()) return violation_;
  for (int store = 0; store < kNumStores; ++store) {
    std::vector<BlockPool::Holding> holdings;
    for (int request = 0; request < kNumRequests; ++request) {
      const Holding& holding = sequences_[request].holdings[store];
      holdings.push_back(
          {static_cast<uint64_t>(request) + 1, holding.table, holding.credits});
    }
    const absl::Status status = pools_[store].CheckIntegrity(holdings);
    if (!status.ok()) {
      return absl::StrCat("store ", store, ": ", status.message());
    }
  }
  if (const absl::Status status = table_.CheckIntegrity(); !status.ok()) {
    return std::string(status.message());
  }
  if (std::string wrong = CheckWrites(); !wrong.empty()) return wrong;
  return CheckContents();
}

// What can still be written, or read, is nobody else's and cannot become so.
std::string TransferWorld::CheckWrites() const {
  for (const Wire& wire : wires_) {
    if (wire.phase == Wire::Phase::kOver) continue;
    const KvTransfer& transfer = wire.transfer;
    const int request = RequestOf(transfer.uid);
    // Its own request may hold the destination as long as it waits for it.
    const bool is_current =
        HasTransfer(request) && sequences_[request].epoch == transfer.epoch;
    for (int32_t block : transfer.destination) {
      std::string wrong =
          CheckTouched(transfer.to_store, block, request, is_current, false);
      if (!wrong.empty()) return absl::StrCat("a transfer writes ", wrong);
    }
    for (int32_t block : transfer.source) {
      std::string wrong =
          CheckTouched(transfer.from_store, block, request, true, true);
      if (!wrong.empty()) return absl::StrCat("a transfer reads ", wrong);
    }
  }
  for (int pool = 0; pool < 2; ++pool) {
    for (int request = 0; request < kNumRequests; ++request) {
      const std::vector<int32_t>& blocks = steps_[pool].blocks[request];
      const int32_t first_written =
          steps_[pool].begin[request] / options_.block_tokens;
      for (int32_t i = 0; i < static_cast<int32_t>(blocks.size()); ++i) {
        std::string wrong = CheckTouched(
            StoreOf(pool), blocks[i], request,
            sequences_[request].state != State::kEnded, i < first_written);
        if (!wrong.empty()) return absl::StrCat("a step touches ", wrong);
      }
    }
  }
  return "";
}

std::string TransferWorld::CheckTouched(int store, int32_t block, int writer,
                                        bool may_be_held, bool is_read) const {
  const std::string name = absl::StrCat("block ", block, " of store ", store);
  const std::vector<int32_t> free = InOrder(pools_[store]);
  if (std::find(free.begin(), free.end(), block) != free.end()) {
    return absl::StrCat(name, ", which can be given out");
  }
  if (!is_read && store == kPrefillStore && KeyOf(block) >= 0) {
    return absl::StrCat(name, ", which can be found");
  }
  for (int request = 0; request < kNumRequests; ++request) {
    const std::vector<int32_t>& table =
        sequences_[request].holdings[store].table;
    if (std::find(table.begin(), table.end(), block) == table.end()) continue;
    if (request != writer && is_read && is_content_shared()) continue;
    if (request != writer) return absl::StrCat(name, " of another request");
    if (!may_be_held) return absl::StrCat(name, ", which is held anew");
  }
  return "";
}

// Of a copy of the pool, all is taken.
std::vector<int32_t> TransferWorld::InOrder(BlockPool pool) {
  pool.Unreserve(pool.credits());
  const int32_t count = pool.available();
  OVERFILL_CHECK(pool.Reserve(count));
  std::vector<int32_t> blocks;
  for (int32_t i = 0; i < count; ++i) blocks.push_back(pool.Allocate(99));
  return blocks;
}

bool TransferWorld::IsGoal() const {
  if (!wires_.empty() || steps_[0].mask != 0 || steps_[1].mask != 0) {
    return false;
  }
  for (const Sequence& sequence : sequences_) {
    if (sequence.state != State::kEnded) return false;
    if (!options_.has_faults && !sequence.is_complete) return false;
  }
  return std::all_of(pools_.begin(), pools_.end(), [](const BlockPool& pool) {
    return pool.available() == pool.num_blocks();
  });
}

bool TransferWorld::CanBeReliedOn(const Action& action) const {
  if (!options_.has_faults) return true;
  return action.kind != Kind::kCancel && action.kind != Kind::kFinishBad &&
         action.kind != Kind::kDeliver && action.kind != Kind::kDeliverKeep;
}

std::string TransferWorld::Encode() const {
  // What went wrong on the way here is not known of the state otherwise.
  if (!violation_.empty()) return violation_;
  if (options_.is_fork) return EncodeAs({0, 1});
  // The requests are alike, so their names do not matter either.
  return std::min(EncodeAs({0, 1}), EncodeAs({1, 0}));
}

std::string TransferWorld::EncodeAs(
    const std::array<int, kNumRequests>& order) const {
  std::string code;
  // Blocks by their first appearance.
  std::array<std::vector<int8_t>, kNumStores> names;
  std::array<int8_t, kNumStores> next_name{};
  for (int store = 0; store < kNumStores; ++store) {
    names[store].assign(pools_[store].num_blocks(), -1);
  }
  const auto put = [&](int value) { code.push_back(static_cast<char>(value)); };
  const auto put_blocks = [&](int store, std::span<const int32_t> blocks) {
    put(static_cast<int>(blocks.size()));
    for (int32_t block : blocks) {
      int8_t& name = names[store][block];
      if (name < 0) name = next_name[store]++;
      put(name);
    }
  };
  for (int request : order) {
    const Sequence& sequence = sequences_[request];
    put(static_cast<int>(sequence.state));
    put(sequence.computed);
    put(sequence.retries_left);
    put(sequence.is_complete ? 1 : 0);
    for (int store = 0; store < kNumStores; ++store) {
      put_blocks(store, sequence.holdings[store].table);
      put(sequence.holdings[store].credits);
    }
    for (int pool = 0; pool < 2; ++pool) {
      const Step& step = steps_[pool];
      put(step.mask >> request & 1);
      put(step.pin.has_value() ? 1 : 0);
      put_blocks(StoreOf(pool), step.blocks[request]);
    }
    for (const Wire& wire : wires_) {
      const KvTransfer& transfer = wire.transfer;
      if (RequestOf(transfer.uid) != request) continue;
      put(1);
      put(transfer.epoch == sequence.epoch ? 1 : 0);
      put(static_cast<int>(wire.phase) * 64 + (wire.is_good ? 32 : 0) +
          (wire.is_live ? 16 : 0) + (wire.is_fencing ? 8 : 0) +
          (wire.source_pin ? 4 : 0) + (wire.destination_pin ? 2 : 0));
      put(transfer.coverage.end);
      put(wire.num_commits);
      if (!wire.is_live) continue;
      put(transfer.from_store * kNumStores + transfer.to_store);
      put_blocks(transfer.from_store, transfer.source);
      put_blocks(transfer.to_store, transfer.destination);
      put(wire.is_fencing ? 0 : RankOfLease(wire));
    }
    put(0);
  }
  if (is_content_shared()) EncodeContents(order, names, next_name, code);
  return code;
}

void TransferWorld::EncodeContents(
    const std::array<int, kNumRequests>& order,
    std::array<std::vector<int8_t>, kNumStores>& names,
    std::array<int8_t, kNumStores>& next_name, std::string& code) const {
  const auto put = [&](int value) { code.push_back(static_cast<char>(value)); };
  for (int32_t block : InOrder(pools_[kPrefillStore])) {
    if (KeyOf(block) < 0) continue;  // free
    int8_t& name = names[kPrefillStore][block];
    if (name < 0) name = next_name[kPrefillStore]++;
    put(name);
  }
  put(-1);
  // What is free has no name, and no content that matters.
  for (int store = 0; store < kNumStores; ++store) {
    std::string contents(next_name[store] * (1 + 2 * options_.block_tokens), 0);
    for (int32_t block = 0; block < pools_[store].num_blocks(); ++block) {
      if (names[store][block] < 0) continue;
      char* to =
          &contents[names[store][block] * (1 + 2 * options_.block_tokens)];
      *to++ = static_cast<char>(store == kPrefillStore ? KeyOf(block) : -1);
      for (int32_t i = 0; i < options_.block_tokens; ++i) {
        const Content& slot =
            contents_[store][block * options_.block_tokens + i];
        // The order of two is its own inverse.
        *to++ =
            static_cast<char>(slot.whose < 0 ? slot.whose : order[slot.whose]);
        *to++ = static_cast<char>(slot.position);
      }
    }
    code += contents;
  }
}

int TransferWorld::RankOfLease(const Wire& wire) const {
  int rank = 0;
  for (const Wire& other : wires_) {
    const bool is_sending = other.is_live && !other.is_fencing;
    rank += is_sending && other.lease_end < wire.lease_end ? 1 : 0;
  }
  return rank;
}

std::string TransferWorld::Describe(const Action& action) {
  static constexpr const char* kNames[] = {
      "start",   "launch", "finish step", "finish bad", "preempt",
      "swap in", "retry",  "exhaust",     "cancel",     "expire",
      "write",   "arrive", "arrive bad",  "deliver",    "deliver and keep",
      "lose",    "fenced"};
  std::string text =
      absl::StrCat(kNames[static_cast<int>(action.kind)], " ", action.which);
  if (action.mask != 0) absl::StrAppend(&text, " of requests ", action.mask);
  return text;
}

}  // namespace overfill
