#include "base/phase_times.h"

#include "gtest/gtest.h"

namespace overfill {
namespace {

TEST(PhaseTimes, PhasesFollowEachOtherAndAddUp) {
  const absl::Time begin = absl::UnixEpoch();
  PhaseTimes times(begin);
  EXPECT_EQ(times.ToString(), "");
  EXPECT_EQ(times.total(), absl::ZeroDuration());
  times.EndPhase("hashing", begin + absl::Milliseconds(1520));
  times.EndPhase("weights", begin + absl::Seconds(2));
  times.EndPhase("hashing", begin + absl::Milliseconds(2100));
  EXPECT_EQ(times.ToString(), "hashing 1.62s, weights 480ms");
  EXPECT_EQ(times.total(), absl::Milliseconds(2100));
}

}  // namespace
}  // namespace overfill
