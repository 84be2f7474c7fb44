// Whatever the stores' sizes, each request comes to its end; and with rules
// that are not quite the scheduler's, this is seen to fail.
#include <cstdint>
#include <map>
#include <random>
#include <string>

#include "gtest/gtest.h"
#include "scheduler/make_room.h"
#include "tests/scheduler/progress_world.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

using Counts = ProgressCounts;
using Rules = ProgressRules;

constexpr int kRequestsPerWorld = 250;

// What went wrong, and in how many worlds. The world of one seed has the same
// stores whatever the rules are.
std::map<std::string, int> RunWorlds(uint64_t seed, Rules rules, int num_worlds,
                                     Counts& counts) {
  std::map<std::string, int> failures;
  for (int i = 0; i < num_worlds; ++i) {
    std::mt19937_64 random(seed + static_cast<uint64_t>(i));
    const std::string failure =
        ProgressWorld(random, rules, kRequestsPerWorld, counts).Run();
    if (!failure.empty()) ++failures[failure];
  }
  return failures;
}

TEST(Progress, EachOfAHundredThousandRequestsComesToItsEnd) {
  Counts counts;
  // Requests that no store could hold are refused, and do not count.
  for (uint64_t round = 0; counts.completed < 100000 / kTestSlowness; ++round) {
    for (const auto& [failure, count] :
         RunWorlds(TestSeed() + 100 * round, Rules::kRight, 100, counts)) {
      ADD_FAILURE() << failure << " in " << count << " worlds of round "
                    << round;
    }
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_GT(counts.preemptions, 0);
  EXPECT_GT(counts.exhausted, 0);
  EXPECT_GT(counts.forks, 0);
}

TEST(Progress, WrongRulesAreNoticed) {
  const struct {
    Rules rules;
    const char* failure;
  } cases[] = {
      {Rules::kStartsWithoutAnswersBlocks, "a deadlock"},
      {Rules::kNobodyGoes, "a deadlock"},
      {Rules::kAnySize, "a deadlock"},
      {Rules::kEldestGoes, "the first in line gave up its place"},
  };
  for (const auto& [rules, failure] : cases) {
    Counts counts;
    const auto failures = RunWorlds(TestSeed(), rules, 40, counts);
    EXPECT_TRUE(failures.contains(failure)) << static_cast<int>(rules);
  }
}

// Nothing stops without headroom, but much is carried to and fro.
TEST(Progress, StartsWithoutHeadroomPreemptMore) {
  constexpr int kNumWorlds = 300;
  Counts with;
  Counts without;
  EXPECT_TRUE(RunWorlds(TestSeed(), Rules::kRight, kNumWorlds, with).empty());
  EXPECT_TRUE(
      RunWorlds(TestSeed(), Rules::kStartsWithoutHeadroom, kNumWorlds, without)
          .empty());
  const auto per_token = [](const Counts& counts) {
    return static_cast<double>(counts.preemptions) /
           static_cast<double>(counts.tokens);
  };
  EXPECT_GT(per_token(without), 1.2 * per_token(with));
}

TEST(ChooseVictim, TheOneThatOutlastsTheLeastGoes) {
  const RunningAnswer answers[] = {{.priority = 0, .order = 1},
                                   {.priority = 1, .order = 9},
                                   {.priority = 0, .order = 7},
                                   {.priority = 1, .order = 3}};
  for (size_t needy = 0; needy < 4; ++needy) {
    EXPECT_EQ(ChooseVictim(answers, needy, false), 2u) << needy;
    EXPECT_EQ(ChooseVictim(answers, needy, true), std::nullopt);
  }
  EXPECT_EQ(ChooseVictim({answers, 1}, 0, false), std::nullopt);
}

TEST(ChooseVictim, NobodyGoesWhileAnotherIsAboutTo) {
  const RunningAnswer answers[] = {
      {.priority = 5, .order = 1},
      {.priority = 3, .order = 2, .is_to_leave = true},
      {.priority = 1, .order = 3}};
  EXPECT_EQ(ChooseVictim(answers, 0, false), std::nullopt);
  EXPECT_EQ(ChooseVictim(answers, 2, false), std::nullopt);
}

}  // namespace
}  // namespace overfill
