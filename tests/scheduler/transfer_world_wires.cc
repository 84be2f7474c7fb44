// The transfers of a TransferWorld, and its transport.
#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "tests/scheduler/transfer_world.h"

namespace overfill {

// ---- The requests' side.

void TransferWorld::BeginTransfer(int request, int from, int to) {
  const Sequence& sequence = sequences_[request];
  KvTransfer transfer = {.from_store = from,
                         .to_store = to,
                         .coverage = {0, sequence.computed},
                         .source = sequence.holdings[from].table,
                         .destination = sequence.holdings[to].table};
  transfer.source.resize(BlocksFor(sequence.computed));
  Send(request, std::move(transfer));
}

void TransferWorld::Send(int request, KvTransfer transfer) {
  transfer.uid = UidOf(request);
  transfer.epoch = ++sequences_[request].epoch;
  transfer.block_tokens = options_.block_tokens;
  Wire wire;
  wire.transfer = std::move(transfer);
  wire.lease_end = SteadyTime(std::chrono::seconds(++clock_));
  if (options_.bug != WorldBug::kNoSourcePin) {
    wire.source_pin =
        pools_[wire.transfer.from_store].Pin(wire.transfer.source, "a copy");
  }
  if (options_.bug != WorldBug::kNoDestinationPin) {
    wire.destination_pin =
        pools_[wire.transfer.to_store].Pin(wire.transfer.destination, "a copy");
  }
  table_.Begin(wire.transfer, wire.lease_end);
  // By uid, then epoch: the encoding relies on it.
  const auto after =
      std::find_if(wires_.begin(), wires_.end(), [&](const Wire& other) {
        return other.transfer.uid > wire.transfer.uid;
      });
  wires_.insert(after, std::move(wire));
}

bool TransferWorld::HasTransfer(int request) const {
  const State state = sequences_[request].state;
  return state == State::kMigrating || state == State::kForking ||
         state == State::kSwappingOut || state == State::kSwappingIn;
}

void TransferWorld::Unpin(Wire& wire) {
  const KvTransfer& transfer = wire.transfer;
  if (wire.source_pin) pools_[transfer.from_store].Unpin(*wire.source_pin);
  if (wire.destination_pin) {
    pools_[transfer.to_store].Unpin(*wire.destination_pin);
  }
  wire.source_pin.reset();
  wire.destination_pin.reset();
}

void TransferWorld::Expire() {
  for (const KvTransfer& transfer : table_.Expire(table_.NextLease())) {
    Wire* wire = FindWire(transfer.uid, transfer.epoch);
    wire->is_fencing = true;
    if (options_.bug == WorldBug::kFreesBeforeFence) Unpin(*wire);
    const int request = RequestOf(transfer.uid);
    if (HasTransfer(request) && sequences_[request].epoch == transfer.epoch) {
      Fail(request);
    }
  }
}

void TransferWorld::OnCommit(const KvCommit& commit) {
  const auto finished = table_.OnCommit(commit);
  if (!finished) return;
  Wire* wire = FindWire(finished->transfer.uid, finished->transfer.epoch);
  wire->is_live = false;
  Unpin(*wire);
  const int request = RequestOf(commit.uid);
  if (!HasTransfer(request)) return;  // it was cancelled meanwhile
  if (finished->status.ok()) {
    Succeed(request);
  } else {
    Fail(request);
  }
}

void TransferWorld::Succeed(int request) {
  Sequence& sequence = sequences_[request];
  const Wire* wire = FindWire(UidOf(request), sequence.epoch);
  if (!wire->is_good) {
    violation_ = absl::StrCat("request ", request,
                              " goes on with KV that has not arrived");
  }
  switch (sequence.state) {
    case State::kMigrating:
      Release(request, kPrefillStore);
      return BeginAnswers(request);
    case State::kForking:
      break;
    case State::kSwappingOut:
      Release(request, decode_store_);
      sequence.state = State::kSwapped;
      return;
    default:
      Release(request, swap_store_);
  }
  sequence.state = State::kDecoding;
}

void TransferWorld::Fail(int request) {
  Sequence& sequence = sequences_[request];
  if (sequence.state == State::kForking || sequence.retries_left-- == 0) {
    return End(request);  // whom it forks from may have left by now
  }
  switch (sequence.state) {
    case State::kMigrating:
      if (options_.bug == WorldBug::kRetriesInPlace) {
        BeginTransfer(request, kPrefillStore, decode_store_);
        break;
      }
      Release(request, decode_store_);
      sequence.state = State::kToRetry;
      break;
    case State::kSwappingOut:
      Release(request, swap_store_);
      sequence.state = State::kDecoding;
      break;
    case State::kSwappingIn:
      Release(request, decode_store_);
      sequence.state = State::kSwapped;
      break;
    default:
      OVERFILL_CHECK(false) << "no transfer to fail";
  }
}

// ---- The transport.

void TransferWorld::AddWireActions(int which,
                                   std::vector<Action>& actions) const {
  const Wire& wire = wires_[which];
  if (wire.phase == Wire::Phase::kWaiting) {
    actions.push_back({Kind::kWrite, which});
  }
  if (wire.phase == Wire::Phase::kWriting) {
    actions.push_back({Kind::kArrive, which});
    if (options_.has_faults) actions.push_back({Kind::kArriveBad, which});
  }
  if (wire.num_commits > 0) {
    actions.push_back({Kind::kDeliver, which});
    if (options_.has_faults) {
      actions.push_back({Kind::kLose, which});
      if (wire.is_live && NumStaleCommits() < kMaxStaleCommits) {
        actions.push_back({Kind::kDeliverKeep, which});
      }
    }
  }
  if (wire.is_fencing) actions.push_back({Kind::kFenced, which});
}

TransferWorld::Wire* TransferWorld::FindWire(uint64_t uid, uint32_t epoch) {
  for (Wire& wire : wires_) {
    if (wire.transfer.uid == uid && wire.transfer.epoch == epoch) return &wire;
  }
  OVERFILL_CHECK(false) << "no wire " << uid << "." << epoch;
}

int TransferWorld::NumStaleCommits() const {
  int count = 0;
  for (const Wire& wire : wires_) {
    count += wire.is_live ? 0 : wire.num_commits;
  }
  return count;
}

void TransferWorld::Deliver(int which, bool keep) {
  Wire& wire = wires_[which];
  if (!keep) --wire.num_commits;
  const KvTransfer& transfer = wire.transfer;
  KvCommit commit{.uid = transfer.uid,
                  .epoch = transfer.epoch,
                  .status = absl::OkStatus(),
                  .coverage = transfer.coverage,
                  .num_blocks = static_cast<int64_t>(transfer.source.size())};
  if (!wire.is_good) --commit.coverage.end;
  if (options_.bug == WorldBug::kTakesStaleEpoch) {
    commit.epoch = sequences_[RequestOf(transfer.uid)].epoch;
  }
  OnCommit(commit);
}

void TransferWorld::Fenced(int which) {
  Wire& wire = wires_[which];
  wire.phase = Wire::Phase::kOver;
  wire.is_live = false;
  wire.is_fencing = false;
  if (NumStaleCommits() > kMaxStaleCommits) wire.num_commits = 0;
  if (!table_.OnFenced(wire.transfer.uid, wire.transfer.epoch)) {
    violation_ = "a fence that the table does not wait for";
  }
  Unpin(wire);
}

void TransferWorld::DropDeadWires() {
  std::erase_if(wires_, [](const Wire& wire) {
    return wire.phase == Wire::Phase::kOver && !wire.is_live &&
           wire.num_commits == 0;
  });
}

}  // namespace overfill
