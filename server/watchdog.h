// Looks whether the models still make steps, and whether the blocks add up.
#ifndef OVERFILL_SERVER_WATCHDOG_H_
#define OVERFILL_SERVER_WATCHDOG_H_

#include <array>
#include <chrono>
#include <functional>
#include <string>

#include "scheduler/observer.h"
#include "scheduler/scheduler.h"

namespace overfill {

struct WatchdogOptions {
  // A pool that has work and has not finished a step for so long is stuck; 0:
  // none ever is.
  std::chrono::nanoseconds stuck_step_timeout = std::chrono::seconds(60);
  // From one check of the blocks to the next: it holds the scheduler's lock.
  std::chrono::nanoseconds integrity_period = std::chrono::seconds(10);
};

// Called from within Look. All are set.
struct WatchdogEvents {
  // False when a pool gets stuck, true when none is any more.
  std::function<void(bool serving)> set_serving;
  // Once for each time that the pool gets stuck.
  std::function<void(PoolId pool)> on_stuck_step;
  // For each check of the blocks that fails.
  std::function<void()> on_integrity_failure;
};

// A step that hangs on the device cannot be ended from outside: the watchdog
// says so, in one line of the log and by the server's health, and whoever runs
// the server starts it anew. Not thread-safe.
class Watchdog {
 public:
  // The scheduler outlives the watchdog.
  Watchdog(const WatchdogOptions& options, const Scheduler* scheduler,
           WatchdogEvents events);

  // To be called each second or so, with the steady clock's time.
  void Look(SteadyTime now);

 private:
  void LookAtSteps(SteadyTime now);
  void LookAtBlocks(SteadyTime now);

  const WatchdogOptions options_;
  const Scheduler* const scheduler_;
  const WatchdogEvents events_;
  std::array<bool, 2> is_stuck_{};  // by PoolId
  SteadyTime next_check_;
  std::string last_failure_;  // so that one fault is one line of the log
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_WATCHDOG_H_
