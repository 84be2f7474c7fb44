#include "scheduler/transfer_table.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "scheduler/transfer_rules.h"

namespace overfill {

void TransferTable::Begin(KvTransfer transfer, SteadyTime lease_end) {
  const Id id(transfer.uid, transfer.epoch);
  const auto next = entries_.lower_bound(id);
  OVERFILL_CHECK(next == entries_.end() || next->first.first != id.first)
      << "epoch " << id.second << " of " << id.first << " is not a new one";
  leases_.insert({lease_end, id});
  entries_.emplace(id, Entry{std::move(transfer), lease_end});
  ++counts_.sending;
}

std::optional<TransferTable::Finished> TransferTable::OnCommit(
    const KvCommit& commit) {
  const auto it = entries_.find({commit.uid, commit.epoch});
  if (it == entries_.end()) {
    ++counts_.unknown_commits;
    return std::nullopt;
  }
  if (it->second.is_fencing) {
    ++counts_.commits_while_fencing;
    return std::nullopt;
  }
  KvTransfer transfer = Remove(it);
  absl::Status status = CheckCommit(transfer, commit);
  return Finished{std::move(transfer), std::move(status),
                  commit.received_digest};
}

std::optional<KvTransfer> TransferTable::OnFenced(uint64_t uid,
                                                  uint32_t epoch) {
  const auto it = entries_.find({uid, epoch});
  if (it == entries_.end() || !it->second.is_fencing) {
    ++counts_.unknown_fences;
    return std::nullopt;
  }
  return Remove(it);
}

std::vector<KvTransfer> TransferTable::Expire(SteadyTime now) {
  std::vector<KvTransfer> expired;
  while (!leases_.empty() && leases_.begin()->first <= now) {
    Entry& entry = entries_.at(leases_.begin()->second);
    leases_.erase(leases_.begin());
    entry.is_fencing = true;
    --counts_.sending;
    ++counts_.fencing;
    expired.push_back(entry.transfer);
  }
  return expired;
}

KvTransfer TransferTable::Abandoned(uint64_t uid, uint32_t epoch) {
  const auto it = entries_.find({uid, epoch});
  OVERFILL_CHECK(it != entries_.end())
      << "epoch " << epoch << " of " << uid << " is not there";
  return Remove(it);
}

int64_t TransferTable::NumFencingBlocks(int32_t store) const {
  if (counts_.fencing == 0) return 0;
  int64_t blocks = 0;
  for (const auto& [id, entry] : entries_) {
    if (!entry.is_fencing) continue;
    const KvTransfer& transfer = entry.transfer;
    if (transfer.from_store == store) blocks += std::ssize(transfer.source);
    if (transfer.to_store == store) blocks += std::ssize(transfer.destination);
  }
  return blocks;
}

SteadyTime TransferTable::NextLease() const {
  return leases_.empty() ? SteadyTime::max() : leases_.begin()->first;
}

KvTransfer TransferTable::Remove(std::map<Id, Entry>::iterator it) {
  Entry& entry = it->second;
  if (entry.is_fencing) {
    --counts_.fencing;
  } else {
    --counts_.sending;
    leases_.erase({entry.lease_end, it->first});
  }
  KvTransfer transfer = std::move(entry.transfer);
  entries_.erase(it);
  return transfer;
}

absl::Status TransferTable::CheckIntegrity() const {
  int32_t sending = 0;
  for (const auto& [id, entry] : entries_) {
    const Id named(entry.transfer.uid, entry.transfer.epoch);
    if (named != id ||
        leases_.contains({entry.lease_end, id}) == entry.is_fencing) {
      return absl::InternalError(absl::StrCat(
          "transfer ", id.first, ".", id.second, " is not where it belongs"));
    }
    sending += entry.is_fencing ? 0 : 1;
  }
  const auto total = static_cast<int32_t>(entries_.size());
  if (counts_.sending != sending || counts_.fencing != total - sending ||
      static_cast<int32_t>(leases_.size()) != sending) {
    return absl::InternalError(absl::StrCat(
        total, " transfers, ", sending, " of them sending; counted ",
        counts_.sending, " sending and ", counts_.fencing, " fencing, with ",
        leases_.size(), " leases"));
  }
  return CheckBlocks();
}

absl::Status TransferTable::CheckBlocks() const {
  using Block = std::pair<int32_t, int32_t>;  // store, block
  std::set<Block> written;
  for (const auto& [id, entry] : entries_) {
    for (int32_t block : entry.transfer.destination) {
      if (written.insert({entry.transfer.to_store, block}).second) continue;
      return absl::InternalError(absl::StrCat("block ", block, " of store ",
                                              entry.transfer.to_store,
                                              " is written by two transfers"));
    }
  }
  for (const auto& [id, entry] : entries_) {
    for (int32_t block : entry.transfer.source) {
      if (!written.contains({entry.transfer.from_store, block})) continue;
      return absl::InternalError(
          absl::StrCat("block ", block, " of store ", entry.transfer.from_store,
                       " is read and written by transfers"));
    }
  }
  return absl::OkStatus();
}

}  // namespace overfill
