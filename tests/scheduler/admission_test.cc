#include "scheduler/admission.h"

#include <limits>
#include <string>

#include "gtest/gtest.h"
#include "scheduler/route.h"

namespace overfill {
namespace {

constexpr AdmissionLimits kLimits = {.vocab_size = 100,
                                     .max_sequence_tokens = 64,
                                     .max_queued_requests = 3,
                                     .max_queued_tokens = 20};
constexpr KvStores kShared = {.block_tokens = 4, .prefill_blocks = 10};
constexpr KvStores kApart = {
    .block_tokens = 4, .prefill_blocks = 10, .decode_blocks = 6};
const SteadyTime kNow = SteadyTime() + std::chrono::hours(1);

Request Make(const std::string& id, int32_t prompt_tokens,
             int32_t max_tokens = 1) {
  Request request;
  request.request_id = id;
  request.prompt_ids.resize(prompt_tokens, 1);
  request.stop_rules.max_tokens = max_tokens;
  return request;
}

TEST(Route, SaysWhichPoolMakesWhat) {
  const auto pools = [](DecodePath path) {
    const Route route = MakeRoute(path);
    return std::make_pair(PoolOf(route, Span::kPrompt),
                          PoolOf(route, Span::kRest));
  };
  EXPECT_EQ(pools(DecodePath::kTwoStage),
            std::make_pair(PoolId::kPrefill, PoolId::kDecode));
  EXPECT_EQ(pools(DecodePath::kFull),
            std::make_pair(PoolId::kPrefill, PoolId::kPrefill));
  EXPECT_EQ(pools(DecodePath::kPruned),
            std::make_pair(PoolId::kDecode, PoolId::kDecode));
}

TEST(KvStores, TheWorstCaseIsPromptAndGrowth) {
  const Route two_stage = MakeRoute(DecodePath::kTwoStage);
  using Blocks = std::array<int64_t, 2>;
  // The last token has no KV: 4 + 5 - 1 positions are two blocks.
  EXPECT_EQ(kShared.WorstCase(two_stage, 4, 5), (Blocks{2, 0}));
  EXPECT_EQ(kShared.WorstCase(two_stage, 4, 6), (Blocks{3, 0}));
  EXPECT_EQ(kApart.WorstCase(two_stage, 5, 5), (Blocks{2, 3}));
  EXPECT_EQ(kApart.WorstCase(two_stage, 5, 1), (Blocks{2, 0}));
  EXPECT_EQ(kApart.WorstCase(MakeRoute(DecodePath::kFull), 5, 5),
            (Blocks{3, 0}));
  EXPECT_EQ(kApart.WorstCase(MakeRoute(DecodePath::kPruned), 5, 5),
            (Blocks{0, 3}));
}

absl::StatusCode Code(const Request& request,
                      const KvStores& stores = kShared) {
  return CheckRequest(request, kLimits, stores).status.code();
}

TEST(CheckRequest, RefusesWhatCanNeverRun) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(Code(Make("a", 10, 10)), absl::StatusCode::kOk);
  EXPECT_EQ(Code(Make("a", 0, 10)), kInvalid);
  EXPECT_EQ(Code(Make("a", 10, 0)), kInvalid);
  EXPECT_EQ(Code(Make("a", 10, -1)), kInvalid);
  EXPECT_EQ(Code(Make("a", 10, std::numeric_limits<int32_t>::max())), kInvalid);
  EXPECT_EQ(Code(Make("a", 10, std::numeric_limits<int32_t>::min())), kInvalid);
  EXPECT_EQ(Code(Make("a", 30, 11)), absl::StatusCode::kOk);  // 40 positions
  EXPECT_EQ(Code(Make("a", 30, 12)), kInvalid);
  Request request = Make("a", 10, 10);
  request.prompt_ids[9] = 100;
  EXPECT_EQ(Code(request), kInvalid);
  request.prompt_ids[9] = -1;
  EXPECT_EQ(Code(request), kInvalid);
  request = Make("a", 10, 10);
  request.stop_rules.stop = {""};
  EXPECT_EQ(Code(request), kInvalid);
}

TEST(CheckRequest, LooksAtTheStoresOfTheRoute) {
  Request request = Make("a", 20, 10);  // 29 positions, 8 blocks
  const Refusal refusal = CheckRequest(request, kLimits, kApart);
  EXPECT_EQ(refusal.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_STREQ(refusal.reason, "too_large");
  request.path = DecodePath::kFull;
  EXPECT_EQ(Code(request, kApart), absl::StatusCode::kOk);
  request.path = DecodePath::kPruned;
  EXPECT_EQ(Code(request, kApart), absl::StatusCode::kInvalidArgument);
}

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

std::string Reason(const Admission& admission, const Request& request) {
  return admission.Check(request, kNow).reason;
}

Request Of(const std::string& tenant, int32_t prompt_tokens,
           int64_t prompt_bytes = 0) {
  Request request = Make("", prompt_tokens);
  request.tenant = tenant;
  request.prompt_bytes = prompt_bytes;
  return request;
}

TEST(Admission, BoundsTheQueue) {
  Admission admission(kLimits);
  admission.Enqueued(Make("a", 8), kNow);
  EXPECT_EQ(Reason(admission, Make("b", 12)), "");
  EXPECT_EQ(Reason(admission, Make("b", 13)), "queued_tokens");
  admission.Enqueued(Make("b", 1), kNow);
  admission.Enqueued(Make("c", 1), kNow);
  EXPECT_EQ(Reason(admission, Make("d", 1)), "queue_full");
  EXPECT_EQ(admission.queued_tokens(), 10);
  admission.Started(Make("a", 8), kNow);
  EXPECT_EQ(Reason(admission, Make("d", 1)), "");
  admission.Ended(Make("b", 1), /*was_queued=*/true, kNow);
  admission.Ended(Make("c", 1), /*was_queued=*/true, kNow);
  EXPECT_EQ(admission.queued_tokens(), 0);
}

TEST(Admission, BoundsTheQueuedBytes) {
  AdmissionLimits limits = kLimits;
  limits.max_queued_bytes = 1000;
  Admission admission(limits);
  EXPECT_EQ(Reason(admission, Of("a", 1, 5000)), "");  // to an empty queue
  admission.Enqueued(Of("a", 1, 400), kNow);
  EXPECT_EQ(Reason(admission, Of("b", 1, 600)), "");
  EXPECT_EQ(Reason(admission, Of("b", 1, 601)), "queued_bytes");
  EXPECT_EQ(Reason(admission, Of("b", 1, std::numeric_limits<int64_t>::max())),
            "queued_bytes");
  EXPECT_EQ(Reason(admission, Of("b", 1, -1)), "");
  // More is queued than may be: no room for any byte, and none is lost.
  admission.Started(Of("a", 1, 400), kNow);
  admission.Enqueued(Of("a", 1, 5000), kNow);
  EXPECT_EQ(Reason(admission, Of("b", 1, 1)), "queued_bytes");
  admission.Ended(Of("a", 1, 5000), /*was_queued=*/true, kNow);
  EXPECT_EQ(Reason(admission, Of("b", 1, 1000)), "");
}

constexpr AdmissionLimits kTenantLimits = {.vocab_size = 100,
                                           .max_sequence_tokens = 64,
                                           .max_queued_requests = 10,
                                           .max_queued_tokens = 100,
                                           .max_queued_bytes = 1000,
                                           .max_tenant_queued_requests = 3,
                                           .max_tenant_queued_tokens = 30,
                                           .max_tenant_queued_bytes = 300};

TEST(Admission, ATenantsFullQueueLeavesTheOthersRoom) {
  Admission admission(kTenantLimits);
  for (int i = 0; i < 3; ++i) admission.Enqueued(Of("a", 1, 1), kNow);
  const Refusal refusal = admission.Check(Of("a", 1), kNow);
  EXPECT_STREQ(refusal.reason, "tenant_queue_full");
  EXPECT_EQ(refusal.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(admission, Of("b", 30, 300)), "");
  admission.Started(Of("a", 1, 1), kNow);
  EXPECT_EQ(Reason(admission, Of("a", 28, 298)), "");
  EXPECT_EQ(Reason(admission, Of("a", 29, 298)), "tenant_queued_tokens");
  EXPECT_EQ(Reason(admission, Of("a", 28, 299)), "tenant_queued_bytes");
  // Whoever has nothing queued may queue any one, but not past the whole's.
  EXPECT_EQ(Reason(admission, Of("b", 50, 900)), "");
  EXPECT_EQ(Reason(admission, Of("b", 99, 900)), "queued_tokens");
  EXPECT_EQ(Reason(admission, Of("b", 50, 999)), "queued_bytes");
}

TEST(Admission, TheWholeIsBoundedWhateverTheTenants) {
  Admission admission(kTenantLimits);
  for (int i = 0; i < 10; ++i) {
    const Request request = Of(std::to_string(i), 1);
    ASSERT_EQ(Reason(admission, request), "");
    admission.Enqueued(request, kNow);
  }
  EXPECT_EQ(Reason(admission, Of("another", 1)), "queue_full");
}

TEST(Admission, PrecheckNeedsNoTokens) {
  Admission admission(kTenantLimits);
  const auto precheck = [&](const char* tenant, int64_t bytes,
                            SteadyTime deadline = SteadyTime::max()) {
    return std::string(
        admission.Precheck(tenant, bytes, deadline, kNow).reason);
  };
  EXPECT_EQ(precheck("a", 100), "");
  EXPECT_EQ(precheck("a", 100, kNow), "deadline");
  EXPECT_EQ(precheck("a", 100, kNow + nanoseconds(1)), "");
  // However many tokens it may have, there is room for one.
  admission.Enqueued(Of("a", 29, 200), kNow);
  EXPECT_EQ(precheck("a", 100), "");
  EXPECT_EQ(precheck("a", 101), "tenant_queued_bytes");
  EXPECT_EQ(precheck("b", 801), "queued_bytes");
  EXPECT_EQ(precheck("b", -5), "");
  admission.Enqueued(Of("a", 1), kNow);
  EXPECT_EQ(precheck("a", 0), "tenant_queued_tokens");
  admission.Enqueued(Of("b", 70), kNow);
  EXPECT_EQ(precheck("c", 0), "queued_tokens");
  admission.Ended(Of("b", 70), /*was_queued=*/true, kNow);
  admission.Enqueued(Of("a", 0), kNow);
  EXPECT_EQ(precheck("a", 0), "tenant_queue_full");
  for (int i = 0; i < 7; ++i) {
    admission.Enqueued(Of(std::to_string(i), 1), kNow);
  }
  EXPECT_EQ(precheck("b", 0), "queue_full");
  admission.StopAdmission();
  EXPECT_EQ(precheck("b", 0, kNow), "draining");
}

TEST(Admission, AnEmptyQueueTakesAnyOne) {
  const Admission admission(kLimits);
  EXPECT_EQ(Reason(admission, Make("a", 30)), "");
}

TEST(Admission, IdsAreUniqueAmongATenantsLiveRequests) {
  Admission admission(kLimits);
  Request request = Make("a", 1);
  admission.Enqueued(request, kNow);
  EXPECT_EQ(admission.Check(request, kNow).status.code(),
            absl::StatusCode::kAlreadyExists);
  Request other = request;
  other.tenant = "b";
  EXPECT_EQ(Reason(admission, other), "");
  admission.Started(request, kNow);
  EXPECT_EQ(Reason(admission, request), "duplicate");
  admission.Ended(request, /*was_queued=*/false, kNow);
  EXPECT_EQ(Reason(admission, request), "");
  admission.Enqueued(Make("", 1), kNow);
  EXPECT_EQ(Reason(admission, Make("", 1)), "");
}

TEST(Admission, LateAndDrainingAreRefused) {
  Admission admission(kLimits);
  Request request = Make("a", 1);
  request.deadline = kNow;
  EXPECT_EQ(admission.Check(request, kNow).status.code(),
            absl::StatusCode::kDeadlineExceeded);
  request.deadline = kNow + nanoseconds(1);
  EXPECT_EQ(Reason(admission, request), "");
  admission.StopAdmission();
  EXPECT_EQ(admission.Check(request, kNow).status.code(),
            absl::StatusCode::kUnavailable);
}

constexpr AdmissionLimits kRoomy = {.vocab_size = 100,
                                    .max_sequence_tokens = 64,
                                    .max_queued_requests = 40,
                                    .max_queued_tokens = 10'000,
                                    .max_tenant_queued_requests = 35};

// One that drains 100 tokens a second until kNow, and has nothing queued then.
Admission Draining(const AdmissionLimits& limits = kRoomy) {
  Admission admission(limits);
  SteadyTime now = kNow - seconds(60);
  admission.Enqueued(Of("past", 10), now);
  for (int i = 0; i < 600; ++i) {
    now += milliseconds(100);
    admission.Enqueued(Of("past", 10), now);
    admission.Started(Of("past", 10), now);
    admission.Ended(Of("past", 10), /*was_queued=*/false, now);
  }
  admission.Ended(Of("past", 10), /*was_queued=*/true, now);
  return admission;
}

Request Urgent(const std::string& tenant, nanoseconds left,
               int32_t priority = 0) {
  Request request = Of(tenant, 10);
  request.deadline = kNow + left;
  request.priority = priority;
  return request;
}

TEST(Admission, WhatCannotStartInTimeIsRefused) {
  Admission admission = Draining();
  EXPECT_NEAR(admission.drain_rate().TokensPerSecond(kNow), 100, 2);
  EXPECT_EQ(Reason(admission, Urgent("a", milliseconds(1))), "");
  for (int i = 0; i < 30; ++i) admission.Enqueued(Of("a", 50), kNow);
  // 1500 tokens are ahead, 15 s of them.
  const Refusal refusal = admission.Check(Urgent("a", seconds(5)), kNow);
  EXPECT_EQ(refusal.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_STREQ(refusal.reason, "deadline_unreachable");
  // In 7.5 s of time what is left of the wait is no more clearly too long.
  EXPECT_NEAR(std::chrono::duration<double>(refusal.retry_after).count(), 7.5,
              0.3);
  EXPECT_EQ(Reason(admission, Urgent("a", seconds(9))), "deadline_unreachable");
  // Past the deadline by the estimate, but not clearly.
  EXPECT_EQ(Reason(admission, Urgent("a", seconds(11))), "");
  EXPECT_EQ(Reason(admission, Of("a", 10)), "");  // without a deadline
}

TEST(Admission, OnlyWhatIsCertainlyAheadCounts) {
  Admission admission = Draining();
  for (int i = 0; i < 30; ++i) admission.Enqueued(Of("a", 50), kNow);
  EXPECT_EQ(Reason(admission, Urgent("a", seconds(5), -1)),
            "deadline_unreachable");
  EXPECT_EQ(Reason(admission, Urgent("a", seconds(5), 1)), "");
  // Another tenant's turn comes at once, unless a higher priority is before.
  EXPECT_EQ(Reason(admission, Urgent("b", seconds(5))), "");
  EXPECT_EQ(Reason(admission, Urgent("b", seconds(5), -1)),
            "deadline_unreachable");
  // With 500 tokens of its own ahead, as many of the other's are.
  for (int i = 0; i < 8; ++i) admission.Enqueued(Of("b", 50), kNow);
  EXPECT_EQ(Reason(admission, Urgent("b", seconds(5))), "deadline_unreachable");
  EXPECT_EQ(Reason(admission, Urgent("b", seconds(6))), "");
}

TEST(Admission, NothingIsUnreachableBeforeARateIsKnown) {
  Admission admission(kRoomy);
  for (int i = 0; i < 30; ++i) admission.Enqueued(Of("a", 50), kNow);
  EXPECT_EQ(Reason(admission, Urgent("a", milliseconds(1))), "");
}

TEST(Admission, SaysWhenToTryAgain) {
  const auto seconds_of = [](nanoseconds time) {
    return std::chrono::duration<double>(time).count();
  };
  Admission admission = Draining();
  EXPECT_EQ(admission.RetryAfter(kNow), Admission::kShortestRetry);
  for (int i = 0; i < 35; ++i) admission.Enqueued(Of("a", 50), kNow);
  // A request of 50 tokens is half a second.
  EXPECT_NEAR(seconds_of(admission.RetryAfter(kNow)), 0.5, 0.02);
  EXPECT_NEAR(seconds_of(admission.Check(Of("a", 10), kNow).retry_after), 0.5,
              0.02);
  // Of two tenants' each has half of the rate.
  admission.Enqueued(Of("b", 50), kNow);
  const Refusal refusal = admission.Check(Of("a", 10), kNow);
  EXPECT_STREQ(refusal.reason, "tenant_queue_full");
  EXPECT_NEAR(seconds_of(refusal.retry_after), 1, 0.04);
  // Nor does one wait for what was refused for ever.
  admission.StopAdmission();
  EXPECT_EQ(admission.Check(Of("a", 10), kNow).retry_after, nanoseconds(0));
}

TEST(Admission, RoomForALargeRequestTakesLonger) {
  AdmissionLimits limits = kRoomy;
  limits.max_queued_tokens = 1000;
  limits.max_queued_bytes = 4000;
  Admission admission = Draining(limits);
  for (int i = 0; i < 20; ++i) admission.Enqueued(Of("a", 50, 100), kNow);
  const auto retry = [&](const Request& request) {
    return std::chrono::duration<double>(
               admission.Check(request, kNow).retry_after)
        .count();
  };
  EXPECT_NEAR(retry(Of("b", 1)), 0.5, 0.02);
  EXPECT_NEAR(retry(Of("b", 300)), 3, 0.1);
  EXPECT_NEAR(retry(Of("b", 1, 3000)), 5, 0.2);  // 1000 bytes too many
  EXPECT_NEAR(retry(Of("b", 5000)), 10, 0.3);    // once the queue is empty
}

TEST(Admission, TheTimeToTryAgainIsBounded) {
  AdmissionLimits limits = kRoomy;
  limits.max_queued_requests = 1;
  Admission admission = Draining(limits);
  admission.Enqueued(Of("a", 50'000), kNow);
  EXPECT_EQ(admission.Check(Of("b", 1), kNow).retry_after,
            Admission::kLongestRetry);
  Admission unmeasured(limits);
  unmeasured.Enqueued(Of("a", 50'000), kNow);
  EXPECT_EQ(unmeasured.Check(Of("b", 1), kNow).retry_after,
            DrainRate::kUnknown);
}

}  // namespace
}  // namespace overfill
