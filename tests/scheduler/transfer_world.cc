#include "tests/scheduler/transfer_world.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "base/checked_math.h"

namespace overfill {

TransferWorld::TransferWorld(const WorldOptions& options)
    : options_(options),
      decode_store_(options.blocks[kDecodeStore] == 0 ? kPrefillStore
                                                      : kDecodeStore),
      swap_store_(SwapStoreOf(decode_store_)) {
  for (int store = 0; store < kNumStores; ++store) {
    pools_.emplace_back(options_.blocks[store]);
    contents_[store].resize(options_.blocks[store] * options_.block_tokens);
  }
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
      AddFinishes(pool, actions);
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
  const int32_t held = BlocksFor(sequence.computed);
  const bool may_preempt = options_.bug != WorldBug::kNoPreemption;
  switch (sequence.state) {
    case State::kQueued:
      if (CanStart() && !(options_.is_fork && request > 0)) {
        actions.push_back({Kind::kStart, request});
      }
      break;
    case State::kToRetry:
      if (decode_room >= BlocksFor(sequence.computed + 1)) {
        actions.push_back({Kind::kRetry, request});
      }
      break;
    case State::kDecoding:
      if (IsStepping(request) || !may_preempt) break;
      if (swap_room >= held) {
        actions.push_back({Kind::kPreempt, request});
      } else if (NeedsGrowth(request) && decode_room == 0 &&
                 options_.has_faults) {
        actions.push_back({Kind::kExhaust, request});
      }
      break;
    case State::kSwapped:
      if (decode_room >= BlocksFor(sequence.computed + 1)) {
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

void TransferWorld::AddFinishes(int pool, std::vector<Action>& actions) const {
  actions.push_back({Kind::kFinishStep, pool});
  if (!options_.has_faults || !is_content_shared()) return;
  for (int request = 0; request < kNumRequests; ++request) {
    if ((steps_[pool].mask >> request & 1) == 0) continue;
    if (sequences_[request].state == State::kEnded) continue;
    actions.push_back({Kind::kFinishBad, pool, 1 << request});
  }
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
    case Kind::kFinishBad:
      FinishStep(which, action.mask);
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
      WriteTransfer(wires_[which], false);
      break;
    case Kind::kArrive:
    case Kind::kArriveBad:
      wires_[which].phase = Wire::Phase::kOver;
      wires_[which].is_good = action.kind == Kind::kArrive;
      wires_[which].num_commits = 1;
      WriteTransfer(wires_[which], wires_[which].is_good);
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

int32_t TransferWorld::BlocksFor(int32_t tokens) const {
  return static_cast<int32_t>(CeilDiv(tokens, options_.block_tokens));
}

// Of the fork alone, when it has one position of its own.
int32_t TransferWorld::ForkBlocks() const {
  return BlocksFor(options_.prompt_tokens + 1) -
         options_.prompt_tokens / options_.block_tokens;
}

void TransferWorld::Reserve(int request, int store, int32_t count) {
  OVERFILL_CHECK(pools_[store].Reserve(count));
  sequences_[request].holdings[store].credits += count;
}

void TransferWorld::Allocate(int request, int store, int32_t count) {
  Holding& holding = sequences_[request].holdings[store];
  for (int32_t i = 0; i < count; ++i) {
    if (holding.credits > 0) {
      --holding.credits;
    } else {
      OVERFILL_CHECK(pools_[store].Reserve(1));
    }
    const int32_t num_cached = pools_[store].num_cached();
    const int32_t block = pools_[store].Allocate(UidOf(request));
    if (options_.bug == WorldBug::kEvicts &&
        pools_[store].num_cached() < num_cached) {
      violation_ = "evicted";
    }
    holding.table.push_back(block);
    std::fill_n(contents_[store].begin() + block * options_.block_tokens,
                options_.block_tokens, Content());
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

bool TransferWorld::CanStart() const {
  const int32_t prompt = BlocksFor(options_.prompt_tokens);
  // One to grow into; a fork has a block, or two, of its own.
  const int32_t whole = BlocksFor(options_.prompt_tokens + 1);
  const int32_t fork = options_.is_fork ? ForkBlocks() : 0;
  if (is_shared()) {
    return pools_[decode_store_].available() >= whole + fork - NumHeld();
  }
  return pools_[decode_store_].available() >= whole + fork &&
         pools_[kPrefillStore].available() >= prompt - NumHeld();
}

void TransferWorld::Start(int request) {
  const int32_t prompt = BlocksFor(options_.prompt_tokens);
  const int32_t whole = BlocksFor(options_.prompt_tokens + 1);
  Reserve(request, kPrefillStore, (is_shared() ? whole : prompt) - NumHeld());
  if (!is_shared()) Reserve(request, decode_store_, whole);
  if (options_.is_fork) {
    Reserve(request + 1, decode_store_, ForkBlocks());
    sequences_[request + 1].state = State::kWaiting;
  }
  Adopt(request);
  sequences_[request].state = State::kPrefilling;
}

bool TransferWorld::IsStepping(int request) const {
  return ((steps_[0].mask | steps_[1].mask) >> request & 1) != 0;
}

bool TransferWorld::NeedsGrowth(int request) const {
  const Sequence& sequence = sequences_[request];
  const Holding& holding = sequence.holdings[decode_store_];
  return static_cast<int32_t>(holding.table.size()) <
             BlocksFor(sequence.computed + 1) &&
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
    step.begin[request] = sequence.computed;
    step.end[request] =
        pool == 0 ? options_.prompt_tokens : sequence.computed + 1;
    Allocate(request, store,
             BlocksFor(step.end[request]) - static_cast<int32_t>(table.size()));
    step.blocks[request] = table;
    if (options_.bug == WorldBug::kPublishesEarly && pool == 0) {
      Publish(request);
    }
    pinned.insert(pinned.end(), table.begin(), table.end());
  }
  WriteStep(pool, false, 0);
  if (options_.bug == WorldBug::kNoStepPin) return;
  step.pin = pools_[store].Pin(pinned, "a step");
}

void TransferWorld::FinishStep(int pool, int bad) {
  WriteStep(pool, true, bad);
  const Step step = std::exchange(steps_[pool], {});
  if (step.pin) pools_[StoreOf(pool)].Unpin(*step.pin);
  for (int request = 0; request < kNumRequests; ++request) {
    Sequence& sequence = sequences_[request];
    if ((step.mask >> request & 1) == 0) continue;
    if (sequence.state == State::kEnded) continue;
    if ((bad >> request & 1) != 0) {
      if (options_.bug == WorldBug::kPublishesBad) Publish(request);
      if (options_.bug != WorldBug::kPublishesBad) Withdraw(request);
      End(request);
    } else if (pool == 0) {
      sequence.computed = options_.prompt_tokens;
      Publish(request);
      LeavePrompt(request);
    } else if (++sequence.computed == options_.total_tokens) {
      sequence.is_complete = true;
      EndOne(request);
    }
  }
}

void TransferWorld::LeavePrompt(int request) {
  if (is_shared()) return BeginAnswers(request);
  Allocate(request, decode_store_, BlocksFor(options_.prompt_tokens));
  sequences_[request].state = State::kMigrating;
  BeginTransfer(request, kPrefillStore, decode_store_);
}

void TransferWorld::Preempt(int request) {
  Allocate(request, swap_store_, BlocksFor(sequences_[request].computed));
  sequences_[request].state = State::kSwappingOut;
  BeginTransfer(request, decode_store_, swap_store_);
}

void TransferWorld::SwapIn(int request) {
  Sequence& sequence = sequences_[request];
  Reserve(request, decode_store_, BlocksFor(sequence.computed + 1));
  Allocate(request, decode_store_, BlocksFor(sequence.computed));
  sequence.state = State::kSwappingIn;
  BeginTransfer(request, swap_store_, decode_store_);
}

void TransferWorld::Retry(int request) {
  Sequence& sequence = sequences_[request];
  Reserve(request, decode_store_, BlocksFor(sequence.computed + 1));
  Allocate(request, decode_store_, BlocksFor(sequence.computed));
  sequence.state = State::kMigrating;
  BeginTransfer(request, kPrefillStore, decode_store_);
}

// All answers to what was asked.
void TransferWorld::End(int request) {
  if (!options_.is_fork) return EndOne(request);
  for (int sample = 0; sample < kNumRequests; ++sample) {
    if (sequences_[sample].state != State::kEnded) EndOne(sample);
  }
}

void TransferWorld::EndOne(int request) {
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

}  // namespace overfill
