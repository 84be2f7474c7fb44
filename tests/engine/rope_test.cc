#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "engine/model_config.h"
#include "gtest/gtest.h"

namespace overfill {
namespace {

// Llama 3.1's scaling: factor 8, from 1 to 4 turns over 8192 positions.
constexpr Llama3RopeScaling kLlama31 = {.factor = 8,
                                        .low_freq_factor = 1,
                                        .high_freq_factor = 4,
                                        .original_max_positions = 8192};

TEST(InverseFrequencies, FallGeometricallyFromOne) {
  for (int32_t head_dim : {64, 80, 96, 128}) {
    const std::vector<float> f =
        InverseFrequencies({.theta = 10000, .llama3 = {}}, head_dim);
    ASSERT_EQ(f.size(), static_cast<size_t>(head_dim) / 2);
    EXPECT_EQ(f[0], 1.0f);
    const double ratio = std::pow(10000.0, -2.0 / head_dim);
    for (size_t i = 1; i < f.size(); ++i) {
      EXPECT_NEAR(f[i] / f[i - 1], ratio, 1e-6);
    }
  }
}

TEST(InverseFrequencies, Llama3ScalingKeepsTheFastAndSlowsTheSlow) {
  const std::vector<float> plain =
      InverseFrequencies({.theta = 500000, .llama3 = {}}, 128);
  const std::vector<float> scaled =
      InverseFrequencies({.theta = 500000, .llama3 = kLlama31}, 128);
  int num_kept = 0, num_slowed = 0, num_between = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double turns = 8192 * plain[i] / (2 * std::numbers::pi);
    if (turns > 4) {
      EXPECT_EQ(scaled[i], plain[i]);
      ++num_kept;
    } else if (turns < 1) {
      EXPECT_FLOAT_EQ(scaled[i], plain[i] / 8);
      ++num_slowed;
    } else {
      EXPECT_GT(scaled[i], plain[i] / 8);
      EXPECT_LT(scaled[i], plain[i]);
      ++num_between;
    }
    if (i > 0) {
      EXPECT_LT(scaled[i], scaled[i - 1]);
    }
  }
  EXPECT_GT(num_kept, 20);
  EXPECT_GT(num_slowed, 20);
  EXPECT_GT(num_between, 3);
}

}  // namespace
}  // namespace overfill
