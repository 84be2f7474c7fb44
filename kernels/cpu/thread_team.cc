#include "kernels/cpu/thread_team.h"

#include <algorithm>
#include <chrono>

#include "base/check.h"

namespace overfill {
namespace {

constexpr uint64_t kGenerationStep = uint64_t{1} << 16;
constexpr uint64_t kActiveMask = kGenerationStep - 1;

uint64_t Generation(uint64_t word) { return word / kGenerationStep; }
bool IsOpen(uint64_t word) { return Generation(word) % 2 == 1; }

// How long a worker looks for the next job before it sleeps: longer than the
// pauses between the ops of a step, shorter than what a busy machine minds.
constexpr std::chrono::microseconds kSpin(100);
constexpr int kPausesPerLook = 32;

void Pause() { __builtin_ia32_pause(); }

}  // namespace

void ThreadTeam::WaiterQueue::PushBack(Waiter* waiter) {
  waiter->next = nullptr;
  (empty() ? head : tail->next) = waiter;
  tail = waiter;
}

void ThreadTeam::WaiterQueue::PushFront(Waiter* waiter) {
  waiter->next = head;
  if (empty()) tail = waiter;
  head = waiter;
}

ThreadTeam::Waiter* ThreadTeam::WaiterQueue::Pop() {
  Waiter* waiter = head;
  head = waiter->next;
  return waiter;
}

ThreadTeam::ThreadTeam(int num_threads) {
  OVERFILL_CHECK_GE(num_threads, 1);
  OVERFILL_CHECK_LT(static_cast<uint64_t>(num_threads), kActiveMask);
  workers_.reserve(num_threads - 1);
  for (int thread = 1; thread < num_threads; ++thread) {
    workers_.emplace_back([this, thread] { WorkerLoop(thread); });
  }
}

ThreadTeam::~ThreadTeam() {
  stopping_.store(true);
  {
    MutexLock lock(&sleep_mutex_);
    sleep_cv_.NotifyAll();
  }
  for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::Acquire(StreamPriority priority) {
  MutexLock lock(&mutex_);
  if (!owned_) {
    owned_ = true;
    return;
  }
  Waiter self;
  if (priority == StreamPriority::kHigh) {
    high_.PushBack(&self);
    num_waiting_high_.fetch_add(1, std::memory_order_relaxed);
  } else {
    low_.PushBack(&self);
  }
  WaitUntilGranted(&self);
}

void ThreadTeam::Release() {
  MutexLock lock(&mutex_);
  OVERFILL_CHECK(owned_);
  PassOn();
}

void ThreadTeam::Yield() {
  if (num_waiting_high_.load(std::memory_order_relaxed) == 0) return;
  MutexLock lock(&mutex_);
  if (high_.empty()) return;
  Waiter self;
  // First among the kLow: a step in progress ends before another one begins.
  low_.PushFront(&self);
  high_turns_ = 0;
  PassOn();
  WaitUntilGranted(&self);
}

void ThreadTeam::PassOn() {
  Waiter* next = nullptr;
  if (!high_.empty() && (low_.empty() || high_turns_ < kMaxHighTurns)) {
    next = high_.Pop();
    num_waiting_high_.fetch_sub(1, std::memory_order_relaxed);
    high_turns_ = low_.empty() ? 0 : high_turns_ + 1;
  } else if (!low_.empty()) {
    next = low_.Pop();
    high_turns_ = 0;
  }
  if (next == nullptr) {
    owned_ = false;
    return;
  }
  next->granted = true;
  // Under the lock: the waiter is gone as soon as it sees the grant.
  next->granted_cv.NotifyOne();
}

void ThreadTeam::WaitUntilGranted(Waiter* self) {
  while (!self->granted) self->granted_cv.Wait(&mutex_);
}

void ThreadTeam::Run(int64_t num_items, int64_t grain, int64_t parts,
                     Task task) {
  if (num_items <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (workers_.empty() || num_items <= grain) {
    for (int64_t begin = 0; begin < num_items; begin += grain) {
      task.call(task.context, begin, std::min(begin + grain, num_items), 0);
    }
    return;
  }
  task_ = task;
  num_items_ = num_items;
  grain_ = grain;
  parts_ = parts;
  next_item_.store(0, std::memory_order_relaxed);
  // Sequentially consistent against a worker that goes to sleep: either it
  // sees the open word, or this thread sees it sleeping.
  job_word_.fetch_add(kGenerationStep, std::memory_order_seq_cst);
  if (num_sleeping_.load(std::memory_order_seq_cst) > 0) {
    MutexLock lock(&sleep_mutex_);
    sleep_cv_.NotifyAll();
  }
  RunRanges(/*thread=*/0);
  job_word_.fetch_add(kGenerationStep, std::memory_order_acq_rel);
  for (int looks = 0;
       (job_word_.load(std::memory_order_acquire) & kActiveMask) != 0;
       ++looks) {
    // A worker that lost its core needs this one more than we do.
    if (looks < 1000) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadTeam::RunRanges(int thread) {
  const int64_t num_items = num_items_;
  const int64_t grain = grain_;
  const int64_t parts = parts_;
  int64_t begin = next_item_.load(std::memory_order_relaxed);
  while (begin < num_items) {
    const int64_t left = num_items - begin;
    const int64_t size = parts == 0 ? grain : std::max(grain, left / parts);
    const int64_t end = begin + std::min(left, size);
    if (!next_item_.compare_exchange_weak(begin, end,
                                          std::memory_order_relaxed)) {
      continue;
    }
    task_.call(task_.context, begin, end, thread);
    begin = next_item_.load(std::memory_order_relaxed);
  }
}

void ThreadTeam::WorkerLoop(int thread) {
  uint64_t last_generation = 0;
  while (uint64_t word = WaitForJob(last_generation)) {
    if (!job_word_.compare_exchange_strong(word, word + 1,
                                           std::memory_order_acq_rel)) {
      continue;
    }
    last_generation = Generation(word);
    RunRanges(thread);
    job_word_.fetch_sub(1, std::memory_order_release);
  }
}

uint64_t ThreadTeam::WaitForJob(uint64_t last_generation) {
  const auto is_new = [&](uint64_t word) {
    return IsOpen(word) && Generation(word) != last_generation;
  };
  const auto spin_end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      const uint64_t word = job_word_.load(std::memory_order_acquire);
      if (is_new(word)) return word;
      Pause();
    }
    if (stopping_.load(std::memory_order_relaxed)) return 0;
  } while (std::chrono::steady_clock::now() < spin_end);

  MutexLock lock(&sleep_mutex_);
  num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
  uint64_t word;
  for (;;) {
    word = job_word_.load(std::memory_order_seq_cst);
    if (is_new(word)) break;
    if (stopping_.load()) {
      word = 0;
      break;
    }
    sleep_cv_.Wait(&sleep_mutex_);
  }
  num_sleeping_.fetch_sub(1, std::memory_order_relaxed);
  return word;
}

}  // namespace overfill
