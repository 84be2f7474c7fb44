#include "scheduler/scheduler_impl.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "scheduler/local_transport.h"
#include "scheduler/prefix_keys.h"

namespace overfill {
namespace {

using Clock = std::chrono::steady_clock;

// No single wait is longer: a caller's timeout may be too long to add to a
// time, and the thread sanitizer's build waits on a clock that may be set.
constexpr std::chrono::nanoseconds kLongestWait = std::chrono::seconds(1);

double Seconds(SteadyTime from, SteadyTime to) {
  return std::chrono::duration<double>(to - from).count();
}

// The links that the backend has movers for; null where there is none.
std::unique_ptr<KvTransport> MakeTransport(const SchedulerBackend& backend) {
  LocalTransport::Movers movers;
  const auto add = [&](int32_t from, int32_t to, KvMover* mover) {
    if (mover != nullptr) movers[{from, to}] = mover;
  };
  add(kPrefillStore, kDecodeStore, backend.mover);
  for (int32_t store : {kPrefillStore, kDecodeStore}) {
    add(store, SwapStoreOf(store), backend.swap_out[store]);
    add(SwapStoreOf(store), store, backend.swap_in[store]);
    add(store, store, backend.fork[store]);
  }
  if (movers.empty()) return nullptr;
  std::unique_ptr<KvTransport> local = std::make_unique<LocalTransport>(movers);
  return backend.decorate_transport
             ? backend.decorate_transport(std::move(local))
             : std::move(local);
}

AdmissionLimits LimitsOf(const SchedulerOptions& options,
                         const SchedulerBackend& backend,
                         const std::array<StepBudget, 2>& budgets) {
  const bool can_fork =
      backend.fork[0] && (backend.fork[1] || backend.decode_blocks == 0);
  return {.vocab_size = backend.tokenizer->vocab_size(),
          .max_sequence_tokens = options.max_sequence_tokens,
          // Each sample has a place in a step, and most a block copied.
          .max_samples = can_fork
                             ? MaxSamples(std::min(budgets[0].max_sequences,
                                                   budgets[1].max_sequences))
                             : 1,
          .max_queued_requests = options.max_queued_requests,
          .max_queued_tokens = options.max_queued_tokens,
          .max_queued_bytes = options.max_queued_bytes,
          .max_tenant_queued_requests = options.max_tenant_queued_requests,
          .max_tenant_queued_tokens = options.max_tenant_queued_tokens,
          .max_tenant_queued_bytes = options.max_tenant_queued_bytes};
}

ChunkLimits ChunkLimitsOf(const SchedulerOptions& options) {
  // Fewer rows than these cost nearly as much: the weights are read all the
  // same.
  return {.min_rows = 32,
          .max_rows = options.prefill_chunk_tokens,
          .target_seconds =
              std::chrono::duration<double>(options.itl_target).count()};
}

SteadyTime Earliest(const Request& request,
                    std::chrono::nanoseconds max_duration) {
  if (max_duration >= SteadyTime::max() - request.arrival) {
    return request.deadline;
  }
  return std::min(request.deadline, request.arrival + max_duration);
}

}  // namespace

SchedulerImpl::SchedulerImpl(const SchedulerOptions& options,
                             const SchedulerBackend& backend,
                             const std::array<StepBudget, 2>& budgets,
                             SchedulerObserver* observer)
    : options_(options),
      backend_(backend),
      stores_{.block_tokens = options.block_tokens,
              .prefill_blocks = backend.prefill_blocks,
              .decode_blocks = backend.decode_blocks,
              .swap_blocks = backend.swap_blocks},
      limits_(LimitsOf(options, backend, budgets)),
      observer_(observer ? observer : &silent_),
      admission_(limits_),
      ledger_(stores_),
      governor_(ChunkLimitsOf(options)) {
  {
    MutexLock lock(&mu_);
    for (int pool = 0; pool < 2; ++pool) {
      pools_[pool].budget = budgets[pool];
      pools_[pool].free_slots = budgets[pool].max_sequences;
      pools_[pool].last_step = Clock::now();
    }
  }
  transport_ = MakeTransport(backend_);
  if (transport_) {
    transport_->Start(
        {.on_commit = [this](const KvCommit& commit) { OnCommit(commit); },
         .on_fenced = [this](uint64_t uid,
                             uint32_t epoch) { OnFenced(uid, epoch); }});
  }
  PoolHost* const host = this;
  threads_[0] =
      std::make_unique<Pool>(PoolId::kPrefill, backend_.prefill, host);
  threads_[1] = std::make_unique<Pool>(PoolId::kDecode, backend_.decode, host);
  reaper_ = std::thread([this] { ReapLoop(); });
}

// Only a lack of memory can throw here, and ends the program anywhere.
// NOLINTNEXTLINE(bugprone-exception-escape)
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
  tick_.NotifyAll();
  DeliverReady();
  for (auto& thread : threads_) thread.reset();
  reaper_.join();
  transport_.reset();
  // Another thread may have been at a delivery; all are gone now.
  DeliverReady();
}

absl::Status SchedulerImpl::Precheck(absl::string_view tenant,
                                     int64_t prompt_bytes,
                                     SteadyTime deadline) {
  Refusal refusal;
  {
    MutexLock lock(&mu_);
    refusal = admission_.Precheck(tenant, prompt_bytes, deadline, Clock::now());
  }
  if (!refusal.status.ok()) observer_->OnReject(refusal.reason);
  return refusal.status;
}

std::chrono::nanoseconds SchedulerImpl::RetryAfter() const {
  MutexLock lock(&mu_);
  return admission_.RetryAfter(Clock::now());
}

absl::StatusOr<uint64_t> SchedulerImpl::Submit(
    Request request, std::shared_ptr<EventQueue> events) {
  const auto refuse = [this](const Refusal& refusal) {
    observer_->OnReject(refusal.reason);
    return refusal.status;
  };
  request.deadline = Earliest(request, options_.max_request_duration);
  // Before the work that a refused request is not worth.
  Refusal refusal;
  uint64_t uid;
  {
    MutexLock lock(&mu_);
    refusal = admission_.Check(request, Clock::now());
    uid = next_uid_;
    next_uid_ += std::max(request.n, 1);
  }
  if (refusal.status.ok()) refusal = CheckRequest(request, limits_, stores_);
  if (!refusal.status.ok()) return refuse(refusal);
  auto live = std::make_shared<LiveRequest>(
      uid, std::move(request), std::move(events), backend_.tokenizer);
  if (options_.prefix_cache) {
    const int pool = static_cast<int>(live->first().prompt_pool());
    live->prefix_keys =
        PrefixKeys(backend_.model_digests[pool], live->request.tenant,
                   live->request.prompt_ids, options_.block_tokens,
                   live->first().prompt_tokens() / options_.block_tokens);
  }
  {
    MutexLock lock(&mu_);
    refusal = admission_.Check(live->request, Clock::now());
    if (refusal.status.ok()) {
      Wake(live->first().prompt_pool());
      admission_.Enqueued(live->request, Clock::now());
      share_.Arrive(live->request.tenant);
      live_[uid] = live;
      queued_[uid] = live;
      if (live->request.deadline != SteadyTime::max()) {
        deadlines_.insert({live->request.deadline, uid});
        tick_.NotifyAll();
      }
      changed_.NotifyAll();
    }
  }
  if (!refusal.status.ok()) return refuse(refusal);
  return uid;
}

void SchedulerImpl::Cancel(uint64_t uid, absl::Status status) {
  OVERFILL_CHECK(!status.ok()) << "a request is not cancelled with OK";
  {
    MutexLock lock(&mu_);
    const auto it = live_.find(uid);
    if (it == live_.end()) return;
    End(it->second, std::move(status));
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

void SchedulerImpl::End(LivePtr live, absl::Status status) {
  if (live->has_ended) return;
  const auto last =
      std::max_element(live->samples.begin(), live->samples.end(),
                       [](const Sequence& a, const Sequence& b) {
                         return a.last_token_time < b.last_token_time;
                       });
  PostTerminal(live, std::move(status), FinishReason::kLength, *last);
}

void SchedulerImpl::EndBroken(const SequencePtr& sequence,
                              const absl::Status& why,
                              absl::string_view message) {
  Complain(absl::StrCat("request ", sequence->live->uid,
                        " failed: ", why.ToString()));
  // Whatever is wrong with it may be in its KV.
  ledger_.Withdraw(*sequence);
  End(Find(*sequence), absl::InternalError(message));
}

void SchedulerImpl::FinishSample(const SequencePtr& sequence,
                                 const OutputStream::End& end) {
  const LivePtr live = Find(*sequence);
  Post(*live, Completion{.index = sequence->index,
                         .finish_reason = end.reason,
                         .matched_stop = end.matched_stop,
                         .seed = live->request.sampling.seed,
                         .usage = UsageOf(*sequence),
                         .timings = TimingsOf(*sequence, Clock::now())});
  LetGo(sequence);
  changed_.NotifyAll();
  if (live->num_running > 0) return;
  PostTerminal(live, absl::OkStatus(), end.reason, *sequence);
}

void SchedulerImpl::PostTerminal(const LivePtr& live, absl::Status status,
                                 FinishReason reason, const Sequence& last) {
  const SteadyTime now = Clock::now();
  Terminal terminal{
      .status = std::move(status),
      .finish_reason = reason,
      .seed = live->request.sampling.seed,
      .usage = UsageOf(*live),
      .timings = TimingsOf(last, now),
  };
  const bool was_queued = queued_.erase(live->uid) > 0;
  live->has_ended = true;
  live->ended = now;
  for (int32_t i = 0; i < live->request.n; ++i) LetGo(PtrOf(live, i));
  admission_.Ended(live->request, was_queued, now);
  share_.Leave(live->request.tenant, was_queued);
  deadlines_.erase({live->request.deadline, live->uid});
  ++num_undelivered_ends_;
  Post(*live, std::move(terminal));
  live_.erase(live->uid);
  changed_.NotifyAll();
}

void SchedulerImpl::LetGo(const SequencePtr& sequence) {
  if (sequence->state == SequenceState::kEnded) return;
  for (PoolState& pool : pools_) {
    std::erase(pool.prefilling, sequence);
    std::erase(pool.decoding, sequence);
  }
  swapped_.erase(sequence->uid);
  if (sequence->is_moving()) Abandon(*sequence);
  ledger_.ReleaseAll(*sequence);
  FreeSlot(*sequence, PoolId::kPrefill);
  FreeSlot(*sequence, PoolId::kDecode);
  sequence->state = SequenceState::kEnded;
  --sequence->live->num_running;
  if (sequence->is_in_step) AbandonSteps();
}

void SchedulerImpl::AbandonSteps() {
  for (const PoolState& pool : pools_) {
    if (pool.step == nullptr) continue;
    const auto& sequences = pool.step->sequences;
    if (std::all_of(sequences.begin(), sequences.end(),
                    [](const SequencePtr& sequence) {
                      return sequence->state == SequenceState::kEnded;
                    })) {
      pool.step->is_abandoned = true;
    }
  }
}

void SchedulerImpl::FreeSlot(Sequence& sequence, PoolId pool) {
  bool& has_slot = sequence.has_slot[static_cast<int>(pool)];
  if (has_slot) ++At(pool).free_slots;
  has_slot = false;
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
    ExpireLeases(now);
    if (!ready_.empty() || !complaints_.empty()) {
      mu_.Unlock();
      DeliverReady();
      mu_.Lock();
      continue;
    }
    tick_.WaitFor(&mu_, UntilNextTick(now));
  }
  mu_.Unlock();
}

std::chrono::nanoseconds SchedulerImpl::UntilNextTick(SteadyTime now) const {
  std::chrono::nanoseconds wait = kLongestWait;
  const auto until = [&](SteadyTime time) {
    wait = std::min<std::chrono::nanoseconds>(wait, time - now);
  };
  if (!deadlines_.empty()) until(deadlines_.begin()->first);
  if (transfers_.NextLease() != SteadyTime::max())
    until(transfers_.NextLease());
  return wait;
}

void SchedulerImpl::Post(LiveRequest& live, Event event) {
  live.outbox.push_back(std::move(event));
  ready_.push_back(live_.at(live.uid));
}

void SchedulerImpl::Complain(std::string line) {
  complaints_.push_back(std::move(line));
}

void SchedulerImpl::DeliverReady() {
  std::vector<std::string> complaints;
  {
    MutexLock lock(&mu_);
    complaints = std::move(complaints_);
    complaints_.clear();
  }
  for (const std::string& line : complaints) LogError(line);
  MutexLock lock(&mu_);
  while (!ready_.empty()) {
    const LivePtr live = std::move(ready_.front());
    ready_.pop_front();
    // Whoever is at it looks into the outbox again.
    if (!live->is_delivering) Deliver(live);
  }
}

void SchedulerImpl::Deliver(const LivePtr& live) {
  live->is_delivering = true;
  while (!live->outbox.empty()) {
    Event event = std::move(live->outbox.front());
    live->outbox.pop_front();
    mu_.Unlock();
    bool is_taken = true;
    const bool is_end = std::holds_alternative<Terminal>(event);
    if (is_end) {
      auto& terminal = std::get<Terminal>(event);
      terminal.status = live->events->Finish(terminal);
      observer_->OnTerminal(live->request.path, terminal,
                            Seconds(live->request.arrival, live->ended));
    } else if (auto* completion = std::get_if<Completion>(&event)) {
      observer_->OnCompletion(live->request.path, *completion);
      live->events->Complete(std::move(*completion));
    } else {
      is_taken = live->events->Push(std::get<Delta>(std::move(event)));
    }
    mu_.Lock();
    if (is_end) --num_undelivered_ends_;
    if (!is_taken) {
      End(live, absl::ResourceExhaustedError("the client reads too slowly"));
    }
  }
  live->is_delivering = false;
  if (!live_.empty() || num_undelivered_ends_ > 0) return;
#ifndef NDEBUG
  OVERFILL_CHECK_OK(CheckIntegrityLocked());
#endif
  idle_.NotifyAll();
}

bool SchedulerImpl::HasWork(PoolId pool) const {
  const PoolState& state = At(pool);
  if (state.running_step || !state.prefilling.empty() ||
      !state.decoding.empty()) {
    return true;
  }
  const auto is_here = [&](const SequencePtr& sequence) {
    return sequence->answer_pool() == pool;
  };
  for (const auto& [id, pins] : pins_) {
    if (pins.sequence->is_moving() && is_here(pins.sequence)) return true;
  }
  for (const auto& [uid, sequence] : swapped_) {
    if (is_here(sequence)) return true;
  }
  // What waits behind nothing is to start.
  if (live_.size() != queued_.size()) return false;
  for (const auto& [uid, live] : queued_) {
    if (live->first().prompt_pool() == pool) return true;
  }
  return false;
}

void SchedulerImpl::Wake(PoolId pool) {
  if (!HasWork(pool)) At(pool).last_step = Clock::now();
}

}  // namespace overfill
