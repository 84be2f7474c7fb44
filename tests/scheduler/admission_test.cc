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

std::string Reason(const Admission& admission, const Request& request) {
  return admission.Check(request, kNow).reason;
}

TEST(Admission, BoundsTheQueue) {
  Admission admission(kLimits);
  admission.Enqueued(Make("a", 8));
  EXPECT_EQ(Reason(admission, Make("b", 12)), "");
  EXPECT_EQ(Reason(admission, Make("b", 13)), "queued_tokens");
  admission.Enqueued(Make("b", 1));
  admission.Enqueued(Make("c", 1));
  EXPECT_EQ(Reason(admission, Make("d", 1)), "queue_full");
  EXPECT_EQ(admission.queued_tokens(), 10);
  admission.Started(Make("a", 8));
  EXPECT_EQ(Reason(admission, Make("d", 1)), "");
  admission.Ended(Make("b", 1), /*was_queued=*/true);
  admission.Ended(Make("c", 1), /*was_queued=*/true);
  EXPECT_EQ(admission.queued_tokens(), 0);
}

TEST(Admission, AnEmptyQueueTakesAnyOne) {
  const Admission admission(kLimits);
  EXPECT_EQ(Reason(admission, Make("a", 30)), "");
}

TEST(Admission, IdsAreUniqueAmongATenantsLiveRequests) {
  Admission admission(kLimits);
  Request request = Make("a", 1);
  admission.Enqueued(request);
  EXPECT_EQ(admission.Check(request, kNow).status.code(),
            absl::StatusCode::kAlreadyExists);
  Request other = request;
  other.tenant = "b";
  EXPECT_EQ(Reason(admission, other), "");
  admission.Started(request);
  EXPECT_EQ(Reason(admission, request), "duplicate");
  admission.Ended(request, /*was_queued=*/false);
  EXPECT_EQ(Reason(admission, request), "");
  admission.Enqueued(Make("", 1));
  EXPECT_EQ(Reason(admission, Make("", 1)), "");
}

TEST(Admission, LateAndDrainingAreRefused) {
  Admission admission(kLimits);
  Request request = Make("a", 1);
  request.deadline = kNow;
  EXPECT_EQ(admission.Check(request, kNow).status.code(),
            absl::StatusCode::kDeadlineExceeded);
  request.deadline = kNow + std::chrono::nanoseconds(1);
  EXPECT_EQ(Reason(admission, request), "");
  admission.StopAdmission();
  EXPECT_EQ(admission.Check(request, kNow).status.code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace overfill
