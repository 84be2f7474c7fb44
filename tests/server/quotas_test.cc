#include "server/quotas.h"

#include <atomic>
#include <barrier>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "server/errors.h"
#include "tests/server/test_converter.h"

namespace overfill {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

constexpr SteadyTime kStart = SteadyTime() + std::chrono::hours(1);

Tenant TenantWith(TenantLimits limits) {
  return {.name = "team", .limits = limits};
}

class QuotasTest : public ::testing::Test {
 protected:
  std::shared_ptr<QuotaPlace> Begin(const Tenant& tenant, SteadyTime now) {
    return quotas_.Begin(tenant, now, &refusal_);
  }
  Quotas quotas_;
  QuotaRefusal refusal_;
};

TEST_F(QuotasTest, RequestsInFlightAreCounted) {
  const Tenant tenant = TenantWith({.max_requests_in_flight = 2});
  auto first = Begin(tenant, kStart);
  const auto second = Begin(tenant, kStart);
  ASSERT_NE(first, nullptr);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(Begin(tenant, kStart), nullptr);
  EXPECT_EQ(refusal_.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_STREQ(refusal_.reason, "tenant_in_flight");
  first.reset();
  EXPECT_NE(Begin(tenant, kStart), nullptr);
}

TEST_F(QuotasTest, TenantsDoNotShareALimit) {
  Tenant one = TenantWith({.max_requests_in_flight = 1});
  Tenant other = one;
  other.name = "other";
  const auto first = Begin(one, kStart);
  EXPECT_EQ(Begin(one, kStart), nullptr);
  EXPECT_NE(Begin(other, kStart), nullptr);
}

TEST_F(QuotasTest, TokensComeBackOverAMinute) {
  const Tenant tenant = TenantWith({.max_tokens_per_minute = 600});
  const auto place = Begin(tenant, kStart);
  ASSERT_NE(place, nullptr);
  place->Charge(599);
  EXPECT_NE(Begin(tenant, kStart), nullptr);  // one is left
  place->Charge(1 + 100);                     // and 100 are owed
  EXPECT_EQ(Begin(tenant, kStart), nullptr);
  EXPECT_STREQ(refusal_.reason, "tenant_rate");
  // 10 a second.
  const auto wait = refusal_.retry_after;
  EXPECT_NEAR(std::chrono::duration<double>(wait).count(), 10.1, 1e-6);
  EXPECT_EQ(Begin(tenant, kStart + wait - milliseconds(110)), nullptr);
  EXPECT_NE(Begin(tenant, kStart + wait), nullptr);
}

TEST_F(QuotasTest, WhatIsNotUsedDoesNotAddUp) {
  const Tenant tenant = TenantWith({.max_tokens_per_minute = 60});
  Begin(tenant, kStart);
  const auto place = Begin(tenant, kStart + minutes(10));
  ASSERT_NE(place, nullptr);
  place->Charge(61);
  EXPECT_EQ(Begin(tenant, kStart + minutes(10)), nullptr);
}

TEST_F(QuotasTest, NoLimitIsNone) {
  const Tenant tenant = TenantWith({});
  std::vector<std::shared_ptr<QuotaPlace>> places;
  for (int i = 0; i < 1000; ++i) {
    places.push_back(Begin(tenant, kStart));
    ASSERT_NE(places.back(), nullptr);
    places.back()->Charge(1'000'000'000);
  }
}

TEST_F(QuotasTest, LimitsMayChange) {
  const auto place = Begin(TenantWith({.max_tokens_per_minute = 6000}), kStart);
  place->Charge(3000);
  // What is left is no more than the new bucket holds.
  const Tenant less = TenantWith({.max_tokens_per_minute = 60});
  EXPECT_NE(Begin(less, kStart), nullptr);
  place->Charge(60);
  EXPECT_EQ(Begin(less, kStart), nullptr);
  // Without a limit for a while, then with one: a full bucket.
  EXPECT_NE(Begin(TenantWith({}), kStart + seconds(1)), nullptr);
  EXPECT_NE(Begin(less, kStart + seconds(1)), nullptr);
}

TEST_F(QuotasTest, TimeThatStandsStillOrGoesBackGivesNothing) {
  const Tenant tenant = TenantWith({.max_tokens_per_minute = 60});
  const auto place = Begin(tenant, kStart);
  place->Charge(60);
  EXPECT_EQ(Begin(tenant, kStart - minutes(5)), nullptr);
  EXPECT_EQ(Begin(tenant, kStart), nullptr);
}

TEST_F(QuotasTest, AnEndlessDebtIsABoundedWait) {
  const Tenant tenant = TenantWith({.max_tokens_per_minute = 1});
  const auto place = Begin(tenant, kStart);
  place->Charge(int64_t{1} << 62);
  EXPECT_EQ(Begin(tenant, kStart), nullptr);
  EXPECT_EQ(refusal_.retry_after, std::chrono::hours(1));
}

// All threads ask at once, and nobody leaves before all have been answered.
TEST_F(QuotasTest, ManyThreadsNeverPassTheLimit) {
  constexpr int kThreads = 8;
  constexpr int kLimit = 3;
  const Tenant tenant = TenantWith({.max_requests_in_flight = kLimit});
  for (int round = 0; round < 200; ++round) {
    std::barrier all(kThreads);
    std::atomic<int> inside = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        QuotaRefusal refusal;
        all.arrive_and_wait();
        const auto place = quotas_.Begin(tenant, kStart, &refusal);
        if (place != nullptr) ++inside;
        all.arrive_and_wait();
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(inside, kLimit);
  }
}

}  // namespace
}  // namespace overfill
