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

constexpr WorldOptions kSmall = {.blocks = {1, 2, 0, 1}};
constexpr WorldOptions kPlain = {.blocks = {2, 4, 0, 1}, .total_tokens = 3};
constexpr WorldOptions kNoFaults = {
    .blocks = {2, 4, 0, 1}, .total_tokens = 3, .has_faults = false};
constexpr WorldOptions kCached = {.blocks = {5, 0, 3, 0},
                                  .prompt_tokens = 2,
                                  .total_tokens = 4,
                                  .retries = 0,
                                  .has_prefix_cache = true};
constexpr WorldOptions kCachedOfTwo = {.blocks = {3, 6, 0, 2},
                                       .prompt_tokens = 2,
                                       .total_tokens = 3,
                                       .retries = 0,
                                       .has_prefix_cache = true};
constexpr WorldOptions kForked = {.blocks = {4, 0, 3, 0},
                                  .block_tokens = 2,
                                  .prompt_tokens = 3,
                                  .total_tokens = 5,
                                  .is_fork = true};

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
             {.blocks = {2, 4, 0, 2}, .total_tokens = 3, .retries = 0}},
        Case{"SwapIsShort",
             {.blocks = {1, 4, 0, 1}, .total_tokens = 3, .retries = 0}},
        Case{"NoSwap", {.blocks = {2, 4, 0, 0}, .total_tokens = 3}},
        Case{"OneStore", {.blocks = {3, 0, 2, 0}, .total_tokens = 3}},
        Case{"OneStoreOfFour", {.blocks = {4, 0, 1, 0}, .total_tokens = 3}},
        Case{"TwoRetries", {.blocks = {1, 2, 0, 1}, .retries = 2}}),
    NameOf);

// The requests have one prompt: what one has published the other takes, of a
// running sequence, of a quarantined block or out of the cache, and never as
// what it is not.
INSTANTIATE_TEST_SUITE_P(PrefixCache, TransferWorldTest,
                         testing::Values(Case{"OneStore", kCached},
                                         Case{"TwoStores", kCachedOfTwo},
                                         Case{"LongPrompt",
                                              {.blocks = {6, 0, 3, 0},
                                               .prompt_tokens = 3,
                                               .total_tokens = 5,
                                               .retries = 0,
                                               .has_prefix_cache = true}},
                                         Case{"NoFaults",
                                              {.blocks = {4, 0, 4, 0},
                                               .prompt_tokens = 2,
                                               .total_tokens = 4,
                                               .has_faults = false,
                                               .has_prefix_cache = true}}),
                         NameOf);

// Two answers to one prompt: they share its full block, and each writes on in
// a last block of its own, a copy for the second.
INSTANTIATE_TEST_SUITE_P(Fork, TransferWorldTest,
                         testing::Values(Case{"OneStore", kForked},
                                         Case{"TwoStores",
                                              {.blocks = {2, 3, 0, 2},
                                               .block_tokens = 2,
                                               .prompt_tokens = 3,
                                               .total_tokens = 5,
                                               .is_fork = true}},
                                         Case{"OfAFullBlock",
                                              {.blocks = {3, 0, 3, 0},
                                               .block_tokens = 2,
                                               .prompt_tokens = 2,
                                               .total_tokens = 4,
                                               .retries = 0,
                                               .is_fork = true}},
                                         Case{"NoFaults",
                                              {.blocks = {4, 0, 3, 0},
                                               .block_tokens = 2,
                                               .prompt_tokens = 3,
                                               .total_tokens = 6,
                                               .has_faults = false,
                                               .is_fork = true}}),
                         NameOf);

// Where nothing fails, both requests complete, whatever the order: no pool is
// so small, and no turn so bad, that they block each other.
INSTANTIATE_TEST_SUITE_P(
    NoFaults, TransferWorldTest,
    testing::Values(
        Case{"TwoCompete",
             {.blocks = {2, 3, 0, 2}, .total_tokens = 3, .has_faults = false}},
        Case{"TwoGrow",
             {.blocks = {2, 4, 0, 2}, .total_tokens = 3, .has_faults = false}},
        Case{"OneStore",
             {.blocks = {4, 0, 4, 0}, .total_tokens = 4, .has_faults = false}},
        Case{"TwoGrowFar",
             {.blocks = {2, 4, 0, 4}, .total_tokens = 4, .has_faults = false}}),
    NameOf);

struct PlantedBug {
  const char* name;
  WorldBug bug;
  const char* violation;  // a part of what is said
  WorldOptions options = kPlain;
};
class WorldBugTest : public testing::TestWithParam<PlantedBug> {};

TEST_P(WorldBugTest, IsFound) {
  WorldOptions options = GetParam().options;
  options.bug = GetParam().bug;
  const Exploration found = Explore(options);
  EXPECT_NE(found.violation.find(GetParam().violation), std::string::npos)
      << found.violation;
}

// What leads nowhere shows only once every state is known: with few of them.
INSTANTIATE_TEST_SUITE_P(
    Bugs, WorldBugTest,
    testing::Values(PlantedBug{"FreesBeforeFence", WorldBug::kFreesBeforeFence,
                               "a transfer writes block"},
                    PlantedBug{"FreesOnCancel", WorldBug::kFreesOnCancel,
                               "a transfer writes block"},
                    PlantedBug{"TakesStaleEpoch", WorldBug::kTakesStaleEpoch,
                               "goes on with KV that has not arrived"},
                    PlantedBug{"NoDestinationPin", WorldBug::kNoDestinationPin,
                               "a transfer writes block"},
                    PlantedBug{"NoSourcePin", WorldBug::kNoSourcePin,
                               "a transfer reads block"},
                    PlantedBug{"NoSourcePinOfAFork", WorldBug::kNoSourcePin,
                               "a transfer reads block", kForked},
                    PlantedBug{"NoStepPin", WorldBug::kNoStepPin,
                               "a step touches block"},
                    PlantedBug{"NoStepPinOfCached", WorldBug::kNoStepPin,
                               "a step touches block", kCached},
                    PlantedBug{"RetriesInPlace", WorldBug::kRetriesInPlace,
                               "is written by two transfers"},
                    PlantedBug{"NoReaper", WorldBug::kNoReaper,
                               "no way leads to a goal", kSmall},
                    PlantedBug{"NoPreemption", WorldBug::kNoPreemption,
                               "no way leads to a goal", kNoFaults},
                    PlantedBug{"PublishesEarly", WorldBug::kPublishesEarly,
                               ", which can be found", kCached},
                    PlantedBug{"PublishesBad", WorldBug::kPublishesBad,
                               "is found as what it is not", kCached},
                    PlantedBug{"ForksNoCopy", WorldBug::kForksNoCopy,
                               "of another request", kForked},
                    PlantedBug{"ForksAtOnce", WorldBug::kForksAtOnce,
                               "which is held anew", kForked}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Reached, WorldBugTest,
    testing::Values(
        PlantedBug{"Cached", WorldBug::kReusesCached, "reused", kCached},
        PlantedBug{"Held", WorldBug::kReusesHeld, "reused", kCached},
        PlantedBug{"Quarantined", WorldBug::kReusesQuarantined, "reused",
                   kCached},
        PlantedBug{"Evicted", WorldBug::kEvicts, "evicted", kCached},
        PlantedBug{"CachedOfTwo", WorldBug::kReusesCached, "reused",
                   kCachedOfTwo},
        PlantedBug{"HeldOfTwo", WorldBug::kReusesHeld, "reused", kCachedOfTwo},
        PlantedBug{"QuarantinedOfTwo", WorldBug::kReusesQuarantined, "reused",
                   kCachedOfTwo}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace overfill
