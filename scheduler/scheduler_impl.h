// The scheduler behind its interface. What decides is in pure parts (planner,
// ledger, admission, transfer rules); here they meet threads and one lock.
#ifndef OVERFILL_SCHEDULER_SCHEDULER_IMPL_H_
#define OVERFILL_SCHEDULER_SCHEDULER_IMPL_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "scheduler/admission.h"
#include "scheduler/kv_ledger.h"
#include "scheduler/kv_transport.h"
#include "scheduler/pool.h"
#include "scheduler/scheduler.h"
#include "scheduler/sequence.h"
#include "scheduler/step_planner.h"

namespace overfill {

// Threads: one per pool, one for the deadlines, the transport's. The lock is
// never held while a model runs, while KV is copied, or while an event goes
// into a queue.
class SchedulerImpl final : public Scheduler, private PoolHost {
 public:
  // Everything has been checked and filled in by Scheduler::Create.
  SchedulerImpl(const SchedulerOptions& options,
                const SchedulerBackend& backend,
                const std::array<StepBudget, 2>& budgets,
                SchedulerObserver* observer);
  ~SchedulerImpl() override;

  absl::StatusOr<uint64_t> Submit(Request request,
                                  std::shared_ptr<EventQueue> events) override;
  absl::Status Precheck(absl::string_view tenant, int64_t prompt_bytes,
                        SteadyTime deadline) override;
  std::chrono::nanoseconds RetryAfter() const override;
  void Cancel(uint64_t uid, absl::Status status) override;
  void StopAdmission() override;
  bool WaitIdle(std::chrono::nanoseconds timeout) override;
  SchedulerStats Stats() const override;
  absl::Status CheckIntegrity() const override;

 private:
  // By priority, then arrival.
  struct ByTurn {
    bool operator()(const SequencePtr& a, const SequencePtr& b) const {
      if (a->request.priority != b->request.priority) {
        return a->request.priority > b->request.priority;
      }
      return a->uid < b->uid;
    }
  };

  struct PoolState {
    StepBudget budget;
    int32_t free_slots = 0;
    std::vector<SequencePtr> prefilling;
    std::vector<SequencePtr> decoding;
    bool is_stepping = false;
    SteadyTime last_step;
  };

  // A copy under way. It holds the blocks of both sides, whatever becomes of
  // the sequence.
  struct Migration {
    SequencePtr sequence;
    KvTransfer transfer;
    uint64_t source_pin = 0;
    uint64_t destination_pin = 0;
  };

  // PoolHost.
  std::unique_ptr<Step> Plan(PoolId pool) override;
  void Apply(std::unique_ptr<Step> step, absl::StatusOr<StepResult> result,
             double seconds) override;

  // Planning.
  std::unique_ptr<Step> BuildStep(PoolId pool)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // `prompts` become parallel to the input's candidates.
  PlanInput MakeInput(PoolId pool, std::vector<SequencePtr>& prompts) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Resources NeedsOf(const Sequence& sequence) const;
  void Start(const SequencePtr& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddRows(const SequencePtr& sequence, int32_t prompt_rows, Step& step)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Applying.
  void TakeToken(const SequencePtr& sequence, const SampledToken& token,
                 SteadyTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TellToken(Sequence& sequence, SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LeavePrompt(const SequencePtr& sequence, SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void BeginCopy(const SequencePtr& sequence)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnCommit(const KvCommit& commit);
  void Commit(const Migration& migration, const KvCommit& commit)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void BeginDecode(const SequencePtr& sequence)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // The end of a request; no effect on one that has ended. By value: the
  // caller's pointer may be in what is erased.
  void End(SequencePtr sequence, absl::Status status,
           const OutputStream::End* end = nullptr)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LetGo(const SequencePtr& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Unpin(const Migration& migration) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FreeSlot(Sequence& sequence, PoolId pool)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SetState(Sequence& sequence, SequenceState state)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Ends every request whose deadline is past.
  void Expire(SteadyTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReapLoop();

  // On demand, and in debug builds whenever the last request has ended.
  absl::Status CheckIntegrityLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Puts an event into the outbox. Whoever does is to call DeliverReady once
  // the lock is free.
  void Post(const SequencePtr& sequence, Event event)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DeliverReady() ABSL_LOCKS_EXCLUDED(mu_);
  void Deliver(const SequencePtr& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  bool HasWork(PoolId pool) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Work comes to a pool: an idle one's heartbeat begins anew.
  void Wake(PoolId pool) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  PoolState& At(PoolId pool) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return pools_[static_cast<int>(pool)];
  }
  const PoolState& At(PoolId pool) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return pools_[static_cast<int>(pool)];
  }

  const SchedulerOptions options_;
  const SchedulerBackend backend_;
  const KvStores stores_;
  const AdmissionLimits limits_;
  SchedulerObserver silent_;
  SchedulerObserver* const observer_;

  mutable Mutex mu_;
  CondVar changed_;         // there may be something to plan
  CondVar deadline_added_;  // for the reaper
  CondVar idle_;            // nothing is live any more
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t next_uid_ ABSL_GUARDED_BY(mu_) = 1;
  Admission admission_ ABSL_GUARDED_BY(mu_);
  KvLedger ledger_ ABSL_GUARDED_BY(mu_);
  std::array<PoolState, 2> pools_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, SequencePtr> live_ ABSL_GUARDED_BY(mu_);
  std::set<SequencePtr, ByTurn> queued_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, Migration> migrations_ ABSL_GUARDED_BY(mu_);  // by uid
  std::set<std::pair<SteadyTime, uint64_t>> deadlines_ ABSL_GUARDED_BY(mu_);
  std::array<int32_t, kNumSequenceStates> num_in_state_ ABSL_GUARDED_BY(mu_){};
  std::deque<SequencePtr> ready_ ABSL_GUARDED_BY(mu_);  // outbox not empty
  int32_t num_undelivered_ends_ ABSL_GUARDED_BY(mu_) = 0;

  // Threads, made last and joined first.
  std::unique_ptr<KvTransport> transport_;  // null where the store is shared
  std::array<std::unique_ptr<Pool>, 2> threads_;
  std::thread reaper_;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_SCHEDULER_IMPL_H_
