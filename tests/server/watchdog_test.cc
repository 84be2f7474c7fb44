#include "server/watchdog.h"

#include <chrono>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/fake_scheduler.h"

namespace overfill {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::GetCapturedStderr;

// What the watchdog sees, and what it says.
class WatchdogTest : public ::testing::Test {
 protected:
  static constexpr int kPrefill = static_cast<int>(PoolId::kPrefill);
  static constexpr int kDecode = static_cast<int>(PoolId::kDecode);

  explicit WatchdogTest(
      const WatchdogOptions& options = {.stuck_step_timeout = seconds(60),
                                        .integrity_period = seconds(10)})
      : watchdog_(
            options, &scheduler_,
            {.set_serving = [this](bool is) { health_.push_back(is); },
             .on_stuck_step = [this](PoolId pool) { stuck_.push_back(pool); },
             .on_integrity_failure = [this] { ++num_failures_; }}) {
    stats_.last_step = {now_, now_};
  }
  // Time passes, and the watchdog looks.
  void Pass(std::chrono::nanoseconds time) {
    now_ += time;
    scheduler_.SetStats(stats_);
    watchdog_.Look(now_);
  }
  void Work(int pool) { stats_.has_work[pool] = true; }
  void FinishStep(int pool) { stats_.last_step[pool] = now_; }

  SteadyTime now_ = SteadyTime(std::chrono::hours(1000));
  SchedulerStats stats_;
  FakeScheduler scheduler_;
  std::vector<bool> health_;
  std::vector<PoolId> stuck_;
  int num_failures_ = 0;
  Watchdog watchdog_;
};

TEST_F(WatchdogTest, IdleIsNeverStuck) {
  for (int i = 0; i < 100; ++i) Pass(seconds(3600));
  EXPECT_TRUE(stuck_.empty());
  EXPECT_TRUE(health_.empty());
}

TEST_F(WatchdogTest, BusyIsNeverStuckWhileStepsFinish) {
  Work(kPrefill);
  Work(kDecode);
  for (int i = 0; i < 1000; ++i) {
    Pass(seconds(59));
    FinishStep(kPrefill);
    FinishStep(kDecode);
  }
  EXPECT_TRUE(stuck_.empty());
  EXPECT_TRUE(health_.empty());
}

TEST_F(WatchdogTest, StuckStepIsToldOnceWithItsBatch) {
  Work(kDecode);
  stats_.running_steps[kDecode] = RunningStep{.started = now_,
                                              .num_prompt_rows = 5,
                                              .num_decode_rows = 2,
                                              .uids = {11, 12, 13}};
  CaptureStderr();
  Pass(milliseconds(59'999));
  EXPECT_TRUE(stuck_.empty());
  EXPECT_EQ(GetCapturedStderr(), "");
  CaptureStderr();
  Pass(milliseconds(1));
  const std::string line = GetCapturedStderr();
  EXPECT_THAT(line, HasSubstr("the decode pool is stuck"));
  EXPECT_THAT(line, HasSubstr("began 1m ago, with 5 prompt rows and 2 decode "
                              "rows of the requests 11, 12, 13\n"));
  EXPECT_THAT(stuck_, ElementsAre(PoolId::kDecode));
  EXPECT_THAT(health_, ElementsAre(false));
  CaptureStderr();
  for (int i = 0; i < 100; ++i) Pass(seconds(1));
  EXPECT_EQ(GetCapturedStderr(), "");
  EXPECT_THAT(stuck_, ElementsAre(PoolId::kDecode));
  EXPECT_THAT(health_, ElementsAre(false));
}

TEST_F(WatchdogTest, ServesAgainWhenTheStepFinishes) {
  Work(kPrefill);
  Pass(seconds(60));
  FinishStep(kPrefill);
  Pass(seconds(1));
  EXPECT_THAT(health_, ElementsAre(false, true));
  // And the next one counts anew.
  Pass(seconds(60));
  EXPECT_THAT(health_, ElementsAre(false, true, false));
  EXPECT_THAT(stuck_, ElementsAre(PoolId::kPrefill, PoolId::kPrefill));
  stats_.has_work[kPrefill] = false;  // what was stuck has been taken back
  Pass(seconds(1));
  EXPECT_THAT(health_, ElementsAre(false, true, false, true));
}

TEST_F(WatchdogTest, ServesAgainOnlyWhenNoPoolIsStuck) {
  Work(kPrefill);
  Work(kDecode);
  Pass(seconds(60));
  EXPECT_THAT(stuck_, ElementsAre(PoolId::kPrefill, PoolId::kDecode));
  EXPECT_THAT(health_, ElementsAre(false));
  FinishStep(kDecode);
  Pass(seconds(1));
  EXPECT_THAT(health_, ElementsAre(false));
  FinishStep(kPrefill);
  FinishStep(kDecode);
  Pass(seconds(1));
  EXPECT_THAT(health_, ElementsAre(false, true));
}

TEST_F(WatchdogTest, ALongListOfRequestsIsCut) {
  Work(kDecode);
  RunningStep step;
  step.started = now_;
  step.num_decode_rows = 64;
  for (uint64_t uid = 1; uid <= 64; ++uid) step.uids.push_back(uid);
  stats_.running_steps[kDecode] = step;
  CaptureStderr();
  Pass(seconds(100));
  EXPECT_THAT(GetCapturedStderr(), HasSubstr(" 15, 16 and 48 more\n"));
}

TEST_F(WatchdogTest, IntegrityIsCheckedAtTimes) {
  Pass(seconds(1));
  EXPECT_EQ(scheduler_.num_integrity_checks(), 1);
  for (int i = 0; i < 9; ++i) Pass(seconds(1));
  EXPECT_EQ(scheduler_.num_integrity_checks(), 1);
  Pass(seconds(1));
  EXPECT_EQ(scheduler_.num_integrity_checks(), 2);
  EXPECT_EQ(num_failures_, 0);
  scheduler_.SetIntegrity(absl::InternalError("block 3 has two owners"));
  CaptureStderr();
  Pass(seconds(10));
  Pass(seconds(10));
  EXPECT_EQ(num_failures_, 2);
  const std::string log = GetCapturedStderr();
  EXPECT_THAT(log, HasSubstr("block 3 has two owners"));
  EXPECT_EQ(log.find('\n'), log.size() - 1) << "more than one line: " << log;
  // It says nothing of the steps.
  EXPECT_TRUE(health_.empty());
}

class NoTimeoutTest : public WatchdogTest {
 protected:
  NoTimeoutTest() : WatchdogTest({.stuck_step_timeout = seconds(0)}) {}
};

TEST_F(NoTimeoutTest, NothingIsStuck) {
  Work(kDecode);
  Pass(std::chrono::hours(100));
  EXPECT_TRUE(stuck_.empty());
}

}  // namespace
}  // namespace overfill
