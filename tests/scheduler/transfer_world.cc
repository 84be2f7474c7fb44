#include "tests/scheduler/transfer_world.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace overfill {
namespace {

// More commits of what is over add states, and nothing to them.
constexpr int kMaxStaleCommits = 1;

}  // namespace

TransferWorld::TransferWorld(const WorldOptions& options)
    : options_(options),
      decode_store_(options.blocks[kDecodeStore] == 0 ? kPrefillStore
                                                      : kDecodeStore),
      swap_store_(SwapStoreOf(decode_store_)) {
  for (int32_t blocks : options_.blocks) pools_.emplace_back(blocks);
  for (Sequence& sequence : sequences_) {
    sequence.retries_left = options_.retries;
  }
}

std::vector<TransferWorld::Action> TransferWorld::Actions() const {
  std::vector<Action> actions;
  for (int request = 0; request < kNumRequests; ++request) {
    for (const Action& action : RequestActions(request)) {
      actions.push_back(action);
    }
  }
  for (int pool = 0; pool < 2; ++pool) {
    if (steps_[pool].mask != 0) {
      actions.push_back({Kind::kFinishStep, pool});
      continue;
    }
    for (int mask = 1; mask < 1 << kNumRequests; ++mask) {
      if (CanLaunch(pool, mask)) actions.push_back({Kind::kLaunch, pool, mask});
    }
  }
  if (options_.has_faults && options_.bug != WorldBug::kNoReaper &&
      table_.counts().sending > 0) {
    actions.push_back({Kind::kExpire});
  }
  for (size_t i = 0; i < wires_.size(); ++i) {
    AddWireActions(static_cast<int>(i), actions);
  }
  return actions;
}

std::vector<TransferWorld::Action> TransferWorld::RequestActions(
    int request) const {
  std::vector<Action> actions;
  const Sequence& sequence = sequences_[request];
  const int32_t decode_room = pools_[decode_store_].available();
  const int32_t swap_room = pools_[swap_store_].available();
  const int32_t prompt = options_.prompt_blocks;
  const bool may_preempt = options_.bug != WorldBug::kNoPreemption;
  switch (sequence.state) {
    case State::kQueued:
      if (decode_room >= prompt + 1 &&
          pools_[kPrefillStore].available() >= prompt) {
        actions.push_back({Kind::kStart, request});
      }
      break;
    case State::kToRetry:
      if (decode_room >= prompt + 1) {
        actions.push_back({Kind::kRetry, request});
      }
      break;
    case State::kDecoding:
      if (IsStepping(request) || !may_preempt) break;
      if (swap_room >= sequence.computed) {
        actions.push_back({Kind::kPreempt, request});
      } else if (NeedsGrowth(request) && decode_room == 0 &&
                 options_.has_faults) {
        actions.push_back({Kind::kExhaust, request});
      }
      break;
    case State::kSwapped:
      if (decode_room >= sequence.computed + 1) {
        actions.push_back({Kind::kSwapIn, request});
      }
      break;
    default:
      break;
  }
  if (options_.has_faults && sequence.state != State::kEnded) {
    actions.push_back({Kind::kCancel, request});
  }
  return actions;
}

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

void TransferWorld::Apply(const Action& action) {
  const int which = action.which;
  switch (action.kind) {
    case Kind::kStart:
      Start(which);
      break;
    case Kind::kLaunch:
      Launch(which, action.mask);
      break;
    case Kind::kFinishStep:
      FinishStep(which);
      break;
    case Kind::kPreempt:
      Preempt(which);
      break;
    case Kind::kSwapIn:
      SwapIn(which);
      break;
    case Kind::kRetry:
      Retry(which);
      break;
    case Kind::kExhaust:
    case Kind::kCancel:
      End(which);
      break;
    case Kind::kExpire:
      Expire();
      break;
    case Kind::kWrite:
      wires_[which].phase = Wire::Phase::kWriting;
      break;
    case Kind::kArrive:
    case Kind::kArriveBad:
      wires_[which].phase = Wire::Phase::kOver;
      wires_[which].is_good = action.kind == Kind::kArrive;
      wires_[which].num_commits = 1;
      break;
    case Kind::kDeliver:
    case Kind::kDeliverKeep:
      Deliver(which, action.kind == Kind::kDeliverKeep);
      break;
    case Kind::kLose:
      --wires_[which].num_commits;
      break;
    case Kind::kFenced:
      Fenced(which);
      break;
  }
  DropDeadWires();
}

// ---- The requests' side.

void TransferWorld::Allocate(int request, int store, int32_t count) {
  Holding& holding = sequences_[request].holdings[store];
  for (int32_t i = 0; i < count; ++i) {
    if (holding.credits > 0) {
      --holding.credits;
    } else {
      OVERFILL_CHECK(pools_[store].Reserve(1));
    }
    holding.table.push_back(pools_[store].Allocate(UidOf(request)));
  }
}

void TransferWorld::ReleaseTable(int request, int store) {
  Holding& holding = sequences_[request].holdings[store];
  while (!holding.table.empty()) {
    pools_[store].Release(holding.table.back(), UidOf(request));
    holding.table.pop_back();
  }
}

void TransferWorld::Release(int request, int store) {
  ReleaseTable(request, store);
  Holding& holding = sequences_[request].holdings[store];
  pools_[store].Unreserve(holding.credits);
  holding.credits = 0;
}

void TransferWorld::Start(int request) {
  Sequence& sequence = sequences_[request];
  const int32_t prompt = options_.prompt_blocks;
  if (!is_shared()) {
    OVERFILL_CHECK(pools_[kPrefillStore].Reserve(prompt));
    sequence.holdings[kPrefillStore].credits = prompt;
  }
  OVERFILL_CHECK(pools_[decode_store_].Reserve(prompt + 1));
  sequence.holdings[decode_store_].credits = prompt + 1;
  sequence.state = State::kPrefilling;
}

bool TransferWorld::IsStepping(int request) const {
  return ((steps_[0].mask | steps_[1].mask) >> request & 1) != 0;
}

bool TransferWorld::NeedsGrowth(int request) const {
  const Sequence& sequence = sequences_[request];
  const Holding& holding = sequence.holdings[decode_store_];
  return static_cast<int32_t>(holding.table.size()) == sequence.computed &&
         holding.credits == 0;
}

bool TransferWorld::CanLaunch(int pool, int mask) const {
  const State state = pool == 0 ? State::kPrefilling : State::kDecoding;
  int32_t growth = 0;
  for (int request = 0; request < kNumRequests; ++request) {
    if ((mask >> request & 1) == 0) continue;
    if (sequences_[request].state != state || IsStepping(request)) return false;
    if (pool == 1) growth += NeedsGrowth(request) ? 1 : 0;
  }
  return growth <= pools_[decode_store_].available();
}

void TransferWorld::Launch(int pool, int mask) {
  Step& step = steps_[pool];
  const int store = StoreOf(pool);
  step.mask = mask;
  std::vector<int32_t> pinned;
  for (int request = 0; request < kNumRequests; ++request) {
    if ((mask >> request & 1) == 0) continue;
    const Sequence& sequence = sequences_[request];
    const std::vector<int32_t>& table = sequence.holdings[store].table;
    const int32_t covered =
        pool == 0 ? options_.prompt_blocks : sequence.computed + 1;
    Allocate(request, store, covered - static_cast<int32_t>(table.size()));
    step.blocks[request] = table;
    pinned.insert(pinned.end(), table.begin(), table.end());
  }
  if (options_.bug == WorldBug::kNoStepPin) return;
  step.pin = pools_[store].Pin(pinned, "a step");
}

void TransferWorld::FinishStep(int pool) {
  const Step step = std::exchange(steps_[pool], {});
  if (step.pin) pools_[StoreOf(pool)].Unpin(*step.pin);
  for (int request = 0; request < kNumRequests; ++request) {
    Sequence& sequence = sequences_[request];
    if ((step.mask >> request & 1) == 0) continue;
    if (sequence.state == State::kEnded) continue;
    if (pool == 0) {
      sequence.computed = options_.prompt_blocks;
      if (is_shared()) {
        sequence.state = State::kDecoding;
        continue;
      }
      Allocate(request, decode_store_, sequence.computed);
      sequence.state = State::kMigrating;
      BeginTransfer(request, kPrefillStore, decode_store_);
    } else if (++sequence.computed == options_.total_blocks) {
      sequence.is_complete = true;
      End(request);
    }
  }
}

void TransferWorld::BeginTransfer(int request, int from, int to) {
  Sequence& sequence = sequences_[request];
  Wire wire;
  wire.transfer = {.uid = UidOf(request),
                   .epoch = ++sequence.epoch,
                   .from_store = from,
                   .to_store = to,
                   .coverage = {0, sequence.computed},
                   .block_tokens = 1,
                   .source = sequence.holdings[from].table,
                   .destination = sequence.holdings[to].table};
  wire.transfer.source.resize(sequence.computed);
  wire.lease_end = SteadyTime(std::chrono::seconds(++clock_));
  if (options_.bug != WorldBug::kNoSourcePin) {
    wire.source_pin = pools_[from].Pin(wire.transfer.source, "a copy");
  }
  if (options_.bug != WorldBug::kNoDestinationPin) {
    wire.destination_pin = pools_[to].Pin(wire.transfer.destination, "a copy");
  }
  table_.Begin(wire.transfer, wire.lease_end);
  // By uid, then epoch: the encoding relies on it.
  const auto after =
      std::find_if(wires_.begin(), wires_.end(), [&](const Wire& other) {
        return other.transfer.uid > wire.transfer.uid;
      });
  wires_.insert(after, std::move(wire));
}

void TransferWorld::Preempt(int request) {
  Allocate(request, swap_store_, sequences_[request].computed);
  sequences_[request].state = State::kSwappingOut;
  BeginTransfer(request, decode_store_, swap_store_);
}

void TransferWorld::SwapIn(int request) {
  Sequence& sequence = sequences_[request];
  OVERFILL_CHECK(pools_[decode_store_].Reserve(sequence.computed + 1));
  sequence.holdings[decode_store_].credits = sequence.computed + 1;
  Allocate(request, decode_store_, sequence.computed);
  sequence.state = State::kSwappingIn;
  BeginTransfer(request, swap_store_, decode_store_);
}

void TransferWorld::Retry(int request) {
  Sequence& sequence = sequences_[request];
  OVERFILL_CHECK(pools_[decode_store_].Reserve(sequence.computed + 1));
  sequence.holdings[decode_store_].credits += sequence.computed + 1;
  Allocate(request, decode_store_, sequence.computed);
  sequence.state = State::kMigrating;
  BeginTransfer(request, kPrefillStore, decode_store_);
}

bool TransferWorld::HasTransfer(int request) const {
  const State state = sequences_[request].state;
  return state == State::kMigrating || state == State::kSwappingOut ||
         state == State::kSwappingIn;
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

void TransferWorld::End(int request) {
  Sequence& sequence = sequences_[request];
  if (HasTransfer(request)) {
    Wire* wire = FindWire(UidOf(request), sequence.epoch);
    // The transport abandons what it has not begun.
    if (wire->phase == Wire::Phase::kWaiting && !wire->is_fencing) {
      table_.Abandoned(wire->transfer.uid, wire->transfer.epoch);
      wire->phase = Wire::Phase::kOver;
      wire->is_live = false;
      Unpin(*wire);
    }
    if (options_.bug == WorldBug::kFreesOnCancel) Unpin(*wire);
  }
  for (int store = 0; store < kNumStores; ++store) Release(request, store);
  sequence.state = State::kEnded;
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
  Release(request, wire->transfer.from_store);
  sequence.state = sequence.state == State::kSwappingOut ? State::kSwapped
                                                         : State::kDecoding;
}

void TransferWorld::Fail(int request) {
  Sequence& sequence = sequences_[request];
  if (sequence.retries_left-- == 0) return End(request);
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
