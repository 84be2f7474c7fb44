#include "benchmarks/serving/distributions.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

constexpr int kDraws = 40'000;
// Bounds are so many standard errors wide: a false alarm in some 1e9 runs.
constexpr double kSigmas = 6;

struct Moments {
  double mean = 0;
  double variance = 0;
};

template <typename DrawFn>
Moments Measure(DrawFn draw) {
  double sum = 0, squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double value = draw();
    sum += value;
    squares += value * value;
  }
  const double mean = sum / kDraws;
  return {mean, squares / kDraws - mean * mean};
}

TEST(ArrivalProcessTest, GapsHaveTheRateAndTheBurstiness) {
  Random random(TestSeed());
  for (const double rate : {0.5, 20.0}) {
    for (const double burstiness : {0.25, 1.0, 4.0}) {
      const ArrivalProcess arrivals(rate, burstiness);
      const Moments gaps =
          Measure([&] { return arrivals.NextGapSeconds(random); });
      // A gamma of shape k and mean m has the variance m^2/k and the kurtosis
      // 3 + 6/k; so much do the estimates vary.
      const double mean = 1 / rate, variance = mean * mean / burstiness;
      EXPECT_NEAR(gaps.mean, mean, kSigmas * std::sqrt(variance / kDraws));
      EXPECT_NEAR(
          gaps.variance, variance,
          kSigmas * variance * std::sqrt((2 + 6 / burstiness) / kDraws) * 1.5);
    }
  }
}

TEST(ArrivalProcessTest, ArrivalsInASecondArePoisson) {
  Random random(TestSeed());
  constexpr double kRate = 3;
  constexpr int kSeconds = 20'000;
  const ArrivalProcess arrivals(kRate, 1);
  std::vector<int> counts(kSeconds);
  for (double now = arrivals.NextGapSeconds(random); now < kSeconds;
       now += arrivals.NextGapSeconds(random)) {
    ++counts[static_cast<int>(now)];
  }
  double probability = std::exp(-kRate);  // of none, then one, then two
  for (int k = 0; k <= 6; probability *= kRate / ++k) {
    const double share =
        static_cast<double>(std::count(counts.begin(), counts.end(), k)) /
        kSeconds;
    EXPECT_NEAR(share, probability,
                kSigmas * std::sqrt(probability * (1 - probability) / kSeconds))
        << k;
  }
}

TEST(ArrivalProcessTest, AnInfiniteRateIsAllAtOnce) {
  Random random(TestSeed());
  EXPECT_EQ(ArrivalProcess(std::numeric_limits<double>::infinity(), 1)
                .NextGapSeconds(random),
            0);
}

TEST(LengthDistributionTest, UniformReachesBothEndsEvenly) {
  Random random(TestSeed());
  const auto uniform = LengthDistribution::Parse("uniform:5:8");
  ASSERT_TRUE(uniform.ok());
  std::vector<int> counts(10);
  for (int i = 0; i < kDraws; ++i) {
    const int32_t drawn = uniform->Draw(random);
    ASSERT_GE(drawn, 5);
    ASSERT_LE(drawn, 8);
    ++counts[drawn];
  }
  for (int length = 5; length <= 8; ++length) {
    EXPECT_NEAR(counts[length], kDraws / 4.0,
                kSigmas * std::sqrt(kDraws * 0.25 * 0.75));
  }
}

TEST(LengthDistributionTest, LognormalHasItsMedianAndSpreadAndIsCut) {
  Random random(TestSeed());
  const auto lognormal = LengthDistribution::Parse("lognormal:1000:0.5:2000");
  ASSERT_TRUE(lognormal.ok());
  int below_median = 0, below_one_sigma = 0, cut = 0;
  for (int i = 0; i < kDraws; ++i) {
    const int32_t drawn = lognormal->Draw(random);
    ASSERT_GE(drawn, 1);
    ASSERT_LE(drawn, 2000);
    below_median += drawn < 1000;
    below_one_sigma += drawn < 1000 * std::exp(-0.5);
    cut += drawn == 2000;
  }
  const auto expect_share = [](int count, double share) {
    // Lengths are rounded to whole tokens: a little is allowed for that.
    EXPECT_NEAR(static_cast<double>(count) / kDraws, share,
                kSigmas * std::sqrt(share * (1 - share) / kDraws) + 1e-3);
  };
  const auto normal_cdf = [](double z) {
    return std::erfc(-z / std::sqrt(2.0)) / 2;
  };
  expect_share(below_median, 0.5);
  expect_share(below_one_sigma, normal_cdf(-1));
  expect_share(cut, 1 - normal_cdf(std::log(2.0) / 0.5));
}

TEST(LengthDistributionTest, Parses) {
  Random random(TestSeed());
  EXPECT_EQ(LengthDistribution::Parse("fixed:7")->Draw(random), 7);
  EXPECT_TRUE(LengthDistribution::Parse("trace")->from_trace());
  for (const char* bad :
       {"", "7", "fixed", "fixed:", "fixed:0", "fixed:-1", "fixed:1e3",
        "fixed:1:2", "uniform:1", "uniform:3:2", "uniform:0:2", "uniform:1:x",
        "lognormal:5:1", "lognormal:5:-1:9", "lognormal:5:nan:9",
        "lognormal:5:inf:9", "lognormal:10:1:9", "trace:1",
        "fixed:99999999999"}) {
    EXPECT_FALSE(LengthDistribution::Parse(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace overfill
