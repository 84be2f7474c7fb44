#include "server/warm_up.h"

#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/fake_scheduler.h"

namespace overfill {
namespace {

using ::testing::HasSubstr;

TEST(WarmUpTest, RunsBothStagesAndWaitsForTheEnd) {
  FakeScheduler scheduler;
  std::thread engine([&scheduler] {
    const auto submitted = scheduler.WaitForRequest(0);
    EXPECT_EQ(submitted.request.path, DecodePath::kTwoStage);
    EXPECT_EQ(submitted.request.stop_rules.max_tokens, 2);
    EXPECT_TRUE(submitted.request.stop_rules.eos_ids.empty());
    for (const int32_t id : submitted.request.prompt_ids) EXPECT_EQ(id, 3);
    Delta delta;
    delta.text = "x";
    scheduler.Push(submitted.uid, delta);
    scheduler.End(submitted.uid, Terminal());
  });
  const absl::Status status = WarmUp(scheduler, 3, 100, absl::Seconds(30));
  engine.join();
  EXPECT_TRUE(status.ok()) << status;
  // The end reaches the client before it reaches the metrics: only an idle
  // scheduler has told it to both.
  EXPECT_EQ(scheduler.num_idle_waits(), 1);
}

TEST(WarmUpTest, FitsTheSmallestContext) {
  for (const int32_t context : {2, 3, 5}) {
    FakeScheduler scheduler;
    std::thread engine([&scheduler, context] {
      const auto submitted = scheduler.WaitForRequest(0);
      const auto num_prompt =
          static_cast<int32_t>(submitted.request.prompt_ids.size());
      EXPECT_GE(num_prompt, 1);
      EXPECT_GE(submitted.request.stop_rules.max_tokens, 1);
      EXPECT_LE(num_prompt + submitted.request.stop_rules.max_tokens, context);
      scheduler.End(submitted.uid, Terminal());
    });
    EXPECT_TRUE(WarmUp(scheduler, 3, context, absl::Seconds(30)).ok());
    engine.join();
  }
}

TEST(WarmUpTest, FailuresAreTheServers) {
  FakeScheduler scheduler;
  scheduler.RefuseNext(absl::ResourceExhaustedError("no blocks"));
  EXPECT_THAT(
      std::string(WarmUp(scheduler, 3, 100, absl::Seconds(30)).message()),
      HasSubstr("warm-up: no blocks"));
  std::thread engine([&scheduler] {
    Terminal terminal;
    terminal.status = absl::InternalError("not finite");
    scheduler.End(scheduler.WaitForRequest(0).uid, terminal);
  });
  const absl::Status status = WarmUp(scheduler, 3, 100, absl::Seconds(30));
  engine.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
}

TEST(WarmUpTest, SilenceEndsInTime) {
  FakeScheduler scheduler;
  const absl::Status status = WarmUp(scheduler, 3, 100, absl::Milliseconds(50));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(scheduler.Live().empty());
}

}  // namespace
}  // namespace overfill
