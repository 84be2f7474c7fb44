#include "server/watchdog.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "base/log.h"

namespace overfill {
namespace {

constexpr size_t kMaxNamedRequests = 16;  // of one line in the log

std::string SecondsText(std::chrono::nanoseconds time) {
  return absl::FormatDuration(
      absl::Trunc(absl::FromChrono(time), absl::Milliseconds(100)));
}

// The batch that a stuck pool is at.
std::string Describe(const std::optional<RunningStep>& step, SteadyTime now) {
  if (!step) return "no step is under way";
  const size_t num_named = std::min(step->uids.size(), kMaxNamedRequests);
  std::string text = absl::StrCat(
      "the step under way began ", SecondsText(now - step->started),
      " ago, with ", step->num_prompt_rows, " prompt rows and ",
      step->num_decode_rows, " decode rows of the requests ",
      absl::StrJoin(step->uids.begin(), step->uids.begin() + num_named, ", "));
  if (num_named < step->uids.size()) {
    absl::StrAppend(&text, " and ", step->uids.size() - num_named, " more");
  }
  return text;
}

}  // namespace

Watchdog::Watchdog(const WatchdogOptions& options, const Scheduler* scheduler,
                   WatchdogEvents events)
    : options_(options), scheduler_(scheduler), events_(std::move(events)) {}

void Watchdog::Look(SteadyTime now) {
  LookAtSteps(now);
  LookAtBlocks(now);
}

void Watchdog::LookAtSteps(SteadyTime now) {
  if (options_.stuck_step_timeout <= std::chrono::nanoseconds(0)) return;
  const SchedulerStats stats = scheduler_->Stats();
  const bool was_stuck = is_stuck_[0] || is_stuck_[1];
  for (const PoolId pool : {PoolId::kPrefill, PoolId::kDecode}) {
    const size_t i = static_cast<size_t>(pool);
    const auto silent_for = now - stats.last_step[i];
    const bool is_stuck =
        stats.has_work[i] && silent_for >= options_.stuck_step_timeout;
    if (is_stuck && !is_stuck_[i]) {
      LogError(absl::StrCat("the ", PoolName(pool),
                            " pool is stuck: it has work, and no step has "
                            "finished for ",
                            SecondsText(silent_for), "; ",
                            Describe(stats.running_steps[i], now)));
      events_.on_stuck_step(pool);
    } else if (!is_stuck && is_stuck_[i]) {
      LogInfo(absl::StrCat("the ", PoolName(pool), " pool goes on"));
    }
    is_stuck_[i] = is_stuck;
  }
  const bool stuck_now = is_stuck_[0] || is_stuck_[1];
  if (stuck_now != was_stuck) events_.set_serving(!stuck_now);
}

void Watchdog::LookAtBlocks(SteadyTime now) {
  if (now < next_check_) return;
  next_check_ = now + options_.integrity_period;
  const absl::Status status = scheduler_->CheckIntegrity();
  const std::string failure = status.ok() ? "" : status.ToString();
  if (!status.ok()) events_.on_integrity_failure();
  if (!status.ok() && failure != last_failure_) {
    LogError(absl::StrCat("the KV blocks do not add up: ", failure));
  }
  last_failure_ = failure;
}

}  // namespace overfill
