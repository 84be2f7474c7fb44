#include "scheduler/chunk_governor.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

constexpr ChunkLimits kLimits = {.min_rows = 16, .max_rows = 512};
constexpr double kBase = 0.010;
constexpr double kRoom = 0.65 * kBase;  // of the automatic target

// What a chunk adds to a gap.
struct CostModel {
  double fixed = 0;
  double per_row = 0;
  double At(int32_t rows) const {
    return rows > 0 ? fixed + per_row * rows : 0;
  }
};

// One whose largest chunk within `room` has `rows` rows, `floor` of the room
// being a chunk's whatever its rows.
CostModel ModelOf(double rows, double floor, double room = kRoom) {
  return {floor * room, (1 - floor) * room / rows};
}

// A pool of answers with a governor; every chunk is as large as it may be.
class Loop {
 public:
  explicit Loop(const ChunkLimits& limits = kLimits)
      : limits_(limits), governor(limits) {}

  void Undisturbed(int count) {
    for (int i = 0; i < count; ++i) Gap(0);
  }

  // The chunks of so many gaps with prompts.
  std::vector<int32_t> Disturbed(int count) {
    std::vector<int32_t> chunks;
    for (int i = 0; i < count; ++i) {
      chunks.push_back(Limit());
      EXPECT_GE(chunks.back(), std::min(limits_.min_rows, limits_.max_rows));
      EXPECT_LE(chunks.back(), limits_.max_rows);
      Gap(chunks.back());
    }
    return chunks;
  }

  // The chunk that is usual after so many gaps.
  int32_t SettledAfter(int count) {
    Disturbed(count);
    std::vector<int32_t> chunks = Disturbed(15);
    std::nth_element(chunks.begin(), chunks.begin() + 7, chunks.end());
    return chunks[7];
  }

  int32_t Limit() const {
    std::array<int32_t, 2> rows{};
    rows[static_cast<int>(answers_in)] = num_decode_rows;
    return governor.MaxPromptRows(prompts_in, rows);
  }

  void Gap(int32_t rows) {
    const double seconds = base + cost.At(rows);
    governor.OnGap({.answers_in = answers_in,
                    .num_decode_rows = num_decode_rows,
                    .prompt_rows = rows,
                    .prompts_in = prompts_in,
                    .seconds = noise ? noise(seconds) : seconds});
  }

  PoolId answers_in = PoolId::kDecode;
  PoolId prompts_in = PoolId::kPrefill;
  int32_t num_decode_rows = 4;
  double base = kBase;
  CostModel cost;
  std::function<double(double)> noise;

 private:
  const ChunkLimits limits_;

 public:
  ChunkGovernor governor;
};

TEST(ChunkGovernor, NothingRunsSoNothingIsHeldBack) {
  const ChunkGovernor governor(kLimits);
  EXPECT_EQ(governor.MaxPromptRows(PoolId::kPrefill, {0, 0}), 512);
  EXPECT_EQ(governor.MaxPromptRows(PoolId::kDecode, {0, 0}), 512);
}

TEST(ChunkGovernor, StartsSmallAndGrows) {
  Loop loop;
  EXPECT_EQ(loop.Limit(), 16);
  loop.Undisturbed(3);
  EXPECT_EQ(loop.Limit(), 16);
  const std::vector<int32_t> chunks = loop.Disturbed(8);  // they cost nothing
  EXPECT_EQ(chunks,
            std::vector<int32_t>({16, 32, 64, 128, 256, 512, 512, 512}));
}

TEST(ChunkGovernor, FewRowsInAllAreTheBounds) {
  Loop loop({.min_rows = 16, .max_rows = 4});
  loop.cost = ModelOf(1, 0);
  for (int32_t chunk : loop.Disturbed(50)) EXPECT_EQ(chunk, 4);
}

TEST(ChunkGovernor, FindsTheOptimumOfLinesWithAnyFloor) {
  for (const double floor : {0.0, 0.3, 0.6, 0.8, 0.9}) {
    for (const double optimum : {24.0, 60.0, 200.0, 450.0}) {
      Loop loop;
      loop.cost = ModelOf(optimum, floor);
      loop.Undisturbed(10);
      // The less the rows matter, the longer it takes.
      const int32_t rows = loop.SettledAfter(floor < 0.85 ? 200 : 800);
      EXPECT_NEAR(loop.cost.At(rows), kRoom, 0.1 * kRoom) << "floor " << floor;
      // At the least chunk, one more row may be less than a whole one.
      if (optimum > 30) {
        EXPECT_NEAR(rows, optimum, 0.2 * optimum) << "floor " << floor;
      }
    }
  }
}

TEST(ChunkGovernor, FollowsATargetThatIsGiven) {
  for (const double target : {0.011, 0.012, 0.020, 0.050}) {
    Loop loop({.min_rows = 16, .max_rows = 512, .target_seconds = target});
    loop.cost = {.fixed = 0.0002, .per_row = 0.00002};
    loop.Undisturbed(10);
    const double optimum =
        std::min((target - kBase - loop.cost.fixed) / loop.cost.per_row, 512.0);
    EXPECT_NEAR(loop.SettledAfter(50), optimum, 0.2 * optimum);
  }
  Loop hopeless({.min_rows = 16, .max_rows = 512, .target_seconds = 0.005});
  hopeless.cost = {.fixed = 0, .per_row = 0.00002};
  hopeless.Undisturbed(10);
  EXPECT_EQ(hopeless.SettledAfter(50), 16);
  EXPECT_EQ(hopeless.governor.UndisturbedSeconds(PoolId::kDecode, 4), kBase);
}

TEST(ChunkGovernor, TheUndisturbedGapIsByTheNumberOfAnswers) {
  Loop loop;
  const auto known = [&](int32_t num_decode_rows) {
    return loop.governor.UndisturbedSeconds(PoolId::kDecode, num_decode_rows);
  };
  EXPECT_EQ(known(4), 0);
  loop.Undisturbed(10);
  EXPECT_NEAR(known(4), 0.010, 1e-9);
  loop.base = 0.030;
  loop.num_decode_rows = 32;
  loop.Undisturbed(10);
  EXPECT_NEAR(known(4), 0.010, 1e-9);
  EXPECT_NEAR(known(32), 0.030, 1e-9);
  // Rows never seen are like fewer, where there are any.
  EXPECT_NEAR(known(9), 0.010, 1e-9);
  EXPECT_NEAR(known(99), 0.030, 1e-9);
  EXPECT_NEAR(known(1), 0.010, 1e-9);
  EXPECT_EQ(loop.governor.UndisturbedSeconds(PoolId::kPrefill, 4), 0);
}

// How far off the settled chunks are, and the gaps they make, as shares of the
// optimum and of the room: the middle one and the worst but a few of many.
struct Errors {
  double middle_chunk, high_chunk;
  double middle_gap, high_gap;
};
Errors ErrorsOf(double optimum, double floor,
                const std::function<double(double)>& noise) {
  constexpr int kRuns = 60;
  std::vector<double> chunks, gaps;
  for (int run = 0; run < kRuns; ++run) {
    Loop loop;
    loop.cost = ModelOf(optimum, floor);
    loop.noise = noise;
    loop.Undisturbed(40);
    const int32_t rows = loop.SettledAfter(150);
    chunks.push_back(std::abs(rows / optimum - 1));
    gaps.push_back(std::abs(loop.cost.At(rows) / kRoom - 1));
  }
  std::sort(chunks.begin(), chunks.end());
  std::sort(gaps.begin(), gaps.end());
  return {chunks[kRuns / 2], chunks[kRuns * 9 / 10], gaps[kRuns / 2],
          gaps[kRuns * 9 / 10]};
}

TEST(ChunkGovernor, NoiseBlursItOnlyALittle) {
  std::mt19937_64 random(TestSeed());
  std::normal_distribution<double> normal(1, 0.05);
  for (const double optimum : {60.0, 200.0, 450.0}) {
    for (const double floor : {0.0, 0.3}) {
      const Errors errors = ErrorsOf(
          optimum, floor, [&](double gap) { return gap * normal(random); });
      EXPECT_LT(errors.middle_chunk, 0.1);
      EXPECT_LT(errors.high_chunk, 0.2);
    }
    // With a high floor the rows matter less, and less can be told of them.
    const Errors errors = ErrorsOf(
        optimum, 0.8, [&](double gap) { return gap * normal(random); });
    EXPECT_LT(errors.middle_gap, 0.1);
    EXPECT_LT(errors.high_gap, 0.25);
  }
}

TEST(ChunkGovernor, StallsNowAndThenBlurItOnlyALittle) {
  std::mt19937_64 random(TestSeed() + 1);
  std::normal_distribution<double> normal(1, 0.1);
  for (const double optimum : {60.0, 200.0, 450.0}) {
    const Errors errors = ErrorsOf(optimum, 0.2, [&](double gap) {
      return gap * normal(random) + (random() % 30 == 0 ? 3.0 : 0.0);
    });
    EXPECT_LT(errors.middle_chunk, 0.2);
    EXPECT_LT(errors.middle_gap, 0.2);
  }
}

// A decode step that waits for one layer of a chunk comes at any moment of it.
TEST(ChunkGovernor, AWaitForWhatIsLeftOfALayer) {
  std::mt19937_64 random(TestSeed() + 2);
  std::uniform_real_distribution<double> part(0, 2);
  const Errors errors = ErrorsOf(200, 0, [&](double gap) {
    return kBase + std::max(gap - kBase, 0.0) * part(random);
  });
  EXPECT_LT(errors.middle_chunk, 0.2);
}

TEST(ChunkGovernor, AStallOfSecondsPassesBy) {
  Loop loop;
  loop.cost = ModelOf(200, 0.3);
  loop.Undisturbed(10);
  const int32_t before = loop.SettledAfter(50);
  for (const int stalls : {1, 3, 6}) {
    loop.base = 5;
    loop.Disturbed(stalls);
    loop.base = kBase;
    EXPECT_NEAR(loop.SettledAfter(10), before, 0.1 * before) << stalls;
  }
  // Before anything else, too; and for so long that it is believed.
  for (const int stalls : {1, 3, 40}) {
    Loop young;
    young.cost = ModelOf(200, 0.3);
    young.base = 5;
    young.Disturbed(stalls);
    young.base = kBase;
    young.Undisturbed(40);
    EXPECT_NEAR(young.SettledAfter(100), 200, 40) << stalls;
  }
}

TEST(ChunkGovernor, FollowsALoadThatChanges) {
  Loop loop;
  loop.Undisturbed(10);
  for (const double optimum : {300.0, 30.0, 480.0, 120.0}) {
    loop.cost = ModelOf(optimum, 0.3);
    EXPECT_NEAR(loop.SettledAfter(100), optimum, 0.2 * optimum);
  }
}

TEST(ChunkGovernor, PromptsThatNeverPauseAreNoTrap) {
  Loop loop;
  loop.cost = ModelOf(200, 0);
  EXPECT_TRUE(loop.governor.WantsUndisturbed(PoolId::kDecode, 4));
  loop.Undisturbed(31);
  EXPECT_FALSE(loop.governor.WantsUndisturbed(PoolId::kDecode, 4));
  EXPECT_TRUE(loop.governor.WantsUndisturbed(PoolId::kDecode, 5));
  EXPECT_TRUE(loop.governor.WantsUndisturbed(PoolId::kPrefill, 4));
  loop.Disturbed(255);
  EXPECT_FALSE(loop.governor.WantsUndisturbed(PoolId::kDecode, 4));
  loop.Disturbed(1);
  EXPECT_TRUE(loop.governor.WantsUndisturbed(PoolId::kDecode, 4));
  // All is three times as slow from now on, so that any gap is past the old
  // target; what is measured from time to time becomes what counts.
  loop.base *= 3;
  loop.cost = ModelOf(200, 0, 3 * kRoom);
  EXPECT_LE(loop.SettledAfter(50), 32);
  for (int i = 0; i < 20; ++i) {
    loop.Undisturbed(1);
    EXPECT_FALSE(loop.governor.WantsUndisturbed(PoolId::kDecode, 4));
    loop.Disturbed(256);
  }
  EXPECT_NEAR(loop.SettledAfter(50), 200, 40);
}

TEST(ChunkGovernor, TheTightestOfTheAnswersCounts) {
  Loop loop;
  loop.cost = ModelOf(400, 0);
  loop.Undisturbed(10);
  loop.SettledAfter(50);
  loop.answers_in = PoolId::kPrefill;  // in the very step: dearer
  loop.cost = ModelOf(50, 0);
  loop.Undisturbed(10);
  loop.SettledAfter(50);
  const auto rows = [&](int32_t in_prefill, int32_t in_decode) {
    return loop.governor.MaxPromptRows(PoolId::kPrefill,
                                       {in_prefill, in_decode});
  };
  EXPECT_NEAR(rows(0, 4), 400, 80);
  EXPECT_NEAR(rows(4, 0), 50, 10);
  EXPECT_NEAR(rows(4, 4), 50, 10);
  EXPECT_EQ(rows(0, 0), 512);
  // Of prompts in the other pool nothing is known.
  EXPECT_EQ(loop.governor.MaxPromptRows(PoolId::kDecode, {4, 4}), 16);
}

TEST(ChunkGovernor, GapsThatAreNoneAndClocksThatStandStill) {
  Loop loop;
  loop.cost = ModelOf(200, 0);
  loop.Undisturbed(10);
  const int32_t before = loop.SettledAfter(50);
  for (const double seconds : {std::numeric_limits<double>::quiet_NaN(),
                               std::numeric_limits<double>::infinity(), -1.0}) {
    loop.noise = [seconds](double) { return seconds; };
    loop.Undisturbed(40);
    loop.Disturbed(40);
    EXPECT_NEAR(loop.Limit(), before, 0.15 * before);
  }
  // No time at all is under any target, and no reason to hold back.
  loop.noise = [](double) { return 0; };
  loop.Undisturbed(40);
  EXPECT_EQ(loop.SettledAfter(100), 512);
  loop.noise = nullptr;
  loop.Undisturbed(40);
  EXPECT_NEAR(loop.SettledAfter(100), 200, 40);
}

// On a processor that reads a prompt layer by layer between the answers' steps,
// a chunk lies beside many gaps, and what is slow for a while is slow for all
// of them: the last few chunks differ by the weather as much as by their rows.
TEST(ChunkGovernor, ChunksThatLieBesideManyGaps) {
  constexpr int kGapsOfAChunk = 16;
  std::mt19937_64 random(TestSeed() + 4);
  std::normal_distribution<double> of_gap(1, 0.03), of_chunk(1, 0.03);
  for (const double floor : {0.0, 0.3, 0.6}) {
    for (int run = 0; run < 40; ++run) {
      Loop loop({.min_rows = 32, .max_rows = 512});
      loop.cost = ModelOf(90, floor);
      double weather = 1;
      loop.noise = [&](double gap) { return gap * weather * of_gap(random); };
      loop.Undisturbed(60);
      int32_t most = 0, least = 512;
      double sum = 0;
      for (int chunk = 0; chunk < 60; ++chunk) {
        weather = of_chunk(random);
        const int32_t rows = loop.Limit();
        for (int i = 0; i < kGapsOfAChunk; ++i) loop.Gap(rows);
        if (chunk < 20) continue;
        sum += rows / 40.0;
        most = std::max(most, rows);
        least = std::min(least, rows);
      }
      EXPECT_LT(loop.cost.At(most), 1.8 * kRoom) << floor;
      EXPECT_GT(loop.cost.At(least), 0.5 * kRoom) << floor;
      const auto middle = static_cast<int32_t>(sum);
      EXPECT_NEAR(loop.cost.At(middle), kRoom, 0.2 * kRoom) << floor;
    }
  }
}

TEST(ChunkGovernor, WhateverComesTheBoundsHold) {
  std::mt19937_64 random(TestSeed() + 3);
  for (int run = 0; run < 50; ++run) {
    ChunkLimits limits;
    limits.min_rows = 1 + static_cast<int32_t>(random() % 64);
    limits.max_rows = 1 + static_cast<int32_t>(random() % 1000);
    if (random() % 2 == 0) limits.target_seconds = 1e-3;
    ChunkGovernor governor(limits);
    const auto pool = [&] {
      return random() % 2 == 0 ? PoolId::kPrefill : PoolId::kDecode;
    };
    const auto rows = [&] {
      return static_cast<int32_t>(random() >> (33 + random() % 31));
    };
    for (int i = 0; i < 500; ++i) {
      governor.OnGap({.answers_in = pool(),
                      .num_decode_rows = rows() - 1,
                      .prompt_rows = rows() - 1,
                      .prompts_in = pool(),
                      .seconds = std::pow(10.0, random() % 40 - 20.0)});
      const int32_t limit =
          governor.MaxPromptRows(pool(), {rows() - 1, rows() - 1});
      ASSERT_LE(limit, limits.max_rows);
      ASSERT_GE(limit, std::min(limits.min_rows, limits.max_rows));
    }
  }
}

}  // namespace
}  // namespace overfill
