// Threads for work that would hold up gRPC's own, such as the tokenizing of a
// large prompt.
#ifndef OVERFILL_SERVER_TASK_POOL_H_
#define OVERFILL_SERVER_TASK_POOL_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace overfill {

// Thread-safe. Tasks begin in the order of Submit.
class TaskPool {
 public:
  // At most `max_tasks` wait, and they hold at most `max_bytes`; an empty
  // queue takes any one task.
  TaskPool(int num_threads, int64_t max_tasks, int64_t max_bytes);
  // Runs what waits, then joins. Nothing may be submitted any more.
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;

  // `bytes` is what the task holds while it waits. False: the queue is full,
  // and the task is dropped.
  [[nodiscard]] bool Submit(int64_t bytes, std::function<void()> task);

 private:
  struct Task {
    int64_t bytes;
    std::function<void()> run;
  };
  void Run();

  const int64_t max_tasks_;
  const int64_t max_bytes_;
  Mutex mu_;
  CondVar changed_;
  std::deque<Task> waiting_ ABSL_GUARDED_BY(mu_);
  int64_t waiting_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_TASK_POOL_H_
