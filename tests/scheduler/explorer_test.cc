// Every interleaving of small worlds, and the bugs that such a search finds.
#include "tests/scheduler/explorer.h"

#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "tests/scheduler/transfer_world.h"

namespace overfill {
namespace {

// A counter that can be stuck, to see that the explorer sees.
class CounterWorld {
 public:
  using Action = int;  // how much further
  std::vector<int> Actions() const {
    return value_ == 4 ? std::vector<int>{} : std::vector<int>{1, 2};
  }
  void Apply(int action) { value_ = (value_ + action) % 6; }
  std::string Encode() const { return absl::StrCat(value_); }
  std::string Check() const { return value_ == bad ? "the bad one" : ""; }
  bool IsGoal() const { return value_ == goal; }
  bool CanBeReliedOn(int action) const { return action <= most_relied_on; }
  static std::string Describe(int action) { return absl::StrCat(action); }

  int bad = -1;
  int goal = 4;
  int most_relied_on = 2;

 private:
  int value_ = 0;
};

TEST(Explorer, FindsTheShortestWayToWhatIsBroken) {
  CounterWorld world;
  world.bad = 5;
  const Exploration found = Explorer<CounterWorld>(world).Run();
  EXPECT_EQ(found.violation, "the bad one");
  EXPECT_EQ(found.path.size(), 3u);
}

TEST(Explorer, SeesEachStateOnceAndStatesThatLeadNowhere) {
  CounterWorld world;
  Exploration found = Explorer<CounterWorld>(world).Run();
  EXPECT_EQ(found.violation, "");
  EXPECT_EQ(found.num_states, 6u);
  EXPECT_EQ(found.num_edges, 10u);
  world.goal = 0;  // 4 is an end
  found = Explorer<CounterWorld>(world).Run();
  EXPECT_EQ(found.violation, "no way leads to a goal");
  world.goal = 4;
  world.most_relied_on = 0;
  EXPECT_EQ(Explorer<CounterWorld>(world).Run().violation,
            "no way leads to a goal");
}

Exploration Explore(const WorldOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  Exploration found = Explorer<TransferWorld>(TransferWorld(options)).Run();
  const std::chrono::duration<double> seconds =
      std::chrono::steady_clock::now() - begin;
  std::cout << found.num_states << " states, " << found.num_edges
            << " edges in " << seconds.count() << " s";
  if (!found.violation.empty()) {
    std::cout << "; " << found.violation << " after:\n  "
              << absl::StrJoin(found.path, ", ");
  }
  std::cout << std::endl;
  return found;
}

struct Case {
  const char* name;
  WorldOptions options;
};
std::string NameOf(const testing::TestParamInfo<Case>& info) {
  return info.param.name;
}

// In every state pool and table are whole and nothing that can be written is
// another's or free; and from every state all comes to its end and home, by
// nobody's cancel and though no commit may ever come.
class TransferWorldTest : public testing::TestWithParam<Case> {};

TEST_P(TransferWorldTest, HoldsInEveryInterleaving) {
  const Exploration found = Explore(GetParam().options);
  EXPECT_EQ(found.violation, "");
  EXPECT_GT(found.num_states, 50u);
}

INSTANTIATE_TEST_SUITE_P(
    Faults, TransferWorldTest,
    testing::Values(
        Case{"OneAtATime", {.blocks = {1, 2, 0, 1}}},
        Case{"TwoCompete", {.blocks = {2, 3, 0, 2}}},
        Case{"TwoGrow",
             {.blocks = {2, 4, 0, 2}, .total_blocks = 3, .retries = 0}},
        Case{"SwapIsShort",
             {.blocks = {1, 4, 0, 1}, .total_blocks = 3, .retries = 0}},
        Case{"NoSwap", {.blocks = {2, 4, 0, 0}, .total_blocks = 3}},
        Case{"OneStore", {.blocks = {3, 0, 2, 0}, .total_blocks = 3}},
        Case{"OneStoreOfFour", {.blocks = {4, 0, 1, 0}, .total_blocks = 3}},
        Case{"TwoRetries", {.blocks = {1, 2, 0, 1}, .retries = 2}}),
    NameOf);

// Where nothing fails, both requests complete, whatever the order: no pool is
// so small, and no turn so bad, that they block each other.
INSTANTIATE_TEST_SUITE_P(
    NoFaults, TransferWorldTest,
    testing::Values(
        Case{"TwoCompete",
             {.blocks = {2, 3, 0, 2}, .total_blocks = 3, .has_faults = false}},
        Case{"TwoGrow",
             {.blocks = {2, 4, 0, 2}, .total_blocks = 3, .has_faults = false}},
        Case{"OneStore",
             {.blocks = {4, 0, 4, 0}, .total_blocks = 4, .has_faults = false}},
        Case{"TwoGrowFar",
             {.blocks = {2, 4, 0, 4}, .total_blocks = 4, .has_faults = false}}),
    NameOf);

struct PlantedBug {
  const char* name;
  WorldBug bug;
  const char* violation;  // a part of what is said
};
class WorldBugTest : public testing::TestWithParam<PlantedBug> {};

TEST_P(WorldBugTest, IsFound) {
  WorldOptions options = {.blocks = {2, 4, 0, 1}, .total_blocks = 3};
  // These show only once every state is known: with fewer of them.
  if (GetParam().bug == WorldBug::kNoReaper) options.blocks = {1, 2, 0, 1};
  if (GetParam().bug == WorldBug::kNoReaper) options.total_blocks = 2;
  if (GetParam().bug == WorldBug::kNoPreemption) options.has_faults = false;
  options.bug = GetParam().bug;
  const Exploration found = Explore(options);
  EXPECT_NE(found.violation.find(GetParam().violation), std::string::npos)
      << found.violation;
}

INSTANTIATE_TEST_SUITE_P(
    Bugs, WorldBugTest,
    testing::Values(
        PlantedBug{"FreesBeforeFence", WorldBug::kFreesBeforeFence,
                   "a transfer writes block"},
        PlantedBug{"FreesOnCancel", WorldBug::kFreesOnCancel,
                   "a transfer writes block"},
        PlantedBug{"TakesStaleEpoch", WorldBug::kTakesStaleEpoch,
                   "goes on with KV that has not arrived"},
        PlantedBug{"NoDestinationPin", WorldBug::kNoDestinationPin,
                   "a transfer writes block"},
        PlantedBug{"NoSourcePin", WorldBug::kNoSourcePin,
                   "a transfer reads block"},
        PlantedBug{"NoStepPin", WorldBug::kNoStepPin, "a step touches block"},
        PlantedBug{"RetriesInPlace", WorldBug::kRetriesInPlace,
                   "is written by two transfers"},
        PlantedBug{"NoReaper", WorldBug::kNoReaper, "no way leads to a goal"},
        PlantedBug{"NoPreemption", WorldBug::kNoPreemption,
                   "no way leads to a goal"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace overfill
