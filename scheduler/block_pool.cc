#include "scheduler/block_pool.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace overfill {

BlockPool::BlockPool(int32_t num_blocks) {
  OVERFILL_CHECK_GE(num_blocks, 0);
  blocks_.resize(num_blocks);
  free_.reserve(num_blocks);
  for (int32_t block = num_blocks - 1; block >= 0; --block) {
    free_.push_back(block);
  }
}

BlockPool::Block& BlockPool::At(int32_t block) {
  OVERFILL_CHECK(block >= 0 && block < num_blocks()) << "block " << block;
  return blocks_[block];
}

const BlockPool::Block& BlockPool::At(int32_t block) const {
  OVERFILL_CHECK(block >= 0 && block < num_blocks()) << "block " << block;
  return blocks_[block];
}

BlockPool::State BlockPool::StateOf(const Block& block) {
  if (block.references > 0) return State::kOwned;
  if (block.pins > 0) return State::kQuarantined;
  return block.has_key ? State::kCached : State::kFree;
}

const char* BlockPool::StateName(State state) {
  switch (state) {
    case State::kFree:
      return "free";
    case State::kOwned:
      return "owned";
    case State::kQuarantined:
      return "quarantined";
    case State::kCached:
      return "cached";
  }
  return "in no state";
}

bool BlockPool::Reserve(int32_t count) {
  OVERFILL_CHECK_GE(count, 0);
  if (count > available()) return false;
  credits_ += count;
  return true;
}

void BlockPool::Unreserve(int32_t count) {
  OVERFILL_CHECK(count >= 0 && count <= credits_) << count << " credits";
  credits_ -= count;
}

int32_t BlockPool::Allocate(Owner owner) {
  OVERFILL_CHECK(owner != 0);
  OVERFILL_CHECK(credits_ > 0 && num_free() + num_cached_ > 0)
      << "an unpaid block";
  --credits_;
  int32_t block = oldest_;
  if (free_.empty()) {
    Unlink(block);
    ForgetKey(blocks_[block]);
  } else {
    block = free_.back();
    free_.pop_back();
  }
  blocks_[block].references = 1;
  blocks_[block].owner = owner;
  ++num_owned_;
  return block;
}

void BlockPool::Share(int32_t block) {
  Block& b = At(block);
  OVERFILL_CHECK(b.references > 0) << "block " << block << " is not held";
  ++b.references;
  b.owner = 0;
}

void BlockPool::Transfer(int32_t block, Owner from, Owner to) {
  Block& b = At(block);
  OVERFILL_CHECK(to != 0);
  OVERFILL_CHECK(b.references > 0) << "block " << block << " is not held";
  if (b.owner == 0) return;
  OVERFILL_CHECK(b.owner == from)
      << "block " << block << " is not its owner's to give";
  b.owner = to;
}

void BlockPool::Release(int32_t block, Owner owner) {
  Block& b = At(block);
  OVERFILL_CHECK(b.references > 0) << "block " << block << " is not held";
  OVERFILL_CHECK(b.owner == owner || b.owner == 0)
      << "block " << block << " is another's";
  if (--b.references > 0) return;
  b.owner = 0;
  --num_owned_;
  if (b.pins > 0) {
    ++num_quarantined_;
  } else {
    Retire(block);
  }
}

void BlockPool::Publish(int32_t block, const BlockKey& key) {
  Block& b = At(block);
  OVERFILL_CHECK(b.references > 0) << "block " << block << " is not held";
  OVERFILL_CHECK(!b.has_key || b.key == key)
      << "block " << block << " has another key";
  if (!by_key_.try_emplace(key, block).second) return;
  b.has_key = true;
  b.key = key;
  ++version_;
}

void BlockPool::Withdraw(int32_t block) {
  Block& b = At(block);
  if (!b.has_key) return;
  const bool is_cached = StateOf(b) == State::kCached;
  if (is_cached) Unlink(block);
  ForgetKey(b);
  if (is_cached) free_.push_back(block);
}

std::vector<int32_t> BlockPool::FindPrefix(
    std::span<const BlockKey> keys) const {
  std::vector<int32_t> found;
  for (const BlockKey& key : keys) {
    const auto it = by_key_.find(key);
    if (it == by_key_.end()) break;
    found.push_back(it->second);
  }
  return found;
}

bool BlockPool::IsCached(int32_t block) const {
  return StateOf(At(block)) == State::kCached;
}

void BlockPool::Reuse(int32_t block, Owner owner) {
  Block& b = At(block);
  OVERFILL_CHECK(owner != 0);
  OVERFILL_CHECK(b.has_key) << "block " << block << " is not published";
  OVERFILL_CHECK(b.owner != owner) << "block " << block << " is its own";
  if (b.references > 0) return Share(block);
  if (b.pins > 0) {
    --num_quarantined_;
  } else {
    OVERFILL_CHECK(credits_ > 0) << "an unpaid block";
    --credits_;
    Unlink(block);
  }
  b.references = 1;
  b.owner = owner;
  ++num_owned_;
}

void BlockPool::Retire(int32_t block) {
  if (blocks_[block].has_key) {
    Link(block);
  } else {
    free_.push_back(block);
  }
}

void BlockPool::Link(int32_t block) {
  Block& b = blocks_[block];
  b.older = newest_;
  b.newer = kNone;
  (newest_ == kNone ? oldest_ : blocks_[newest_].newer) = block;
  newest_ = block;
  ++num_cached_;
  ++version_;
}

void BlockPool::Unlink(int32_t block) {
  Block& b = blocks_[block];
  (b.older == kNone ? oldest_ : blocks_[b.older].newer) = b.newer;
  (b.newer == kNone ? newest_ : blocks_[b.newer].older) = b.older;
  b.older = kNone;
  b.newer = kNone;
  --num_cached_;
  ++version_;
}

void BlockPool::ForgetKey(Block& block) {
  by_key_.erase(block.key);
  block.has_key = false;
  ++version_;
}

uint64_t BlockPool::Pin(std::span<const int32_t> blocks, std::string what) {
  for (int32_t block : blocks) {
    Block& b = At(block);
    OVERFILL_CHECK(b.references > 0) << "block " << block << " is not held";
    ++b.pins;
  }
  const uint64_t pin = next_pin_++;
  pins_[pin] = {{blocks.begin(), blocks.end()}, std::move(what)};
  return pin;
}

void BlockPool::Unpin(uint64_t pin) {
  const auto it = pins_.find(pin);
  OVERFILL_CHECK(it != pins_.end()) << "pin " << pin;
  // Back to front, as tables are released: of blocks that several of the pinned
  // tables share, the last pin to go is then the one in front of all others'.
  const std::vector<int32_t>& blocks = it->second.blocks;
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    Block& b = At(*block);
    if (--b.pins > 0 || b.references > 0) continue;
    --num_quarantined_;
    Retire(*block);
  }
  pins_.erase(it);
}

absl::Status BlockPool::CheckIntegrity(
    std::span<const Holding> holdings) const {
  RETURN_IF_ERROR(CheckStates());
  RETURN_IF_ERROR(CheckLists());
  RETURN_IF_ERROR(CheckKeys());
  RETURN_IF_ERROR(CheckPins());
  return CheckHoldings(holdings);
}

absl::Status BlockPool::CheckStates() const {
  int32_t owned = 0;
  int32_t quarantined = 0;
  for (int32_t block = 0; block < num_blocks(); ++block) {
    const Block& b = blocks_[block];
    owned += StateOf(b) == State::kOwned;
    quarantined += StateOf(b) == State::kQuarantined;
    if (b.references < 0 || b.pins < 0 || (b.owner != 0 && b.references != 1)) {
      return absl::InternalError(absl::StrCat(
          "block ", block, " with ", b.references, " references and ", b.pins,
          " pins has the owner ", b.owner));
    }
  }
  const int32_t sum = num_free() + num_cached_ + num_owned_ + num_quarantined_;
  if (owned != num_owned_ || quarantined != num_quarantined_ ||
      sum != num_blocks()) {
    return absl::InternalError(absl::StrCat(
        num_free(), " free + ", num_cached_, " cached + ", num_owned_,
        " owned + ", num_quarantined_, " quarantined, of ", num_blocks(),
        "; counted ", owned, " owned and ", quarantined, " quarantined"));
  }
  if (credits_ < 0 || credits_ > num_free() + num_cached_) {
    return absl::InternalError(absl::StrCat(credits_, " credits on ",
                                            num_free(), " free and ",
                                            num_cached_, " cached blocks"));
  }
  return absl::OkStatus();
}

absl::Status BlockPool::CheckLists() const {
  std::vector<bool> is_free(blocks_.size(), false);
  for (int32_t block : free_) {
    if (block < 0 || block >= num_blocks() || is_free[block]) {
      return absl::InternalError(
          absl::StrCat("block ", block, " is twice in the free list"));
    }
    is_free[block] = true;
  }
  std::vector<bool> is_cached(blocks_.size(), false);
  RETURN_IF_ERROR(CheckCachedOrder(is_cached));
  for (int32_t block = 0; block < num_blocks(); ++block) {
    const State state = StateOf(blocks_[block]);
    if (is_free[block] != (state == State::kFree)) {
      return absl::InternalError(
          absl::StrCat("block ", block, " is ", StateName(state), " and is ",
                       is_free[block] ? "" : "not ", "in the free list"));
    }
    if (is_cached[block] != (state == State::kCached)) {
      return absl::InternalError(absl::StrCat(
          "block ", block, " is ", StateName(state), " and is ",
          is_cached[block] ? "" : "not ", "in the order of cached blocks"));
    }
  }
  return absl::OkStatus();
}

absl::Status BlockPool::CheckCachedOrder(std::vector<bool>& is_cached) const {
  int32_t before = kNone;
  int32_t count = 0;
  for (int32_t block = oldest_; block != kNone; block = blocks_[block].newer) {
    if (block < 0 || block >= num_blocks() || is_cached[block] ||
        blocks_[block].older != before) {
      return absl::InternalError(absl::StrCat(
          "the order of cached blocks is broken at block ", block));
    }
    is_cached[block] = true;
    before = block;
    ++count;
  }
  if (before == newest_ && count == num_cached_) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("the order of cached blocks has ", count, " up to block ",
                   before, ", not ", num_cached_, " up to block ", newest_));
}

absl::Status BlockPool::CheckKeys() const {
  for (int32_t block = 0; block < num_blocks(); ++block) {
    if (!blocks_[block].has_key) continue;
    const auto it = by_key_.find(blocks_[block].key);
    if (it == by_key_.end()) {
      return absl::InternalError(
          absl::StrCat("the key of block ", block, " leads nowhere"));
    }
    if (it->second != block) {
      return absl::InternalError(absl::StrCat("the key of block ", block,
                                              " leads to block ", it->second));
    }
  }
  for (const auto& [key, block] : by_key_) {
    if (block >= 0 && block < num_blocks() && blocks_[block].has_key &&
        blocks_[block].key == key) {
      continue;
    }
    return absl::InternalError(
        absl::StrCat("a key leads to block ", block, ", which has it not"));
  }
  return absl::OkStatus();
}

absl::Status BlockPool::CheckPins() const {
  std::vector<int32_t> pins(blocks_.size(), 0);
  std::string names;
  for (const auto& [pin, record] : pins_) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", record.what);
    for (int32_t block : record.blocks) ++pins[block];
  }
  for (int32_t block = 0; block < num_blocks(); ++block) {
    if (pins[block] == blocks_[block].pins) continue;
    return absl::InternalError(
        absl::StrCat("block ", block, " counts ", blocks_[block].pins,
                     " pins, not ", pins[block], "; pinned by: ", names));
  }
  return absl::OkStatus();
}

absl::Status BlockPool::CheckHoldings(std::span<const Holding> holdings) const {
  std::vector<int32_t> references(blocks_.size(), 0);
  std::vector<size_t> last_table(blocks_.size(), 0);  // counted from 1
  int64_t credits = 0;
  for (size_t table = 1; table <= holdings.size(); ++table) {
    const Holding& holding = holdings[table - 1];
    credits += holding.credits;
    for (int32_t block : holding.blocks) {
      if (block < 0 || block >= num_blocks()) {
        return absl::InternalError(
            absl::StrCat("a table holds block ", block, " of ", num_blocks()));
      }
      if (std::exchange(last_table[block], table) == table) {
        return absl::InternalError(absl::StrCat(
            "block ", block, " is twice in a table of ", holding.owner));
      }
      ++references[block];
      const Owner owner = blocks_[block].owner;
      if (owner != 0 && owner != holding.owner) {
        return absl::InternalError(absl::StrCat("block ", block,
                                                " has two owners: ", owner,
                                                " and ", holding.owner));
      }
    }
  }
  for (int32_t block = 0; block < num_blocks(); ++block) {
    if (references[block] == blocks_[block].references) continue;
    return absl::InternalError(
        absl::StrCat("block ", block, " counts ", blocks_[block].references,
                     " references and is in ", references[block], " tables"));
  }
  if (credits != credits_) {
    return absl::InternalError(absl::StrCat(
        credits_, " credits are out, their holders have ", credits));
  }
  return absl::OkStatus();
}

}  // namespace overfill
