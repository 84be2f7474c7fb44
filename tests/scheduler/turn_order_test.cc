#include "scheduler/turn_order.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
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

constexpr Ageing kNoAgeing;

Ageing Each(nanoseconds period, int32_t top = 1000) {
  return {.period = period, .top = top};
}

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
  const auto after = [](nanoseconds waited, const Ageing& ageing) {
    return EffectivePriority(-3, At(100), At(100) + waited, ageing);
  };
  EXPECT_EQ(after(seconds(0), Each(seconds(2))), -3);
  EXPECT_EQ(after(seconds(2) - nanoseconds(1), Each(seconds(2))), -3);
  EXPECT_EQ(after(seconds(2), Each(seconds(2))), -2);
  EXPECT_EQ(after(seconds(21), Each(seconds(2))), 7);
  EXPECT_EQ(after(seconds(21), kNoAgeing), -3);
  EXPECT_EQ(after(seconds(21), Each(-seconds(1))), -3);
  EXPECT_EQ(after(-seconds(21), Each(seconds(2))), -3);  // from the future
}

TEST(EffectivePriority, StopsAtTheTop) {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
  const SteadyTime late = At(1'000'000'000);
  EXPECT_EQ(EffectivePriority(2, At(0), At(9), Each(seconds(1), 5)), 5);
  EXPECT_EQ(EffectivePriority(5, At(0), At(9), Each(seconds(1), 5)), 5);
  EXPECT_EQ(EffectivePriority(7, At(0), At(9), Each(seconds(1), 5)), 7);
  EXPECT_EQ(EffectivePriority(kMost - 1, At(0), At(2), Each(seconds(1), kMost)),
            kMost);
  EXPECT_EQ(EffectivePriority(kLeast, At(0), late, Each(nanoseconds(1), kMost)),
            kMost);
  EXPECT_EQ(EffectivePriority(kLeast, At(0), At(2), Each(seconds(1), kMost)),
            kLeast + 2);
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
  EXPECT_EQ(TurnOrder(waiting, shares, At(9), Each(seconds(5), 1)),
            Order({1, 2, 0, 4, 3}));
  EXPECT_EQ(TurnOrder(waiting, shares, At(12), Each(seconds(10), 1)),
            Order({1, 0, 4, 2, 3}));
}

// However old it is: ageing lifts all of it to the newcomer's priority, and
// there the counters count.
TEST(TurnOrder, AnOldBacklogIsNotBeforeAnotherTenantsNewRequest) {
  FairShare shares;
  std::vector<Waiting> waiting;
  shares.Arrive("flood");
  for (int i = 0; i < 100; ++i) waiting.push_back(Make("flood", i, 1));
  shares.Arrive("small");
  shares.Charge("flood", 10, 0);
  waiting.push_back(Make("small", 200, 1));
  EXPECT_EQ(TurnOrder(waiting, shares, At(200), Each(seconds(1), 0), 3),
            Order({100, 0, 1}));
  waiting[100].priority = 3;
  EXPECT_EQ(TurnOrder(waiting, shares, At(200), Each(seconds(1), 3), 3),
            Order({100, 0, 1}));
  waiting[100].priority = -1;  // has just come
  EXPECT_EQ(TurnOrder(waiting, shares, At(200), Each(seconds(1), 0), 3),
            Order({0, 1, 2}));
  EXPECT_EQ(TurnOrder(waiting, shares, At(201), Each(seconds(1), 0), 3),
            Order({100, 0, 1}));
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
               const Ageing& ageing) {
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
    for (const Ageing& ageing : {kNoAgeing, Each(seconds(7), 2)}) {
      Order expected(load.waiting.size());
      std::iota(expected.begin(), expected.end(), 0);
      std::sort(expected.begin(), expected.end(),
                ByArrival(load.waiting, At(60), ageing));
      ASSERT_EQ(TurnOrder(load.waiting, load.shares, At(60), ageing), expected);
    }
  }
}

// As it is defined, one at a time.
Order SlowOrder(const Load& load, SteadyTime now, const Ageing& ageing) {
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
    const Ageing ageing = Each(seconds(random() % 20), 2);
    Order expected = SlowOrder(load, At(60), ageing);
    ASSERT_EQ(TurnOrder(load.waiting, load.shares, At(60), ageing), expected);
    const size_t limit = random() % 70;
    expected.resize(std::min(limit, expected.size()));
    ASSERT_EQ(TurnOrder(load.waiting, load.shares, At(60), ageing, limit),
              expected);
  }
}

// One is served each second, and two to four come, of all tenants and most of
// them with a higher priority. So many seconds until an early one of the least
// priority is served; none: not within `limit`.
std::optional<int64_t> SecondsUntilServed(std::mt19937_64& random,
                                          nanoseconds period, int num_tenants,
                                          int64_t limit) {
  constexpr int32_t kHighest = 3;
  std::vector<std::string> names;
  for (int t = 0; t < num_tenants; ++t) {
    names.push_back(absl::StrCat("tenant ", t));
  }
  FairShare shares;
  std::vector<Waiting> waiting;
  uint64_t order = 0;
  const auto arrive = [&](SteadyTime at, absl::string_view tenant,
                          int32_t priority) {
    waiting.push_back({.priority = priority,
                       .arrival = at,
                       .order = order++,
                       .tenant = tenant,
                       .cost_tokens = 1});
    shares.Arrive(tenant);
  };
  arrive(At(0), names[0], 0);
  for (int64_t second = 1; second <= limit; ++second) {
    for (uint64_t i = 0; i < 2 + random() % 3; ++i) {
      const auto priority = static_cast<int32_t>(random() % (kHighest + 1));
      arrive(At(second), names[random() % names.size()],
             i == 0 ? kHighest : priority);
    }
    int32_t top = 0;
    for (const Waiting& one : waiting) top = std::max(top, one.priority);
    const size_t next =
        TurnOrder(waiting, shares, At(second), Each(period, top), 1).at(0);
    if (waiting[next].order == 0) return second;
    shares.Start(waiting[next].tenant);
    shares.Charge(waiting[next].tenant, waiting[next].cost_tokens, 0);
    shares.Leave(waiting[next].tenant, /*was_waiting=*/false);
    waiting.erase(waiting.begin() + static_cast<int64_t>(next));
  }
  return std::nullopt;
}

TEST(TurnOrder, WithAgeingNothingStarves) {
  std::mt19937_64 random(TestSeed() + 2);
  for (int run = 0; run < 10; ++run) {
    const auto period = static_cast<int64_t>(1 + random() % 10);
    const auto num_tenants = static_cast<int>(1 + random() % 20);
    // At the top after three periods, and the first of its tenant there.
    const int64_t limit = 3 * period + 3 * num_tenants;
    EXPECT_TRUE(SecondsUntilServed(random, seconds(period), num_tenants, limit))
        << period << " s, " << num_tenants << " tenants";
    // It can fail: where nothing ages, the least priority is never served.
    EXPECT_FALSE(
        SecondsUntilServed(random, nanoseconds(0), num_tenants, 10 * limit));
  }
}

}  // namespace
}  // namespace overfill
