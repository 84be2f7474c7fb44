#include "server/task_pool.h"

#include <utility>

namespace overfill {

TaskPool::TaskPool(int num_threads, int64_t max_tasks, int64_t max_bytes)
    : max_tasks_(max_tasks), max_bytes_(max_bytes) {
  for (int i = 0; i < num_threads; ++i) {
    threads_.emplace_back([this] { Run(); });
  }
}

TaskPool::~TaskPool() {
  {
    MutexLock lock(&mu_);
    stopped_ = true;
  }
  changed_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

bool TaskPool::Submit(int64_t bytes, std::function<void()> task) {
  {
    MutexLock lock(&mu_);
    if (!waiting_.empty() &&
        (static_cast<int64_t>(waiting_.size()) >= max_tasks_ ||
         bytes > max_bytes_ - waiting_bytes_)) {
      return false;
    }
    waiting_.push_back({bytes, std::move(task)});
    waiting_bytes_ += bytes;
  }
  changed_.NotifyOne();
  return true;
}

void TaskPool::Run() {
  while (true) {
    Task task;
    {
      MutexLock lock(&mu_);
      while (waiting_.empty() && !stopped_) changed_.Wait(&mu_);
      if (waiting_.empty()) return;
      task = std::move(waiting_.front());
      waiting_.pop_front();
      waiting_bytes_ -= task.bytes;
    }
    task.run();
  }
}

}  // namespace overfill
