// The project's locks: std::mutex with clang's thread-safety annotations.
// Debian's Abseil is not instrumented, so the thread sanitizer cannot see into
// absl::Mutex; it does see std::mutex.
#ifndef OVERFILL_BASE_MUTEX_H_
#define OVERFILL_BASE_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define OVERFILL_THREAD_SANITIZER 1
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define OVERFILL_THREAD_SANITIZER 1
#endif
#ifndef OVERFILL_THREAD_SANITIZER
#define OVERFILL_THREAD_SANITIZER 0
#endif

namespace overfill {

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mu_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mu_.unlock(); }
  bool TryLock() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true) {
    return mu_.try_lock();
  }
  // Tells the analysis that the caller holds the lock; checks nothing.
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {}

 private:
  friend class CondVar;
  std::mutex mu_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) {
    mu_->Lock();
  }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mu_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mu_;
};

// Wakes may be spurious: wait in a loop over the condition.
class CondVar {
 public:
  void Wait(Mutex* mu) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu->mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // Returns false when `timeout` passed first.
  bool WaitFor(Mutex* mu, std::chrono::nanoseconds timeout)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu->mu_, std::adopt_lock);
#if OVERFILL_THREAD_SANITIZER
    // On the system clock: the thread sanitizer of clang 14 does not intercept
    // pthread_cond_clockwait, which waiting on the steady one calls.
    const auto deadline =
        std::chrono::system_clock::now() +
        std::chrono::duration_cast<std::chrono::system_clock::duration>(
            timeout);
    const bool woken =
        cv_.wait_until(lock, deadline) == std::cv_status::no_timeout;
#else
    const bool woken =
        cv_.wait_for(lock, timeout) == std::cv_status::no_timeout;
#endif
    lock.release();
    return woken;
  }
  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace overfill

#endif  // OVERFILL_BASE_MUTEX_H_
