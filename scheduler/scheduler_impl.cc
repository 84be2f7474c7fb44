#include "scheduler/scheduler_impl.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "scheduler/local_transport.h"

namespace overfill {
namespace {

using Clock = std::chrono::steady_clock;

// No single wait is longer: a caller's timeout may be too long to add to a
// time, and the thread sanitizer's build waits on a clock that may be set.
constexpr std::chrono::nanoseconds kLongestWait = std::chrono::seconds(1);

}  // namespace

SchedulerImpl::SchedulerImpl(const SchedulerOptions& options,
                             const SchedulerBackend& backend,
                             const std::array<StepBudget, 2>& budgets,
                             SchedulerObserver* observer)
    : options_(options),
      backend_(backend),
      stores_{options.block_tokens, backend.prefill_blocks,
              backend.decode_blocks},
      limits_{backend.tokenizer->vocab_size(), options.max_sequence_tokens,
              options.max_queued_requests, options.max_queued_tokens},
      observer_(observer ? observer : &silent_),
      admission_(limits_),
      ledger_(stores_) {
  {
    MutexLock lock(&mu_);
    for (int pool = 0; pool < 2; ++pool) {
      pools_[pool].budget = budgets[pool];
      pools_[pool].free_slots = budgets[pool].max_sequences;
      pools_[pool].last_step = Clock::now();
    }
  }
  if (!stores_.is_shared()) {
    transport_ = std::make_unique<LocalTransport>(LocalTransport::Movers{
        {{kPrefillStore, kDecodeStore}, backend_.mover}});
    transport_->Start(
        {.on_commit = [this](const KvCommit& commit) { OnCommit(commit); },
         .on_fenced = [](uint64_t uid, uint32_t epoch) {}});
  }
  PoolHost* const host = this;
  threads_[0] =
      std::make_unique<Pool>(PoolId::kPrefill, backend_.prefill, host);
  threads_[1] = std::make_unique<Pool>(PoolId::kDecode, backend_.decode, host);
  reaper_ = std::thread([this] { ReapLoop(); });
}

SchedulerImpl::~SchedulerImpl() {
  {
    MutexLock lock(&mu_);
    is_stopping_ = true;
    admission_.StopAdmission();
    while (!live_.empty()) {
      End(live_.begin()->second,
          absl::UnavailableError("the server is shutting down"));
    }
  }
  changed_.NotifyAll();
  deadline_added_.NotifyAll();
  DeliverReady();
  for (auto& thread : threads_) thread.reset();
  reaper_.join();
  transport_.reset();
  // Another thread may have been at a delivery; all are gone now.
  DeliverReady();
}

absl::StatusOr<uint64_t> SchedulerImpl::Submit(
    Request request, std::shared_ptr<EventQueue> events) {
  const auto refuse = [this](const Refusal& refusal) {
    observer_->OnReject(refusal.reason);
    return refusal.status;
  };
  // Before the work that a refused request is not worth.
  Refusal refusal;
  uint64_t uid;
  {
    MutexLock lock(&mu_);
    refusal = admission_.Check(request, Clock::now());
    uid = next_uid_++;
  }
  if (refusal.status.ok()) refusal = CheckRequest(request, limits_, stores_);
  if (!refusal.status.ok()) return refuse(refusal);
  auto sequence = std::make_shared<Sequence>(
      uid, std::move(request), std::move(events), backend_.tokenizer);
  {
    MutexLock lock(&mu_);
    refusal = admission_.Check(sequence->request, Clock::now());
    if (refusal.status.ok()) {
      admission_.Enqueued(sequence->request);
      ++num_in_state_[static_cast<int>(SequenceState::kQueued)];
      live_[uid] = sequence;
      queued_.insert(sequence);
      if (sequence->request.deadline != SteadyTime::max()) {
        deadlines_.insert({sequence->request.deadline, uid});
        deadline_added_.NotifyAll();
      }
      changed_.NotifyAll();
    }
  }
  if (!refusal.status.ok()) return refuse(refusal);
  return uid;
}

absl::Status SchedulerImpl::Precheck(absl::string_view tenant,
                                     int64_t prompt_bytes,
                                     SteadyTime deadline) {
  Request request;
  request.tenant = std::string(tenant);
  request.deadline = deadline;
  MutexLock lock(&mu_);
  return admission_.Check(request, Clock::now()).status;
}

std::chrono::nanoseconds SchedulerImpl::RetryAfter() const {
  return std::chrono::seconds(1);
}

void SchedulerImpl::Cancel(uint64_t uid, absl::Status status) {
  OVERFILL_CHECK(!status.ok()) << "a request is not cancelled with OK";
  {
    MutexLock lock(&mu_);
    const auto it = live_.find(uid);
    if (it == live_.end()) return;
    End(SequencePtr(it->second), std::move(status));
  }
  DeliverReady();
}

void SchedulerImpl::StopAdmission() {
  MutexLock lock(&mu_);
  admission_.StopAdmission();
}

bool SchedulerImpl::WaitIdle(std::chrono::nanoseconds timeout) {
  const auto begin = Clock::now();
  MutexLock lock(&mu_);
  while (!live_.empty() || num_undelivered_ends_ > 0) {
    const auto left = timeout - (Clock::now() - begin);
    if (left <= std::chrono::nanoseconds::zero()) return false;
    idle_.WaitFor(&mu_, std::min<std::chrono::nanoseconds>(left, kLongestWait));
  }
  return true;
}

void SchedulerImpl::End(SequencePtr sequence, absl::Status status,
                        const OutputStream::End* end) {
  if (sequence->state == SequenceState::kEnded) return;
  const SteadyTime now = Clock::now();
  Terminal terminal{
      .status = std::move(status),
      .finish_reason = end ? end->reason : FinishReason::kLength,
      .seed = sequence->request.sampling.seed,
      .usage = {.prompt_tokens = sequence->prompt_tokens(),
                .cached_prompt_tokens = 0,
                .completion_tokens = sequence->output.num_tokens()},
      .timings = TimingsOf(*sequence, now),
  };
  if (end) {
    Post(sequence, Completion{.finish_reason = end->reason,
                              .matched_stop = end->matched_stop,
                              .seed = terminal.seed,
                              .usage = terminal.usage,
                              .timings = terminal.timings});
  }
  observer_->OnTerminal(
      sequence->request.path, terminal,
      std::chrono::duration<double>(now - sequence->request.arrival).count());
  LetGo(sequence);
  ++num_undelivered_ends_;
  Post(sequence, std::move(terminal));
  changed_.NotifyAll();
}

void SchedulerImpl::LetGo(const SequencePtr& sequence) {
  const bool was_queued = sequence->state == SequenceState::kQueued;
  if (was_queued) queued_.erase(sequence);
  for (PoolState& pool : pools_) {
    std::erase(pool.prefilling, sequence);
    std::erase(pool.decoding, sequence);
  }
  const auto migration = migrations_.find(sequence->uid);
  if (migration != migrations_.end() &&
      transport_->Abandon(sequence->uid, sequence->epoch)) {
    Unpin(migration->second);
    migrations_.erase(migration);
  }
  ledger_.ReleaseAll(*sequence);
  FreeSlot(*sequence, PoolId::kPrefill);
  FreeSlot(*sequence, PoolId::kDecode);
  admission_.Ended(sequence->request, was_queued);
  deadlines_.erase({sequence->request.deadline, sequence->uid});
  SetState(*sequence, SequenceState::kEnded);
  live_.erase(sequence->uid);
}

void SchedulerImpl::Unpin(const Migration& migration) {
  ledger_.Unpin(stores_.StoreOf(PoolId::kPrefill), migration.source_pin);
  ledger_.Unpin(stores_.StoreOf(PoolId::kDecode), migration.destination_pin);
}

void SchedulerImpl::FreeSlot(Sequence& sequence, PoolId pool) {
  bool& has_slot = sequence.has_slot[static_cast<int>(pool)];
  if (has_slot) ++At(pool).free_slots;
  has_slot = false;
}

void SchedulerImpl::SetState(Sequence& sequence, SequenceState state) {
  --num_in_state_[static_cast<int>(sequence.state)];
  sequence.state = state;
  ++num_in_state_[static_cast<int>(state)];
}

void SchedulerImpl::Expire(SteadyTime now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    End(live_.at(deadlines_.begin()->second),
        absl::DeadlineExceededError("the deadline has passed"));
  }
}

void SchedulerImpl::ReapLoop() {
  mu_.Lock();
  while (!is_stopping_) {
    const SteadyTime now = Clock::now();
    Expire(now);
    if (!ready_.empty()) {
      mu_.Unlock();
      DeliverReady();
      mu_.Lock();
      continue;
    }
    std::chrono::nanoseconds wait = kLongestWait;
    if (!deadlines_.empty()) {
      wait = std::min<std::chrono::nanoseconds>(
          wait, deadlines_.begin()->first - now);
    }
    deadline_added_.WaitFor(&mu_, wait);
  }
  mu_.Unlock();
}

void SchedulerImpl::Post(const SequencePtr& sequence, Event event) {
  sequence->outbox.push_back(std::move(event));
  ready_.push_back(sequence);
}

void SchedulerImpl::DeliverReady() {
  MutexLock lock(&mu_);
  while (!ready_.empty()) {
    const SequencePtr sequence = std::move(ready_.front());
    ready_.pop_front();
    // Whoever is at it looks into the outbox again.
    if (!sequence->is_delivering) Deliver(sequence);
  }
}

void SchedulerImpl::Deliver(const SequencePtr& sequence) {
  sequence->is_delivering = true;
  while (!sequence->outbox.empty()) {
    Event event = std::move(sequence->outbox.front());
    sequence->outbox.pop_front();
    mu_.Unlock();
    bool is_taken = true;
    const bool is_end = std::holds_alternative<Terminal>(event);
    if (is_end) {
      sequence->events->Finish(std::get<Terminal>(std::move(event)));
    } else if (auto* completion = std::get_if<Completion>(&event)) {
      sequence->events->Complete(std::move(*completion));
    } else {
      is_taken = sequence->events->Push(std::get<Delta>(std::move(event)));
    }
    mu_.Lock();
    if (is_end) --num_undelivered_ends_;
    if (!is_taken) {
      End(sequence,
          absl::ResourceExhaustedError("the client reads too slowly"));
    }
  }
  sequence->is_delivering = false;
  if (!live_.empty() || num_undelivered_ends_ > 0) return;
#ifndef NDEBUG
  OVERFILL_CHECK_OK(CheckIntegrityLocked());
#endif
  idle_.NotifyAll();
}

bool SchedulerImpl::HasWork(PoolId pool) const {
  const PoolState& state = At(pool);
  return state.is_stepping || !state.prefilling.empty() ||
         !state.decoding.empty() ||
         (pool == PoolId::kDecode && !migrations_.empty());
}

void SchedulerImpl::Wake(PoolId pool) {
  if (!HasWork(pool)) At(pool).last_step = Clock::now();
}

SchedulerStats SchedulerImpl::Stats() const {
  MutexLock lock(&mu_);
  const auto count = [&](SequenceState state) {
    mu_.AssertHeld();
    return num_in_state_[static_cast<int>(state)];
  };
  SchedulerStats stats;
  stats.requests = {.queued = count(SequenceState::kQueued),
                    .prefilling = count(SequenceState::kPrefilling),
                    .migrating = count(SequenceState::kMigrating),
                    .decoding = count(SequenceState::kDecoding),
                    .swapped = 0};
  stats.queued_tokens = admission_.queued_tokens();
  stats.stores = ledger_.Counts();
  for (int pool = 0; pool < 2; ++pool) {
    stats.last_step[pool] = pools_[pool].last_step;
    stats.has_work[pool] = HasWork(static_cast<PoolId>(pool));
  }
  return stats;
}

absl::Status SchedulerImpl::CheckIntegrity() const {
  MutexLock lock(&mu_);
  return CheckIntegrityLocked();
}

absl::Status SchedulerImpl::CheckIntegrityLocked() const {
  std::vector<const Sequence*> sequences;
  std::array<int32_t, kNumSequenceStates> in_state{};
  std::array<int32_t, 2> slots{};
  for (const auto& [uid, sequence] : live_) {
    sequences.push_back(sequence.get());
    ++in_state[static_cast<int>(sequence->state)];
    for (int pool = 0; pool < 2; ++pool)
      slots[pool] += sequence->has_slot[pool];
  }
  RETURN_IF_ERROR(ledger_.CheckIntegrity(sequences));
  for (int pool = 0; pool < 2; ++pool) {
    const PoolState& state = pools_[pool];
    if (slots[pool] + state.free_slots != state.budget.max_sequences) {
      return absl::InternalError(absl::StrCat(
          PoolName(static_cast<PoolId>(pool)), " pool: ", slots[pool],
          " places taken + ", state.free_slots, " free, of ",
          state.budget.max_sequences));
    }
  }
  constexpr int kEnded = static_cast<int>(SequenceState::kEnded);
  for (int state = 0; state < kEnded; ++state) {
    if (in_state[state] != num_in_state_[state]) {
      return absl::InternalError(
          absl::StrCat(in_state[state], " requests in state ", state,
                       ", counted as ", num_in_state_[state]));
    }
  }
  if (in_state[kEnded] != 0) {
    return absl::InternalError("a request that has ended is live");
  }
  return absl::OkStatus();
}

}  // namespace overfill
