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
  OVERFILL_CHECK(credits_ > 0 && !free_.empty()) << "an unpaid block";
  --credits_;
  const int32_t block = free_.back();
  free_.pop_back();
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
  OVERFILL_CHECK(b.references == 1 && b.owner == from)
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
    free_.push_back(block);
  }
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
  for (int32_t block : it->second.blocks) {
    Block& b = At(block);
    if (--b.pins > 0 || b.references > 0) continue;
    --num_quarantined_;
    free_.push_back(block);
  }
  pins_.erase(it);
}

absl::Status BlockPool::CheckIntegrity(
    std::span<const Holding> holdings) const {
  RETURN_IF_ERROR(CheckStates());
  RETURN_IF_ERROR(CheckPins());
  return CheckHoldings(holdings);
}

absl::Status BlockPool::CheckStates() const {
  std::vector<bool> is_free(blocks_.size(), false);
  for (int32_t block : free_) {
    if (block < 0 || block >= num_blocks() || is_free[block]) {
      return absl::InternalError(
          absl::StrCat("block ", block, " is twice in the free list"));
    }
    is_free[block] = true;
  }
  int32_t owned = 0;
  int32_t quarantined = 0;
  for (int32_t block = 0; block < num_blocks(); ++block) {
    const Block& b = blocks_[block];
    owned += b.references > 0;
    quarantined += b.references == 0 && b.pins > 0;
    if (is_free[block] != (b.references == 0 && b.pins == 0)) {
      return absl::InternalError(absl::StrCat(
          "block ", block, " with ", b.references, " references and ", b.pins,
          " pins is ", is_free[block] ? "" : "not ", "in the free list"));
    }
  }
  const int32_t sum = num_free() + num_cached() + num_owned_ + num_quarantined_;
  if (owned != num_owned_ || quarantined != num_quarantined_ ||
      sum != num_blocks()) {
    return absl::InternalError(absl::StrCat(
        num_free(), " free + ", num_cached(), " cached + ", num_owned_,
        " owned + ", num_quarantined_, " quarantined, of ", num_blocks(),
        "; counted ", owned, " owned and ", quarantined, " quarantined"));
  }
  if (credits_ < 0 || credits_ > num_free()) {
    return absl::InternalError(
        absl::StrCat(credits_, " credits on ", num_free(), " free blocks"));
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
  int64_t credits = 0;
  for (const Holding& holding : holdings) {
    credits += holding.credits;
    for (int32_t block : holding.blocks) {
      if (block < 0 || block >= num_blocks()) {
        return absl::InternalError(
            absl::StrCat("a table holds block ", block, " of ", num_blocks()));
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
