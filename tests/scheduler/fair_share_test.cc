#include "scheduler/fair_share.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "scheduler/turn_order.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

constexpr int64_t kIn = FairShare::kPromptWeight;
constexpr int64_t kOut = FairShare::kDecodeWeight;

TEST(FairShare, ChargesByWeight) {
  FairShare shares;
  shares.Arrive("a");
  EXPECT_EQ(shares.counter("a"), 0);
  shares.Charge("a", 10, 3);
  EXPECT_EQ(shares.counter("a"), 10 * kIn + 3 * kOut);
  shares.Start("a");
  shares.Charge("a", 0, 1);
  EXPECT_EQ(shares.counter("a"), 10 * kIn + 4 * kOut);
}

TEST(FairShare, WhoComesLateIsLiftedToTheLeastThatWaits) {
  FairShare shares;
  for (const char* tenant : {"a", "b"}) shares.Arrive(tenant);
  shares.Charge("a", 100, 0);
  shares.Charge("b", 70, 0);
  shares.Arrive("c");
  EXPECT_EQ(shares.counter("c"), 70);
  EXPECT_EQ(shares.counter("nobody"), 70);
  // Nor is one repaid that had something running, and little of it.
  shares.Start("c");
  shares.Charge("b", 500, 0);
  EXPECT_EQ(shares.counter("c"), 70);
  shares.Arrive("c");
  EXPECT_EQ(shares.counter("c"), 100);
}

TEST(FairShare, AnEmptyQueueForgivesNothingAndRepaysNothing) {
  FairShare shares;
  shares.Arrive("a");
  shares.Start("a");
  shares.Charge("a", 1000, 0);
  shares.Arrive("a");
  shares.Leave("a", /*was_waiting=*/true);
  shares.Leave("a", /*was_waiting=*/false);
  EXPECT_EQ(shares.num_tenants(), 0);  // nothing is left to remember
  for (const char* tenant : {"a", "b"}) {
    shares.Arrive(tenant);
    EXPECT_EQ(shares.counter(tenant), 1000);
  }
}

TEST(FairShare, LeavingAndComingBackGainsNothing) {
  FairShare shares;
  for (const char* tenant : {"a", "b"}) shares.Arrive(tenant);
  shares.Charge("a", 500, 0);
  shares.Charge("b", 20, 0);
  shares.Leave("a", /*was_waiting=*/true);
  EXPECT_EQ(shares.counter("a"), 500);
  shares.Arrive("a");
  EXPECT_EQ(shares.counter("a"), 500);
  shares.Leave("a", /*was_waiting=*/true);
  shares.Charge("b", 480, 0);
  EXPECT_EQ(shares.num_tenants(), 1);
  EXPECT_EQ(shares.counter("a"), 500);
}

TEST(FairShare, RemembersSoManyAndNoneGainsByBeingForgotten) {
  constexpr int64_t kTenants = FairShare::kMaxRemembered + 1000;
  FairShare shares;
  shares.Arrive("last");
  for (int64_t i = 0; i < kTenants; ++i) {
    const std::string tenant = absl::StrCat("tenant ", i);
    shares.Arrive(tenant);
    shares.Charge(tenant, 1 + (i * 7919) % kTenants, 0);
    const int64_t counter = shares.counter(tenant);
    shares.Leave(tenant, /*was_waiting=*/true);
    ASSERT_GE(shares.counter(tenant), counter);
    ASSERT_LE(shares.num_tenants(), FairShare::kMaxRemembered + 1);
  }
}

// The same without forgetting: all counters for ever.
class Unforgetting {
 public:
  void Arrive(int tenant) {
    if (At(tenant).waiting++ == 0) {
      At(tenant).counter = std::max(At(tenant).counter, floor_);
    }
    Raise();
  }
  void Start(int tenant) {
    --At(tenant).waiting;
    Raise();
  }
  void Cancel(int tenant) { Start(tenant); }
  void Charge(int tenant, int64_t tokens) {
    At(tenant).counter += tokens;
    Raise();
  }
  int64_t counter(int tenant) { return At(tenant).counter; }

 private:
  struct Account {
    int64_t counter = 0;
    int waiting = 0;
  };
  Account& At(int tenant) {
    if (accounts_.size() <= static_cast<size_t>(tenant)) {
      accounts_.resize(tenant + 1);
    }
    return accounts_[tenant];
  }
  void Raise() {
    int64_t least = -1;
    for (const Account& account : accounts_) {
      if (account.waiting == 0) continue;
      if (least < 0 || account.counter < least) least = account.counter;
    }
    floor_ = std::max(floor_, least);
  }
  std::vector<Account> accounts_;
  int64_t floor_ = 0;
};

TEST(FairShare, ForgettingChangesNoCounterThatMatters) {
  std::mt19937_64 random(TestSeed());
  for (int run = 0; run < 20; ++run) {
    constexpr int kTenants = 8;
    FairShare shares;
    Unforgetting model;
    std::vector<int> waiting(kTenants), running(kTenants);
    for (int i = 0; i < 3000; ++i) {
      const int t = static_cast<int>(random() % kTenants);
      const std::string tenant = absl::StrCat(t);
      const int action = static_cast<int>(random() % 5);
      if (action == 0) {
        shares.Arrive(tenant);
        model.Arrive(t);
        ++waiting[t];
        // The one moment at which a counter may be lifted.
        ASSERT_EQ(shares.counter(tenant), model.counter(t));
      } else if (action == 1 && waiting[t] > 0) {
        shares.Start(tenant);
        model.Start(t);
        --waiting[t];
        ++running[t];
      } else if (action == 2 && running[t] > 0) {
        shares.Leave(tenant, /*was_waiting=*/false);
        --running[t];
      } else if (action == 3 && waiting[t] > 0) {
        shares.Leave(tenant, /*was_waiting=*/true);
        model.Cancel(t);
        --waiting[t];
      } else if (waiting[t] + running[t] > 0) {
        const auto tokens = static_cast<int64_t>(random() % 100);
        shares.Charge(tenant, tokens, 0);
        model.Charge(t, tokens);
      }
      if (waiting[t] > 0) {
        ASSERT_EQ(shares.counter(tenant), model.counter(t));
      }
    }
  }
}

// A server of a few slots: who starts is the order's first, each that runs has
// a token in each step. Tokens served by tenant, and the queue as it is.
class Server {
 public:
  static constexpr int64_t kLongestPrompt = 200;
  static constexpr int64_t kLongestAnswer = 50;

  explicit Server(int num_slots) : num_slots_(num_slots) {}

  static constexpr int64_t Bound(int num_slots) {
    return kIn * kLongestPrompt + kOut * num_slots * kLongestAnswer;
  }

  void Submit(int tenant, int64_t prompt, int64_t answer) {
    names_.emplace(tenant, absl::StrCat("tenant ", tenant));
    shares.Arrive(names_[tenant]);
    queue_.push_back({tenant, prompt, answer, next_order_++});
    ++num_queued[tenant];
  }

  void Step() {
    std::vector<Waiting> waiting;
    for (const Item& item : queue_) {
      waiting.push_back(
          {.arrival = SteadyTime(std::chrono::seconds(item.order)),
           .order = item.order,
           .tenant = names_[item.tenant],
           .cost_tokens = item.prompt});
    }
    const size_t num_free = num_slots_ - running_.size();
    std::vector<size_t> starts =
        TurnOrder(waiting, shares, SteadyTime(), {}, num_free);
    for (size_t i : starts) {
      const Item& item = queue_[i];
      shares.Start(names_[item.tenant]);
      Serve(item.tenant, item.prompt, 0);
      --num_queued[item.tenant];
      running_.push_back(item);
    }
    std::sort(starts.rbegin(), starts.rend());
    for (size_t i : starts) queue_.erase(queue_.begin() + i);
    for (Item& item : running_) {
      Serve(item.tenant, 0, 1);
      if (--item.answer == 0) {
        shares.Leave(names_[item.tenant], /*was_waiting=*/false);
      }
    }
    std::erase_if(running_, [](const Item& item) { return item.answer == 0; });
  }

  FairShare shares;
  std::map<int, int64_t> served;  // weighted, by tenant
  std::map<int, int> num_queued;
  int64_t counter(int tenant) { return shares.counter(names_[tenant]); }

 private:
  struct Item {
    int tenant;
    int64_t prompt;
    int64_t answer;
    uint64_t order;
  };

  void Serve(int tenant, int64_t prompt, int64_t decode) {
    shares.Charge(names_[tenant], prompt, decode);
    served[tenant] += kIn * prompt + kOut * decode;
  }

  const size_t num_slots_;
  std::map<int, std::string> names_;
  std::deque<Item> queue_;
  std::deque<Item> running_;
  uint64_t next_order_ = 0;
};

TEST(FairShare, CountersOfThoseThatWaitStayTogether) {
  std::mt19937_64 random(TestSeed() + 1);
  for (int run = 0; run < 30; ++run) {
    const int num_slots = 1 + static_cast<int>(random() % 8);
    const int num_tenants = 2 + static_cast<int>(random() % 5);
    // Each has a size of prompts and answers, and a rate, of its own.
    struct Habit {
      int64_t prompt, answer, each;
    };
    std::vector<Habit> habits;
    for (int t = 0; t < num_tenants; ++t) {
      habits.push_back(
          {1 + static_cast<int64_t>(random() % Server::kLongestPrompt),
           1 + static_cast<int64_t>(random() % Server::kLongestAnswer),
           1 + static_cast<int64_t>(random() % 60)});
    }
    Server server(num_slots);
    for (int step = 0; step < 1500; ++step) {
      for (int t = 0; t < num_tenants; ++t) {
        const Habit& habit = habits[t];
        // They pause, too.
        if (step / 200 % (t + 1) != 0 || random() % habit.each != 0) continue;
        server.Submit(t, 1 + static_cast<int64_t>(random() % habit.prompt),
                      1 + static_cast<int64_t>(random() % habit.answer));
      }
      server.Step();
      int64_t least = INT64_MAX, most = INT64_MIN;
      for (const auto& [tenant, count] : server.num_queued) {
        if (count == 0) continue;
        least = std::min(least, server.counter(tenant));
        most = std::max(most, server.counter(tenant));
      }
      if (most < least) continue;
      ASSERT_LE(most - least, Server::Bound(num_slots));
    }
  }
}

TEST(FairShare, ALateTenantHasItsShareAndNoMore) {
  constexpr int kSlots = 4;
  std::mt19937_64 random(TestSeed() + 2);
  Server server(kSlots);
  const auto fill = [&](int tenant) {
    while (server.num_queued[tenant] < 5) {
      server.Submit(
          tenant, 1 + static_cast<int64_t>(random() % Server::kLongestPrompt),
          1 + static_cast<int64_t>(random() % Server::kLongestAnswer));
    }
  };
  const auto run = [&](int num_tenants, int num_steps) {
    for (int step = 0; step < num_steps; ++step) {
      for (int t = 0; t < num_tenants; ++t) fill(t);
      server.Step();
    }
  };
  run(2, 2000);
  const auto before = server.served;
  run(3, 2000);
  std::vector<int64_t> served;
  for (int t = 0; t < 3; ++t) {
    served.push_back(server.served[t] - (t < 2 ? before.at(t) : 0));
  }
  const auto [least, most] = std::minmax_element(served.begin(), served.end());
  EXPECT_LE(*most - *least, 2 * Server::Bound(kSlots));
  // More by far than the bound, or it would say nothing.
  EXPECT_GT(*least, 10 * Server::Bound(kSlots));
}

}  // namespace
}  // namespace overfill
