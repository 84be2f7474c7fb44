// The threads of a CPU device, shared by its streams.
#ifndef OVERFILL_KERNELS_CPU_THREAD_TEAM_H_
#define OVERFILL_KERNELS_CPU_THREAD_TEAM_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/mutex.h"
#include "kernels/device.h"

namespace overfill {

// A team has one owner at a time: a stream's thread between Acquire and
// Release. The owner is the team's thread 0; the others wait for its loops.
//
// Ownership is handed over, not raced for. A kHigh waiter goes before a kLow
// one, but a kLow waiter is never passed over more than kMaxHighTurns times in
// a row, so that decode steps without a pause cannot starve a prefill.
class ThreadTeam {
 public:
  // `num_threads` >= 1, the owner included.
  explicit ThreadTeam(int num_threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Blocks until the calling thread owns the team.
  void Acquire(StreamPriority priority);
  void Release();
  // By an owner of kLow priority: lets the waiting kHigh streams run, and owns
  // the team again when it returns. Costs one load when none waits.
  void Yield();

  // By the owner: calls fn(begin, end, thread) for ranges that cover
  // [0, num_items) once each, at most `grain` items a range, on all threads at
  // once; 0 <= thread < num_threads(), each value one thread. Returns when all
  // are done. Runs on the owner alone where there are at most `grain` items.
  // Allocates nothing. fn must not call back into the team.
  template <typename Fn>
  void ParallelFor(int64_t num_items, int64_t grain, const Fn& fn) {
    Run(num_items, grain, /*parts=*/0, TaskOf(fn));
  }
  // The same for items that cost alike and lie together in memory, which comes
  // faster in long ranges: those are long at first, and single items at the
  // end, which evens out the threads.
  template <typename Fn>
  void ParallelRanges(int64_t num_items, const Fn& fn) {
    Run(num_items, /*grain=*/1, kRangesPerThread * num_threads(), TaskOf(fn));
  }

 private:
  struct Task {
    void (*call)(const void* context, int64_t begin, int64_t end, int thread);
    const void* context;
  };
  // A thread that waits for the team; lives on that thread's stack.
  struct Waiter {
    CondVar granted_cv;
    bool granted = false;
    Waiter* next = nullptr;
  };
  struct WaiterQueue {
    Waiter* head = nullptr;
    Waiter* tail = nullptr;
    bool empty() const { return head == nullptr; }
    void PushBack(Waiter* waiter);
    void PushFront(Waiter* waiter);
    Waiter* Pop();
  };

  static constexpr int kMaxHighTurns = 8;
  // A long range is this part of what a thread would get of what is left.
  static constexpr int kRangesPerThread = 4;

  template <typename Fn>
  static Task TaskOf(const Fn& fn) {
    static_assert(std::is_invocable_v<const Fn&, int64_t, int64_t, int>);
    return {[](const void* context, int64_t begin, int64_t end, int thread) {
              (*static_cast<const Fn*>(context))(begin, end, thread);
            },
            &fn};
  }

  // `parts`: a range is at least that part of what is left; 0: of no matter.
  void Run(int64_t num_items, int64_t grain, int64_t parts, Task task);
  void RunRanges(int thread);
  void WorkerLoop(int thread);
  // The next job's word (open, not `last_word`'s), or 0 when the team stops.
  uint64_t WaitForJob(uint64_t last_generation);

  // Hands the team to the next waiter, or marks it free.
  void PassOn() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WaitUntilGranted(Waiter* self) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // The running job: written by the owner while `job_word_` is closed and no
  // worker is in, read by workers that joined.
  Task task_ = {nullptr, nullptr};
  int64_t num_items_ = 0;
  int64_t grain_ = 1;
  int64_t parts_ = 0;
  alignas(64) std::atomic<int64_t> next_item_{0};
  // generation << 16 | number of workers inside. An odd generation is a job
  // that may be joined; closing it makes the generation even. A worker joins
  // by raising the count of an open word, so that it can never join late.
  alignas(64) std::atomic<uint64_t> job_word_{0};

  alignas(64) std::atomic<int> num_sleeping_{0};
  std::atomic<bool> stopping_{false};
  Mutex sleep_mutex_;
  CondVar sleep_cv_;

  // Ownership.
  Mutex mutex_;
  bool owned_ ABSL_GUARDED_BY(mutex_) = false;
  WaiterQueue high_ ABSL_GUARDED_BY(mutex_);
  WaiterQueue low_ ABSL_GUARDED_BY(mutex_);
  // kHigh grants since a kLow stream began to wait.
  int high_turns_ ABSL_GUARDED_BY(mutex_) = 0;
  std::atomic<int> num_waiting_high_{0};

  std::vector<std::thread> workers_;
};

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_THREAD_TEAM_H_
