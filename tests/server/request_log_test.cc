#include "server/request_log.h"

#include <string>

#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/errors.h"

namespace overfill {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

class RequestLogTest : public ::testing::Test {
 protected:
  RequestLogTest() {
    entry_.request_id = "id-1";
    entry_.tenant = "team";
    entry_.peer = "ipv4:10.0.0.7:41000";
    entry_.path = DecodePath::kTwoStage;
    entry_.arrival = std::chrono::steady_clock::now();
    terminal_.finish_reason = FinishReason::kEos;
    terminal_.usage = {.prompt_tokens = 3, .completion_tokens = 5};
    terminal_.timings.ttft_seconds = 0.25;
    SetLogFormat(LogFormat::kJson);
    testing::internal::CaptureStderr();
  }
  ~RequestLogTest() override { SetLogFormat(LogFormat::kText); }

  std::string Written() { return testing::internal::GetCapturedStderr(); }

  RequestLogEntry entry_;
  Terminal terminal_;
};

TEST_F(RequestLogTest, ALineSaysWhatARequestWas) {
  entry_.trace = TraceContext{.trace_id = "abc", .parent_id = "def"};
  RequestLog({}).Ended(entry_, terminal_);
  const Json line = Json::parse(Written());
  EXPECT_EQ(line["message"], "request");
  EXPECT_EQ(line["level"], "info");
  EXPECT_EQ(line["code"], "OK");
  EXPECT_EQ(line["request_id"], "id-1");
  EXPECT_EQ(line["tenant"], "team");
  EXPECT_EQ(line["peer"], "ipv4:10.0.0.7:41000");
  EXPECT_EQ(line["trace_id"], "abc");
  EXPECT_EQ(line["parent_span_id"], "def");
  EXPECT_EQ(line["path"], "two_stage");
  EXPECT_EQ(line["finish_reason"], "eos");
  EXPECT_EQ(line["prompt_tokens"], 3);
  EXPECT_EQ(line["completion_tokens"], 5);
  EXPECT_EQ(line["ttft_seconds"], 0.25);
  EXPECT_FALSE(line.contains("error"));
  EXPECT_FALSE(line.contains("prompt"));
}

TEST_F(RequestLogTest, FaultsOfOurOwnAreInternal) {
  terminal_.status = absl::DataLossError("block 7");
  RequestLog({}).Ended(entry_, terminal_);
  const Json line = Json::parse(Written());
  EXPECT_EQ(line["code"], "INTERNAL");
  EXPECT_EQ(line["error"], "block 7");
  EXPECT_FALSE(line.contains("finish_reason"));
}

TEST_F(RequestLogTest, InputForgesNoLine) {
  entry_.request_id = "x\"}\n{\"level\":\"error\"\xff";
  RequestLog({}).Ended(entry_, terminal_);
  const std::string written = Written();
  EXPECT_EQ(written.find('\n'), written.size() - 1);
  EXPECT_TRUE(Json::accept(written)) << written;
}

TEST_F(RequestLogTest, TextQuotesWhatIsNoWord) {
  SetLogFormat(LogFormat::kText);
  entry_.request_id = "a \"b\"\nc";
  RequestLog({}).Ended(entry_, terminal_);
  EXPECT_THAT(Written(), HasSubstr(R"(request_id="a \"b\"\nc" tenant=team)"));
}

TEST_F(RequestLogTest, PromptsOnlyWhereAskedForAndNotWithoutEnd) {
  RequestLog with({.log_prompts = true});
  EXPECT_TRUE(with.wants_prompts());
  EXPECT_FALSE(RequestLog({}).wants_prompts());
  EXPECT_FALSE(
      RequestLog({.log_requests = false, .log_prompts = true}).wants_prompts());
  entry_.prompt = std::string(RequestLog::kMaxPromptBytes + 5, 'p');
  with.Ended(entry_, terminal_);
  EXPECT_EQ(Json::parse(Written())["prompt"].get<std::string>().size(),
            RequestLog::kMaxPromptBytes);
}

TEST_F(RequestLogTest, RefusalsAreLimited) {
  RequestLog log({});
  for (int i = 0; i < 10 * RequestLog::kRefusalsPerSecond; ++i) {
    log.Refused(entry_, QuotaError("too many", "x"), "tenant_in_flight");
  }
  const std::string written = Written();
  const std::vector<std::string> lines =
      absl::StrSplit(written, '\n', absl::SkipEmpty());
  // A second may end in between.
  EXPECT_LE(lines.size(), 2u * RequestLog::kRefusalsPerSecond);
  EXPECT_GE(lines.size(), size_t{RequestLog::kRefusalsPerSecond});
  const Json line = Json::parse(lines[0]);
  EXPECT_EQ(line["message"], "request refused");
  EXPECT_EQ(line["code"], "RESOURCE_EXHAUSTED");
  EXPECT_EQ(line["reason"], "tenant_in_flight");
}

TEST_F(RequestLogTest, NothingWhereSwitchedOff) {
  RequestLog log({.log_requests = false});
  log.Ended(entry_, terminal_);
  log.Refused(entry_, absl::UnavailableError("x"), "draining");
  EXPECT_THAT(Written(), IsEmpty());
}

TEST(LogLimiterTest, TellsHowManyItHeldBack) {
  using std::chrono::milliseconds;
  LogLimiter limiter(2);
  int64_t suppressed = -1;
  auto now = std::chrono::steady_clock::now();
  EXPECT_TRUE(limiter.Pass(now, suppressed));
  EXPECT_EQ(suppressed, 0);
  EXPECT_TRUE(limiter.Pass(now + milliseconds(10), suppressed));
  for (int i = 0; i < 5; ++i) {
    EXPECT_FALSE(limiter.Pass(now + milliseconds(900), suppressed));
  }
  EXPECT_TRUE(limiter.Pass(now + milliseconds(1000), suppressed));
  EXPECT_EQ(suppressed, 5);
  EXPECT_TRUE(limiter.Pass(now + milliseconds(1001), suppressed));
  EXPECT_EQ(suppressed, 0);
}

}  // namespace
}  // namespace overfill
