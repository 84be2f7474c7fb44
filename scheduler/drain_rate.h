// How fast the queue drains.
#ifndef OVERFILL_SCHEDULER_DRAIN_RATE_H_
#define OVERFILL_SCHEDULER_DRAIN_RATE_H_

#include <chrono>
#include <cstdint>

#include "scheduler/request.h"

namespace overfill {

// Prompt tokens that leave the queue to be read, per second in which something
// waits: without a queue, a low rate says only that little was asked for. The
// last ten such seconds or so count. Times that go backwards count as no time.
// Not thread-safe.
class DrainRate {
 public:
  // Before the first measurement.
  static constexpr std::chrono::nanoseconds kUnknown = std::chrono::seconds(1);
  static constexpr std::chrono::nanoseconds kLongest = std::chrono::hours(1);

  // Whether something waits from `now` on. Repeating it is harmless.
  void SetWaiting(bool is_waiting, SteadyTime now);
  // A request of the queue starts.
  void Started(int64_t prompt_tokens, SteadyTime now);

  // Something has waited long enough to tell, and something has ever started.
  bool IsMeasured(SteadyTime now) const;
  // 0 where it is not measured.
  double TokensPerSecond(SteadyTime now) const;
  // How long the queue takes to get rid of so many tokens: 0 for none, at most
  // kLongest, kUnknown where it is not measured.
  std::chrono::nanoseconds TimeToDrain(int64_t queued_tokens,
                                       SteadyTime now) const;

 private:
  // Both fade alike, with the seconds that something waits.
  struct Sums {
    double tokens = 0;
    double seconds = 0;
  };
  Sums At(SteadyTime now) const;

  Sums sums_;
  SteadyTime updated_;
  bool is_waiting_ = false;
  bool has_started_ = false;  // whatever has faded since
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_DRAIN_RATE_H_
