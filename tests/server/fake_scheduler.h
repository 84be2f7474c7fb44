// A scheduler without models: tests say what it answers.
#ifndef OVERFILL_TESTS_SERVER_FAKE_SCHEDULER_H_
#define OVERFILL_TESTS_SERVER_FAKE_SCHEDULER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "scheduler/scheduler.h"

namespace overfill {

// Thread-safe. A cancelled request ends at once, from the thread of Cancel.
class FakeScheduler : public Scheduler {
 public:
  struct Submitted {
    uint64_t uid;
    Request request;
    std::weak_ptr<EventQueue> events;
  };

  struct Prechecked {
    std::string tenant;
    int64_t prompt_bytes;
    SteadyTime deadline;
  };

  ~FakeScheduler() override = default;

  absl::StatusOr<uint64_t> Submit(Request request,
                                  std::shared_ptr<EventQueue> events) override {
    uint64_t uid;
    {
      MutexLock lock(&mu_);
      ++num_submits_;
      if (!refusals_.empty()) {
        const absl::Status refusal = refusals_.front();
        refusals_.erase(refusals_.begin());
        return refusal;
      }
      uid = ++last_uid_;
      submitted_.push_back({uid, std::move(request), events});
      live_[uid] = std::move(events);
    }
    changed_.NotifyAll();
    return uid;
  }

  absl::Status Precheck(absl::string_view tenant, int64_t prompt_bytes,
                        SteadyTime deadline) override {
    MutexLock lock(&mu_);
    prechecks_.push_back({std::string(tenant), prompt_bytes, deadline});
    return precheck_;
  }
  std::chrono::nanoseconds RetryAfter() const override {
    MutexLock lock(&mu_);
    return retry_after_;
  }

  void Cancel(uint64_t uid, absl::Status status) override {
    {
      MutexLock lock(&mu_);
      cancels_[uid] = status;
    }
    Terminal terminal;
    terminal.status = std::move(status);
    End(uid, std::move(terminal));
    changed_.NotifyAll();
  }

  void StopAdmission() override {}
  bool WaitIdle(std::chrono::nanoseconds timeout) override {
    const SteadyTime end = std::chrono::steady_clock::now() + timeout;
    MutexLock lock(&mu_);
    ++num_idle_waits_;
    while (!live_.empty()) {
      const auto left = end - std::chrono::steady_clock::now();
      if (left <= std::chrono::nanoseconds(0)) return false;
      changed_.WaitFor(&mu_, left);
    }
    return true;
  }
  SchedulerStats Stats() const override {
    MutexLock lock(&mu_);
    return stats_;
  }
  absl::Status CheckIntegrity() const override {
    MutexLock lock(&mu_);
    ++num_integrity_checks_;
    return integrity_;
  }

  // What the above answer from now on.
  void SetPrecheck(absl::Status status) {
    MutexLock lock(&mu_);
    precheck_ = std::move(status);
  }
  void SetRetryAfter(std::chrono::nanoseconds time) {
    MutexLock lock(&mu_);
    retry_after_ = time;
  }
  void SetStats(const SchedulerStats& stats) {
    MutexLock lock(&mu_);
    stats_ = stats;
  }
  void SetIntegrity(absl::Status status) {
    MutexLock lock(&mu_);
    integrity_ = std::move(status);
  }
  int num_idle_waits() const {
    MutexLock lock(&mu_);
    return num_idle_waits_;
  }
  std::vector<Prechecked> prechecks() const {
    MutexLock lock(&mu_);
    return prechecks_;
  }
  int num_integrity_checks() const {
    MutexLock lock(&mu_);
    return num_integrity_checks_;
  }

  // The next Submit answers with `status`.
  void RefuseNext(absl::Status status) {
    MutexLock lock(&mu_);
    refusals_.push_back(std::move(status));
  }

  // Waits for the request number `index`, from 0.
  Submitted WaitForRequest(size_t index) {
    MutexLock lock(&mu_);
    while (submitted_.size() <= index) changed_.Wait(&mu_);
    return submitted_[index];
  }
  absl::Status WaitForCancel(uint64_t uid) {
    MutexLock lock(&mu_);
    while (cancels_.count(uid) == 0) changed_.Wait(&mu_);
    return cancels_[uid];
  }

  // False when the request has ended, or its queue takes no more; then the
  // caller ends it.
  bool Push(uint64_t uid, Delta delta) {
    const auto queue = Find(uid);
    return queue != nullptr && queue->Push(std::move(delta));
  }
  // One sample of several.
  void Complete(uint64_t uid, Completion completion) {
    if (const auto queue = Find(uid)) queue->Complete(std::move(completion));
  }
  // The terminal event alone; no effect on one that has ended.
  void Finish(uint64_t uid, Terminal terminal) {
    const std::shared_ptr<EventQueue> queue = Take(uid);
    if (queue == nullptr) return;
    (void)queue->Finish(std::move(terminal));
    changed_.NotifyAll();
  }
  // The end of a request of one sample: OK comes after its completion.
  void End(uint64_t uid, Terminal terminal, Completion completion = {}) {
    const std::shared_ptr<EventQueue> queue = Take(uid);
    if (queue == nullptr) return;
    if (terminal.status.ok()) {
      completion.seed = terminal.seed;
      completion.finish_reason = terminal.finish_reason;
      completion.usage = terminal.usage;
      completion.timings = terminal.timings;
      queue->Complete(std::move(completion));
    }
    (void)queue->Finish(std::move(terminal));
    changed_.NotifyAll();
  }

  std::vector<uint64_t> Live() const {
    MutexLock lock(&mu_);
    std::vector<uint64_t> uids;
    for (const auto& [uid, queue] : live_) uids.push_back(uid);
    return uids;
  }
  int num_submits() const {
    MutexLock lock(&mu_);
    return num_submits_;
  }
  int num_ended() const {
    MutexLock lock(&mu_);
    return num_ended_;
  }

 private:
  // Null where it has ended; from now on it has.
  std::shared_ptr<EventQueue> Take(uint64_t uid) {
    MutexLock lock(&mu_);
    const auto found = live_.find(uid);
    if (found == live_.end()) return nullptr;
    std::shared_ptr<EventQueue> queue = std::move(found->second);
    live_.erase(found);
    ++num_ended_;
    return queue;
  }
  std::shared_ptr<EventQueue> Find(uint64_t uid) const {
    MutexLock lock(&mu_);
    const auto found = live_.find(uid);
    return found == live_.end() ? nullptr : found->second;
  }

  mutable Mutex mu_;
  CondVar changed_;
  uint64_t last_uid_ ABSL_GUARDED_BY(mu_) = 0;
  int num_submits_ ABSL_GUARDED_BY(mu_) = 0;
  int num_ended_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status precheck_ ABSL_GUARDED_BY(mu_);
  std::vector<Prechecked> prechecks_ ABSL_GUARDED_BY(mu_);
  int num_idle_waits_ ABSL_GUARDED_BY(mu_) = 0;
  std::chrono::nanoseconds retry_after_ ABSL_GUARDED_BY(mu_) =
      std::chrono::seconds(1);
  SchedulerStats stats_ ABSL_GUARDED_BY(mu_);
  absl::Status integrity_ ABSL_GUARDED_BY(mu_);
  mutable int num_integrity_checks_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<absl::Status> refusals_ ABSL_GUARDED_BY(mu_);
  std::vector<Submitted> submitted_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, absl::Status> cancels_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, std::shared_ptr<EventQueue>> live_ ABSL_GUARDED_BY(mu_);
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_SERVER_FAKE_SCHEDULER_H_
