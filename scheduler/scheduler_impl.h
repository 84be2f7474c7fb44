// The scheduler behind its interface. What decides is in pure parts (planner,
// ledger, admission, order, transfer table); here they meet threads and one
// lock.
#ifndef OVERFILL_SCHEDULER_SCHEDULER_IMPL_H_
#define OVERFILL_SCHEDULER_SCHEDULER_IMPL_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "scheduler/admission.h"
#include "scheduler/chunk_governor.h"
#include "scheduler/fair_share.h"
#include "scheduler/kv_ledger.h"
#include "scheduler/kv_transport.h"
#include "scheduler/pool.h"
#include "scheduler/scheduler.h"
#include "scheduler/sequence.h"
#include "scheduler/step_planner.h"
#include "scheduler/transfer_table.h"
#include "scheduler/turn_order.h"

namespace overfill {

inline PoolId OtherPool(PoolId pool) {
  return pool == PoolId::kPrefill ? PoolId::kDecode : PoolId::kPrefill;
}

// Threads: one per pool, one for deadlines and leases, the transport's. The
// lock is never held while a model runs, while KV is copied, or while an event
// goes into a queue.
//
// Code by file: scheduler_impl.cc the beginning and the end of a request,
// scheduler_plan.cc what a step is made of, scheduler_steps.cc what it has
// done, scheduler_transfers.cc the KV's way between the stores,
// scheduler_stats.cc what can be seen from outside.
class SchedulerImpl final : public Scheduler, private PoolHost {
 public:
  // Everything has been checked and filled in by Scheduler::Create.
  SchedulerImpl(const SchedulerOptions& options,
                const SchedulerBackend& backend,
                const std::array<StepBudget, 2>& budgets,
                SchedulerObserver* observer);
  // NOLINTNEXTLINE(bugprone-exception-escape)
  ~SchedulerImpl() override;

  absl::Status Precheck(absl::string_view tenant, int64_t prompt_bytes,
                        SteadyTime deadline) override;
  std::chrono::nanoseconds RetryAfter() const override;
  absl::StatusOr<uint64_t> Submit(Request request,
                                  std::shared_ptr<EventQueue> events) override;
  void Cancel(uint64_t uid, absl::Status status) override;
  void StopAdmission() override;
  bool WaitIdle(std::chrono::nanoseconds timeout) override;
  SchedulerStats Stats() const override;
  absl::Status CheckIntegrity() const override;

 private:
  struct PoolState {
    StepBudget budget;
    int32_t free_slots = 0;
    std::vector<SequencePtr> prefilling;
    std::vector<SequencePtr> decoding;
    std::optional<RunningStep> running_step;
    Step* step = nullptr;  // the same one, in the hands of the pool's thread
    SteadyTime last_step;
    // The last step that gave tokens to running answers, and the prompt rows
    // that have been under way in either pool since.
    SteadyTime last_decode_step;
    int32_t prompt_rows_since = 0;
    // Its prompts wait until then for a gap without them to be measured, and
    // do not wait again before the other time.
    SteadyTime pause_until;
    SteadyTime next_pause;
    bool is_pause_open = false;  // nothing was measured since it began
  };

  // A transfer under way holds the blocks of both sides, whatever becomes of
  // the sequence.
  struct Pins {
    SequencePtr sequence;
    uint64_t source = 0;
    uint64_t destination = 0;
  };
  using TransferId = std::pair<uint64_t, uint32_t>;  // uid, epoch

  // PoolHost.
  std::unique_ptr<Step> Plan(PoolId pool) override;
  void Apply(std::unique_ptr<Step> step, absl::StatusOr<StepResult> result,
             double seconds) override;

  // Planning.
  std::unique_ptr<Step> BuildStep(PoolId pool)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The running sequences that have the blocks for their next token.
  std::vector<SequencePtr> Runnable(PoolId pool)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Sees to it that blocks for `sequence` come free.
  void MakeRoom(const SequencePtr& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether blocks come free soon without anybody's leaving: not those that
  // wait for a fence, which may never come.
  bool IsRoomComing(int store) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // `candidates` become parallel to the input's.
  PlanInput MakeInput(PoolId pool, int32_t num_decode_rows,
                      std::vector<SequencePtr>& candidates)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  StepBudget BudgetNow(PoolId pool) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether a pool's prompts are to wait for a gap without them: at most for
  // kLongestPause at a time, and for one part in kPauseSpacing of all the time
  // where nothing can be measured.
  bool IsPausing(PoolId pool, int32_t num_decode_rows, SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // A gap without prompts has been measured.
  void EndPauses(SteadyTime now, std::chrono::steady_clock::duration gap)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Resources AvailableNow() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The queued requests that may start next, in the order of their turns.
  std::vector<LivePtr> NextQueued(SteadyTime now, const Ageing& ageing) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Up to the highest priority of what reads its prompt in the pool, and of all
  // that waits for a place.
  Ageing AgeingNow(PoolId pool) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Resources NeedsToStart(const LiveRequest& live,
                         const KvLedger::Prefix& prefix) const;
  Resources NeedsToReturn(const Sequence& sequence) const;
  // Looked up anew when blocks of the store have come or gone.
  const KvLedger::Prefix& PrefixOf(LiveRequest& live) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether so much can come free, whatever becomes of the transfers that are
  // being fenced.
  bool FitsBesideFenced(const Resources& needs) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Start(const LivePtr& live) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddRows(const SequencePtr& sequence, int32_t prompt_rows, Step& step)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Launch(Step& step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Applying.
  void ApplyTo(const Step& step, size_t index,
               std::span<const SampledToken> tokens, SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Account(const Step& step, bool is_whole, SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // False: the token is none, and the request has ended.
  bool CheckToken(const SequencePtr& sequence, const SampledToken& token)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The end of the sample's answer, if this token is it; its delta is posted.
  std::optional<OutputStream::End> TakeToken(const SequencePtr& sequence,
                                             const SampledToken& token,
                                             SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Token 0 of every sample.
  void LeavePrompt(const LivePtr& live, std::span<const SampledToken> tokens,
                   SteadyTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Migrate(const SequencePtr& sequence, SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The prompt's KV is with the answer's pool, in the blocks of `carrier`.
  void BeginAnswers(const SequencePtr& carrier)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void BeginDecode(const SequencePtr& sequence)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Transfers.
  void Fork(const SequencePtr& carrier, const SequencePtr& sample)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Preempt(const SequencePtr& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Return(const SequencePtr& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Of the positions [0, num_computed), between what the sequence holds.
  void MoveAll(const SequencePtr& sequence, SequenceState state, int from,
               int to) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Send(const SequencePtr& sequence, KvTransfer transfer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnCommit(const KvCommit& commit);
  void OnFenced(uint64_t uid, uint32_t epoch);
  void FinishTransfer(const SequencePtr& sequence,
                      const TransferTable::Finished& finished,
                      const KvCommit& commit)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Arrive(const SequencePtr& sequence, const KvTransfer& transfer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ExpireLeases(SteadyTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Where the transfer has not begun, it never will.
  void Abandon(const Sequence& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The transfer touches its blocks no more.
  SequencePtr Unpin(const KvTransfer& transfer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // The end of a request; no effect on one that has ended. By value: the
  // caller's pointer may be in what is erased.
  void End(LivePtr live, absl::Status status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndBroken(const SequencePtr& sequence, const absl::Status& why,
                 absl::string_view message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The end of one sample's answer, and of the request with the last one.
  void FinishSample(const SequencePtr& sequence, const OutputStream::End& end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PostTerminal(const LivePtr& live, absl::Status status,
                    FinishReason reason, const Sequence& last)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LetGo(const SequencePtr& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Stops the steps of which nothing is wanted any more.
  void AbandonSteps() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FreeSlot(Sequence& sequence, PoolId pool)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Ends every request whose deadline is past.
  void Expire(SteadyTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReapLoop();
  std::chrono::nanoseconds UntilNextTick(SteadyTime now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // On demand, and in debug builds whenever the last request has ended.
  absl::Status CheckIntegrityLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Puts an event into the outbox. Whoever does is to call DeliverReady once
  // the lock is free.
  void Post(LiveRequest& live, Event event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DeliverReady() ABSL_LOCKS_EXCLUDED(mu_);
  void Deliver(const LivePtr& live) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // A line for the log, which is written once the lock is free.
  void Complain(std::string line) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  bool HasWork(PoolId pool) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Work comes to a pool: an idle one's heartbeat begins anew.
  void Wake(PoolId pool) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  PoolState& At(PoolId pool) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return pools_[static_cast<int>(pool)];
  }
  const PoolState& At(PoolId pool) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return pools_[static_cast<int>(pool)];
  }
  int StoreOf(PoolId pool) const { return stores_.StoreOf(pool); }
  // Of a live one.
  LivePtr Find(const Sequence& sequence) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return live_.at(sequence.live->uid);
  }

  const SchedulerOptions options_;
  const SchedulerBackend backend_;
  const KvStores stores_;
  const AdmissionLimits limits_;
  SchedulerObserver silent_;
  SchedulerObserver* const observer_;

  mutable Mutex mu_;
  CondVar changed_;  // there may be something to plan
  CondVar tick_;     // the reaper has something new to wait for
  CondVar idle_;     // nothing is live any more
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t next_uid_ ABSL_GUARDED_BY(mu_) = 1;
  Admission admission_ ABSL_GUARDED_BY(mu_);
  KvLedger ledger_ ABSL_GUARDED_BY(mu_);
  FairShare share_ ABSL_GUARDED_BY(mu_);
  ChunkGovernor governor_ ABSL_GUARDED_BY(mu_);
  std::array<PoolState, 2> pools_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, LivePtr> live_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, LivePtr> queued_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, SequencePtr> swapped_ ABSL_GUARDED_BY(mu_);
  TransferTable transfers_ ABSL_GUARDED_BY(mu_);
  std::map<TransferId, Pins> pins_ ABSL_GUARDED_BY(mu_);  // of transfers_
  std::set<std::pair<SteadyTime, uint64_t>> deadlines_ ABSL_GUARDED_BY(mu_);
  std::deque<LivePtr> ready_ ABSL_GUARDED_BY(mu_);  // outbox not empty
  std::vector<std::string> complaints_ ABSL_GUARDED_BY(mu_);
  int32_t num_undelivered_ends_ ABSL_GUARDED_BY(mu_) = 0;

  // Threads, made last and joined first.
  std::unique_ptr<KvTransport> transport_;  // null where nothing is ever moved
  std::array<std::unique_ptr<Pool>, 2> threads_;
  std::thread reaper_;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_SCHEDULER_IMPL_H_
