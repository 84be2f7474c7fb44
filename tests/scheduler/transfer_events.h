// Collects what a transport tells.
#ifndef OVERFILL_TESTS_SCHEDULER_TRANSFER_EVENTS_H_
#define OVERFILL_TESTS_SCHEDULER_TRANSFER_EVENTS_H_

#include <chrono>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/mutex.h"
#include "scheduler/kv_transport.h"

namespace overfill {

// Thread-safe; outlives the transport.
class TransferEvents {
 public:
  using Id = std::pair<uint64_t, uint32_t>;  // uid, epoch

  KvTransportEvents Callbacks() {
    return {
        .on_commit = [this](const KvCommit& commit) { Add(commits_, commit); },
        .on_fenced = [this](uint64_t uid,
                            uint32_t epoch) { Add(fenced_, Id(uid, epoch)); }};
  }

  // All so far, in order, once there are `count`; fails after a minute.
  std::vector<KvCommit> AwaitCommits(size_t count) {
    return Await(commits_, count);
  }
  std::vector<Id> AwaitFenced(size_t count) { return Await(fenced_, count); }
  size_t num_commits() { return AwaitCommits(0).size(); }
  size_t num_fenced() { return AwaitFenced(0).size(); }

 private:
  template <typename T>
  void Add(std::vector<T>& list, const T& item) {
    MutexLock lock(&mu_);
    list.push_back(item);
    changed_.NotifyAll();
  }
  template <typename T>
  std::vector<T> Await(const std::vector<T>& list, size_t count) {
    MutexLock lock(&mu_);
    for (int seconds = 0; list.size() < count; ++seconds) {
      OVERFILL_CHECK(seconds < 60) << "an event does not come";
      changed_.WaitFor(&mu_, std::chrono::seconds(1));
    }
    return list;
  }

  Mutex mu_;
  CondVar changed_;
  std::vector<KvCommit> commits_;  // both with the lock
  std::vector<Id> fenced_;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_SCHEDULER_TRANSFER_EVENTS_H_
