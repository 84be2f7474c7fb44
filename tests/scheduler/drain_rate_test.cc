#include "scheduler/drain_rate.h"

#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace overfill {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

const SteadyTime kBegin = SteadyTime() + std::chrono::hours(1);

// One start each `period`, for `count` of them, while something waits. Returns
// when the last one was.
SteadyTime Drain(DrainRate& rate, SteadyTime now, nanoseconds period,
                 int64_t tokens, int count) {
  rate.SetWaiting(true, now);
  for (int i = 0; i < count; ++i) {
    now += period;
    rate.Started(tokens, now);
  }
  return now;
}

double Seconds(nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

TEST(DrainRate, NothingIsKnownAtFirst) {
  DrainRate rate;
  EXPECT_FALSE(rate.IsMeasured(kBegin));
  EXPECT_EQ(rate.TokensPerSecond(kBegin), 0);
  EXPECT_EQ(rate.TimeToDrain(100, kBegin), DrainRate::kUnknown);
  EXPECT_EQ(rate.TimeToDrain(0, kBegin), nanoseconds(0));
  EXPECT_EQ(rate.TimeToDrain(-1, kBegin), nanoseconds(0));
  // A queue that has not moved yet says nothing, either.
  rate.SetWaiting(true, kBegin);
  EXPECT_FALSE(rate.IsMeasured(kBegin + seconds(100)));
}

TEST(DrainRate, MeasuresASteadyRate) {
  DrainRate rate;
  const SteadyTime now = Drain(rate, kBegin, milliseconds(100), 50, 300);
  EXPECT_TRUE(rate.IsMeasured(now));
  EXPECT_NEAR(rate.TokensPerSecond(now), 500, 10);
  EXPECT_NEAR(Seconds(rate.TimeToDrain(1000, now)), 2, 0.05);
}

TEST(DrainRate, FollowsAChange) {
  DrainRate rate;
  SteadyTime now = Drain(rate, kBegin, milliseconds(100), 50, 300);
  now = Drain(rate, now, milliseconds(100), 10, 300);
  EXPECT_NEAR(rate.TokensPerSecond(now), 100, 30);
  // A standstill shows while it lasts.
  const double before = rate.TokensPerSecond(now);
  EXPECT_LT(rate.TokensPerSecond(now + seconds(10)), 0.5 * before);
  EXPECT_LT(rate.TokensPerSecond(now + seconds(30)), 0.1 * before);
}

TEST(DrainRate, IdleTimeIsNotSlowness) {
  DrainRate rate;
  const SteadyTime now = Drain(rate, kBegin, milliseconds(100), 50, 100);
  rate.SetWaiting(false, now);
  const double before = rate.TokensPerSecond(now);
  EXPECT_EQ(rate.TokensPerSecond(now + std::chrono::hours(5)), before);
  // Nor is what comes now and then, and starts at once, a measurement.
  DrainRate quiet;
  SteadyTime later = kBegin;
  for (int i = 0; i < 100; ++i) {
    later += seconds(1);
    quiet.SetWaiting(true, later);
    quiet.Started(1000, later + milliseconds(1));
    quiet.SetWaiting(false, later + milliseconds(1));
  }
  EXPECT_FALSE(quiet.IsMeasured(later));
}

TEST(DrainRate, ABurstAtOnceDoesNotLastLong) {
  DrainRate rate;
  SteadyTime now = kBegin;
  rate.SetWaiting(true, now);
  for (int i = 0; i < 64; ++i) rate.Started(1000, now);
  EXPECT_FALSE(rate.IsMeasured(now));
  now = Drain(rate, now, milliseconds(100), 10, 500);
  EXPECT_NEAR(rate.TokensPerSecond(now), 100, 60);
}

TEST(DrainRate, IsBoundedWhateverTheNumbers) {
  DrainRate rate;
  const SteadyTime now = Drain(rate, kBegin, seconds(1), 1, 10);
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(rate.TimeToDrain(kMost, now), DrainRate::kLongest);
  EXPECT_EQ(rate.TimeToDrain(1'000'000, now + std::chrono::hours(1000)),
            DrainRate::kLongest);
  rate.Started(-5, now);  // counts as none
  EXPECT_NEAR(rate.TokensPerSecond(now), 1, 0.1);
}

TEST(DrainRate, AClockThatGoesBackOrStandsStillIsNoTime) {
  DrainRate rate;
  rate.SetWaiting(true, kBegin);
  for (int i = 0; i < 100; ++i) rate.Started(10, kBegin);
  EXPECT_FALSE(rate.IsMeasured(kBegin));
  SteadyTime now = Drain(rate, kBegin, milliseconds(100), 50, 300);
  const double before = rate.TokensPerSecond(now);
  EXPECT_EQ(rate.TokensPerSecond(now - seconds(100)), before);
  rate.SetWaiting(true, now - seconds(1));
  EXPECT_NEAR(rate.TokensPerSecond(now - seconds(1)), before, 1e-6 * before);
}

}  // namespace
}  // namespace overfill
