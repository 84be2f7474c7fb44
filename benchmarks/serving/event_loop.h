// What is to be done when, in one thread: the generator's pace.
#ifndef OVERFILL_BENCHMARKS_SERVING_EVENT_LOOP_H_
#define OVERFILL_BENCHMARKS_SERVING_EVENT_LOOP_H_

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"

namespace overfill {

// Seconds on the steady clock (CLOCK_MONOTONIC).
double SteadySeconds();

// Thread-safe. Actions run in the thread that calls Run, in the order of their
// times and, within one, of their posting; they may post more.
class EventLoop {
 public:
  using Action = std::function<void()>;

  // At a time of SteadySeconds, or as soon after as can be.
  void At(double seconds, Action action);
  void Soon(Action action) { At(0, std::move(action)); }

  // Until Stop was called; what is left then is dropped. Once.
  void Run();
  void Stop();

 private:
  // Waits until an action is due; null: stopped.
  Action Next();

  Mutex mu_;
  CondVar changed_;
  // By time and number.
  std::map<std::pair<double, uint64_t>, Action> actions_ ABSL_GUARDED_BY(mu_);
  uint64_t next_number_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_EVENT_LOOP_H_
