#include "scheduler/turn_order.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

using std::chrono::nanoseconds;
using std::chrono::seconds;
using Order = std::vector<size_t>;

constexpr nanoseconds kNoAgeing{0};

SteadyTime At(int64_t second) { return SteadyTime(seconds(second)); }

Waiting Make(absl::string_view tenant, int64_t arrival, int64_t cost = 1,
             int32_t priority = 0) {
  return {.priority = priority,
          .arrival = At(arrival),
          .order = static_cast<uint64_t>(arrival),
          .tenant = tenant,
          .cost_tokens = cost};
}

TEST(EffectivePriority, RisesWithEachFullPeriod) {
  const auto after = [](nanoseconds waited, nanoseconds ageing) {
    return EffectivePriority(-3, At(100), At(100) + waited, ageing);
  };
  EXPECT_EQ(after(seconds(0), seconds(2)), -3);
  EXPECT_EQ(after(seconds(2) - nanoseconds(1), seconds(2)), -3);
  EXPECT_EQ(after(seconds(2), seconds(2)), -2);
  EXPECT_EQ(after(seconds(21), seconds(2)), 7);
  EXPECT_EQ(after(seconds(21), kNoAgeing), -3);
  EXPECT_EQ(after(seconds(21), -seconds(1)), -3);
  EXPECT_EQ(after(-seconds(21), seconds(2)), -3);  // from the future
}

TEST(EffectivePriority, StopsAtTheLargest) {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
  const SteadyTime late = At(1'000'000'000);
  EXPECT_EQ(EffectivePriority(kMost, At(0), late, seconds(1)), kMost);
  EXPECT_EQ(EffectivePriority(kMost - 1, At(0), At(2), seconds(1)), kMost);
  EXPECT_EQ(EffectivePriority(kLeast, At(0), late, nanoseconds(1)), kMost);
  EXPECT_EQ(EffectivePriority(kLeast, At(0), At(2), seconds(1)), kLeast + 2);
}

TEST(TurnOrder, NobodyWaits) {
  EXPECT_EQ(TurnOrder({}, FairShare(), At(0), kNoAgeing), Order());
}

TEST(TurnOrder, PriorityThenShareThenArrival) {
  FairShare shares;
  for (const char* tenant : {"a", "b"}) shares.Arrive(tenant);
  shares.Charge("a", 15, 0);
  const std::vector<Waiting> waiting = {Make("a", 1), Make("b", 2, 10),
                                        Make("b", 3, 10), Make("b", 4),
                                        Make("a", 5, 1, /*priority=*/1)};
  // b is 15 behind, then 5, then 5 ahead; a's cost at priority 1 counts.
  EXPECT_EQ(TurnOrder(waiting, shares, At(9), kNoAgeing),
            Order({4, 1, 2, 0, 3}));
  // With what they have waited: all of priority 1, then only the oldest two.
  EXPECT_EQ(TurnOrder(waiting, shares, At(9), seconds(5)),
            Order({1, 2, 0, 4, 3}));
  EXPECT_EQ(TurnOrder(waiting, shares, At(12), seconds(10)),
            Order({1, 0, 4, 2, 3}));
}

TEST(TurnOrder, TenantsTakeTurnsByCost) {
  const FairShare shares;
  const std::vector<Waiting> waiting = {
      Make("a", 1, 30), Make("a", 2, 30), Make("a", 3, 30), Make("b", 4, 10),
      Make("b", 5, 10), Make("b", 6, 10), Make("b", 7, 10), Make("c", 8, 70)};
  EXPECT_EQ(TurnOrder(waiting, shares, At(9), kNoAgeing),
            Order({0, 3, 7, 4, 5, 1, 6, 2}));
}

TEST(TurnOrder, OneArrivalIsBrokenByOrder) {
  std::vector<Waiting> waiting(3, Make("a", 1));
  for (size_t i = 0; i < 3; ++i) waiting[i].order = 7 - i;
  EXPECT_EQ(TurnOrder(waiting, FairShare(), At(1), kNoAgeing),
            Order({2, 1, 0}));
}

struct Load {
  std::vector<std::string> names;
  std::vector<Waiting> waiting;
  FairShare shares;
};

// `waiting` in no order at all.
void Fill(std::mt19937_64& random, int num_tenants, int count, Load& load) {
  for (int t = 0; t < num_tenants; ++t) {
    load.names.push_back(absl::StrCat("tenant ", t));
  }
  for (const std::string& name : load.names) {
    load.shares.Arrive(name);
    load.shares.Charge(name, static_cast<int64_t>(random() % 1000), 0);
  }
  for (int i = 0; i < count; ++i) {
    load.waiting.push_back(
        {.priority = static_cast<int32_t>(random() % 4) - 1,
         .arrival = At(static_cast<int64_t>(random() % 50)),
         .order = static_cast<uint64_t>(i),
         .tenant = load.names[random() % num_tenants],
         .cost_tokens = static_cast<int64_t>(random() % 200)});
  }
  std::shuffle(load.waiting.begin(), load.waiting.end(), random);
}

auto ByArrival(const std::vector<Waiting>& waiting, SteadyTime now,
               nanoseconds ageing) {
  return [&waiting, now, ageing](size_t a, size_t b) {
    const auto key = [&](size_t i) {
      const Waiting& one = waiting[i];
      return std::make_tuple(
          -int64_t{EffectivePriority(one.priority, one.arrival, now, ageing)},
          one.arrival, one.order);
    };
    return key(a) < key(b);
  };
}

TEST(TurnOrder, OneTenantIsPriorityThenArrival) {
  std::mt19937_64 random(TestSeed());
  for (int run = 0; run < 200; ++run) {
    Load load;
    Fill(random, 1, static_cast<int>(random() % 60), load);
    for (const nanoseconds ageing : {kNoAgeing, nanoseconds(seconds(7))}) {
      Order expected(load.waiting.size());
      std::iota(expected.begin(), expected.end(), 0);
      std::sort(expected.begin(), expected.end(),
                ByArrival(load.waiting, At(60), ageing));
      ASSERT_EQ(TurnOrder(load.waiting, load.shares, At(60), ageing), expected);
    }
  }
}

// As it is defined, one at a time.
Order SlowOrder(const Load& load, SteadyTime now, nanoseconds ageing) {
  const auto& waiting = load.waiting;
  std::map<absl::string_view, int64_t> counters;
  for (const Waiting& one : waiting) {
    counters[one.tenant] = load.shares.counter(one.tenant);
  }
  Order left(waiting.size());
  std::iota(left.begin(), left.end(), 0);
  Order order;
  while (!left.empty()) {
    const auto next =
        std::min_element(left.begin(), left.end(), [&](size_t a, size_t b) {
          const auto key = [&](size_t i) {
            const Waiting& one = waiting[i];
            return std::make_tuple(-int64_t{EffectivePriority(
                                       one.priority, one.arrival, now, ageing)},
                                   counters[one.tenant], one.arrival,
                                   one.order);
          };
          return key(a) < key(b);
        });
    order.push_back(*next);
    counters[waiting[*next].tenant] += waiting[*next].cost_tokens;
    left.erase(next);
  }
  return order;
}

TEST(TurnOrder, IsAsDefinedAndTheLimitCutsIt) {
  std::mt19937_64 random(TestSeed() + 1);
  for (int run = 0; run < 300; ++run) {
    Load load;
    Fill(random, 1 + static_cast<int>(random() % 6),
         static_cast<int>(random() % 60), load);
    const nanoseconds ageing = seconds(random() % 20);
    Order expected = SlowOrder(load, At(60), ageing);
    ASSERT_EQ(TurnOrder(load.waiting, load.shares, At(60), ageing), expected);
    const size_t limit = random() % 70;
    expected.resize(std::min(limit, expected.size()));
    ASSERT_EQ(TurnOrder(load.waiting, load.shares, At(60), ageing, limit),
              expected);
  }
}

// One is served each second, and two to four come, most of them with a higher
// priority and of tenants that have had less.
TEST(TurnOrder, WithAgeingNothingStarves) {
  std::mt19937_64 random(TestSeed() + 2);
  constexpr int32_t kHighest = 3;
  for (int run = 0; run < 10; ++run) {
    const nanoseconds ageing = seconds(1 + random() % 10);
    std::vector<std::string> names;
    for (int t = 0; t < 400; ++t) names.push_back(absl::StrCat("tenant ", t));
    FairShare shares;
    shares.Arrive("one that keeps the others' counters low");
    std::vector<Waiting> waiting = {Make("victim", 100)};
    shares.Arrive("victim");
    shares.Charge("victim", 1'000'000, 0);
    // Whoever comes after this has no say.
    const SteadyTime last = At(100) + (kHighest + 1) * ageing;
    int64_t most_ahead = 0;
    bool has_started = false;
    uint64_t order = 1000;
    for (int64_t second = 100; !has_started; ++second) {
      for (uint64_t i = 0; i < 2 + random() % 3; ++i) {
        waiting.push_back({.priority = static_cast<int32_t>(random() % 4),
                           .arrival = At(second) + nanoseconds(1),
                           .order = order++,
                           .tenant = names[random() % names.size()],
                           .cost_tokens = 1});
        shares.Arrive(waiting.back().tenant);
        if (waiting.back().arrival < last) ++most_ahead;
      }
      const size_t next =
          TurnOrder(waiting, shares, At(second + 1), ageing, 1).at(0);
      has_started = waiting[next].tenant == "victim";
      shares.Start(waiting[next].tenant);
      shares.Charge(waiting[next].tenant, waiting[next].cost_tokens, 0);
      shares.Leave(waiting[next].tenant, /*was_waiting=*/false);
      waiting.erase(waiting.begin() + static_cast<int64_t>(next));
      ASSERT_LE(second - 100, most_ahead + 1);
    }
  }
}

}  // namespace
}  // namespace overfill
