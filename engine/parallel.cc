#include "engine/parallel.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace overfill {
namespace {

class TaskRun {
 public:
  TaskRun(size_t num_tasks, const std::function<absl::Status(size_t)>& task)
      : num_tasks_(num_tasks), task_(task) {}

  void Work() {
    while (!stop_.load(std::memory_order_relaxed)) {
      const size_t i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= num_tasks_) return;
      absl::Status status = task_(i);
      if (!status.ok()) Fail(i, std::move(status));
    }
  }

  absl::Status status() {
    MutexLock lock(&mu_);
    return status_;
  }

 private:
  void Fail(size_t i, absl::Status status) {
    stop_.store(true, std::memory_order_relaxed);
    MutexLock lock(&mu_);
    if (!status_.ok() && i > failed_task_) return;
    failed_task_ = i;
    status_ = std::move(status);
  }

  const size_t num_tasks_;
  const std::function<absl::Status(size_t)>& task_;
  std::atomic<size_t> next_ = 0;
  std::atomic<bool> stop_ = false;
  Mutex mu_;
  size_t failed_task_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

int LoadingThreads(const Device& device) {
  const int team = device.info().num_threads;
  if (team > 0) return team;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

absl::Status ParallelTasks(int num_threads, size_t num_tasks,
                           const std::function<absl::Status(size_t)>& task) {
  TaskRun run(num_tasks, task);
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min<size_t>(num_threads, num_tasks); ++i) {
    // Where there may be no more threads, those that there are do the work.
    try {
      threads.emplace_back([&run] { run.Work(); });
    } catch (const std::system_error&) {
      break;
    }
  }
  run.Work();
  for (std::thread& thread : threads) thread.join();
  return run.status();
}

}  // namespace overfill
