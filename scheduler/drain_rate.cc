#include "scheduler/drain_rate.h"

#include <algorithm>
#include <cmath>

namespace overfill {
namespace {

// A second that was waited has faded to 1/e after so many more.
constexpr double kFadeSeconds = 10;
// Requests that start as they come wait for next to no time; what they seem
// to drain at is no measurement.
constexpr double kLeastSeconds = 0.5;

}  // namespace

DrainRate::Sums DrainRate::At(SteadyTime now) const {
  if (!is_waiting_ || now <= updated_) return sums_;
  const double waited =
      std::chrono::duration<double>(now - updated_).count() / kFadeSeconds;
  return {
      sums_.tokens * std::exp(-waited),
      sums_.seconds * std::exp(-waited) - kFadeSeconds * std::expm1(-waited)};
}

void DrainRate::SetWaiting(bool is_waiting, SteadyTime now) {
  sums_ = At(now);
  updated_ = now;
  is_waiting_ = is_waiting;
}

void DrainRate::Started(int64_t prompt_tokens, SteadyTime now) {
  SetWaiting(is_waiting_, now);
  has_started_ = has_started_ || prompt_tokens > 0;
  sums_.tokens += static_cast<double>(std::max<int64_t>(prompt_tokens, 0));
}

bool DrainRate::IsMeasured(SteadyTime now) const {
  return has_started_ && At(now).seconds >= kLeastSeconds;
}

double DrainRate::TokensPerSecond(SteadyTime now) const {
  const Sums sums = At(now);
  return IsMeasured(now) ? sums.tokens / sums.seconds : 0;
}

std::chrono::nanoseconds DrainRate::TimeToDrain(int64_t queued_tokens,
                                                SteadyTime now) const {
  if (queued_tokens <= 0) return std::chrono::nanoseconds::zero();
  if (!IsMeasured(now)) return kUnknown;
  // Not as nanoseconds before it is known to fit.
  const auto tokens = static_cast<double>(queued_tokens);
  const std::chrono::duration<double> longest = kLongest;
  const double rate = TokensPerSecond(now);
  if (tokens >= rate * longest.count()) return kLongest;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(tokens / rate));
}

}  // namespace overfill
