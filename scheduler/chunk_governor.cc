#include "scheduler/chunk_governor.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "base/check.h"

namespace overfill {
namespace {

// Of the automatic target, over the gap without prompts.
constexpr double kAutomaticFactor = 1.65;
// What is known of undisturbed gaps is of the past after so many others.
constexpr int64_t kFreshGaps = 256;
constexpr int kFitRounds = 4;
// No measurement is better than this, as a share of what is measured.
constexpr double kLeastNoise = 0.02;
// Outliers: further out than so many times what is usual.
constexpr double kFarOut = 10;
// Chunks of so much of the largest one seen of late tell what a row costs.
constexpr double kLargeShare = 0.5;
// How far the line is followed from what that tells.
constexpr double kLeastOfPlain = 0.75;
constexpr double kMostOfPlain = 1.2;
constexpr double kMostGrowth = 2;

// The lower one of the two in the middle.
double LowerMedian(std::vector<double> values) {
  const auto middle =
      values.begin() + (static_cast<int64_t>(values.size()) - 1) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

struct Line {
  double at_zero = 0;
  double slope = 0;
  double At(double x) const { return at_zero + slope * x; }
};

// Weighted least squares, with one more sample at the origin. Never a negative
// value at zero or a negative slope.
Line FitLine(const std::vector<double>& x, const std::vector<double>& y,
             const std::vector<double>& weights, double origin_weight) {
  double sum_w = origin_weight, sum_x = 0, sum_xx = 0, sum_y = 0, sum_xy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    sum_w += weights[i];
    sum_x += weights[i] * x[i];
    sum_xx += weights[i] * x[i] * x[i];
    sum_y += weights[i] * y[i];
    sum_xy += weights[i] * x[i] * y[i];
  }
  const double det = sum_w * sum_xx - sum_x * sum_x;
  const Line line = {(sum_xx * sum_y - sum_x * sum_xy) / det,
                     (sum_w * sum_xy - sum_x * sum_y) / det};
  if (line.at_zero >= 0 && line.slope >= 0) return line;
  return {0, std::max(sum_xy / sum_xx, 0.0)};
}

// A line that a few outliers do not move: what is further from it than most
// are counts less. `x` is about 1.
//
// The origin says "no rows add nothing", as surely as the samples are noisy:
// where they are all of one chunk, or tell of nothing but noise, the line goes
// through it. That is safe: chunks that follow from such lines step by step
// come to the right one whatever the truth is, only slower.
Line FitRobustLine(const std::vector<double>& x, const std::vector<double>& y) {
  std::vector<double> spread(x.size());
  for (size_t i = 0; i < x.size(); ++i) spread[i] = y[i] / x[i];
  Line line = {0, std::max(LowerMedian(spread), 0.0)};
  std::vector<double> weights(x.size());
  for (int round = 0; round < kFitRounds; ++round) {
    for (size_t i = 0; i < x.size(); ++i) {
      spread[i] = std::abs(y[i] - line.At(x[i]));
    }
    const double size = std::max(line.At(1), 1e-9);
    const double noise =
        std::max(1.4826 * LowerMedian(spread), kLeastNoise * size);
    for (size_t i = 0; i < x.size(); ++i) {
      const double distance = spread[i] / noise;
      weights[i] = distance > kFarOut ? 0 : 1.5 / std::max(distance, 1.5);
    }
    line = FitLine(x, y, weights, std::min(std::pow(noise / size, 2), 4.0));
  }
  return line;
}

}  // namespace

ChunkGovernor::ChunkGovernor(const ChunkLimits& limits)
    : limits_{.min_rows = std::min(limits.min_rows, limits.max_rows),
              .max_rows = limits.max_rows,
              .target_seconds = limits.target_seconds} {
  OVERFILL_CHECK_GE(limits_.min_rows, 1);
  OVERFILL_CHECK_GE(limits_.target_seconds, 0);
}

void ChunkGovernor::Median::Add(double value) {
  values_[num_added_++ % kWindow] = value;
  const auto size = std::min<int64_t>(num_added_, kWindow);
  value_ = LowerMedian({values_.begin(), values_.begin() + size});
}

int ChunkGovernor::BucketOf(int32_t num_decode_rows) {
  const auto rows = static_cast<uint32_t>(std::max(num_decode_rows, 1));
  return std::bit_width(rows - 1);  // 1, 2, 3 to 4, 5 to 8, ...
}

std::optional<double> ChunkGovernor::BaseOf(PoolId answers_in,
                                            int bucket) const {
  const auto& bases = bases_[static_cast<int>(answers_in)];
  // Of fewer rows it is less, which is safe; of more, better than nothing.
  for (int i = bucket; i >= 0; --i) {
    if (const auto value = bases[i].undisturbed.value()) return value;
  }
  for (int i = bucket + 1; i < kNumBuckets; ++i) {
    if (const auto value = bases[i].undisturbed.value()) return value;
  }
  return std::nullopt;
}

double ChunkGovernor::Target(double base) const {
  return limits_.target_seconds > 0 ? limits_.target_seconds
                                    : kAutomaticFactor * base;
}

double ChunkGovernor::UndisturbedSeconds(PoolId answers_in,
                                         int32_t num_decode_rows) const {
  return BaseOf(answers_in, BucketOf(num_decode_rows)).value_or(0);
}

bool ChunkGovernor::WantsUndisturbed(PoolId answers_in,
                                     int32_t num_decode_rows) const {
  const Base& base =
      bases_[static_cast<int>(answers_in)][BucketOf(num_decode_rows)];
  return !base.undisturbed.value() || base.num_since_undisturbed >= kFreshGaps;
}

void ChunkGovernor::OnGap(const TokenGap& gap) {
  if (!std::isfinite(gap.seconds) || gap.seconds < 0) return;
  const int bucket = BucketOf(gap.num_decode_rows);
  Base& base = bases_[static_cast<int>(gap.answers_in)][bucket];
  if (gap.prompt_rows <= 0) {
    base.undisturbed.Add(gap.seconds);
    base.num_since_undisturbed = 0;
    return;
  }
  ++base.num_since_undisturbed;
  Cost& cost = costs_[static_cast<int>(gap.answers_in)]
                     [static_cast<int>(gap.prompts_in)];
  cost.samples[cost.num_added++ % Cost::kWindow] = {gap.prompt_rows, bucket,
                                                    gap.seconds};
  Fit(gap.answers_in, cost);
}

void ChunkGovernor::Fit(PoolId answers_in, Cost& cost) const {
  const auto size = std::min<int64_t>(cost.num_added, Cost::kWindow);
  double mean_rows = 0;
  cost.most_rows = 0;
  for (int64_t i = 0; i < size; ++i) {
    mean_rows += static_cast<double>(cost.samples[i].rows) / size;
    cost.most_rows = std::max(cost.most_rows, cost.samples[i].rows);
  }
  std::vector<double> x(size), y(size), per_row;
  for (int64_t i = 0; i < size; ++i) {
    const Sample& sample = cost.samples[i];
    x[i] = sample.rows / mean_rows;
    y[i] = sample.seconds - BaseOf(answers_in, sample.bucket).value_or(0);
    if (sample.rows >= kLargeShare * cost.most_rows) {
      per_row.push_back(y[i] / sample.rows);
    }
  }
  cost.plain_per_row = std::max(LowerMedian(std::move(per_row)), 0.0);
  const Line line = FitRobustLine(x, y);
  cost.fixed = line.at_zero;
  cost.per_row = line.slope / mean_rows;
}

int32_t ChunkGovernor::Limit(const Cost& cost, double base) const {
  if (cost.num_added == 0) return limits_.min_rows;
  // Nothing is known of chunks that are much larger than those seen.
  const double most = kMostGrowth * cost.most_rows;
  const auto within = [&](double room, double per_row) {
    if (room < 0) return 0.0;
    return per_row * most > room ? room / per_row : most;
  };
  const double room = Target(base) - base;
  const double plain = within(room, cost.plain_per_row);
  double rows =
      std::clamp(within(room - cost.fixed, cost.per_row), kLeastOfPlain * plain,
                 std::min(kMostOfPlain * plain, most));
  rows = std::clamp<double>(rows, limits_.min_rows, limits_.max_rows);
  return static_cast<int32_t>(rows);
}

int32_t ChunkGovernor::MaxPromptRows(
    PoolId prompts_in, const std::array<int32_t, 2>& num_decode_rows) const {
  int32_t limit = limits_.max_rows;
  for (PoolId answers_in : {PoolId::kPrefill, PoolId::kDecode}) {
    const int answers = static_cast<int>(answers_in);
    if (num_decode_rows[answers] <= 0) continue;
    const auto base = BaseOf(answers_in, BucketOf(num_decode_rows[answers]));
    const Cost& cost = costs_[answers][static_cast<int>(prompts_in)];
    limit = std::min(limit, Limit(cost, base.value_or(0)));
  }
  return limit;
}

}  // namespace overfill
