#include "benchmarks/serving/report.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace overfill {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

RequestRecord Record() {
  RequestRecord record;
  record.plan.index = 3;
  record.scheduled = 10;
  record.sent = 10.5;
  record.ended = 13;
  record.usage_prompt_tokens = 100;
  record.usage_cached_prompt_tokens = 96;
  SampleRecord sample;
  sample.arrivals = {{11, 1}, {12, 2}};
  sample.token_ids = {7, 8, 9};
  sample.num_completions = 1;
  sample.usage_completion_tokens = 3;
  record.samples.push_back(sample);
  return record;
}

RunReport Report() {
  RunReport report;
  report.rate = 4;
  report.client_cpu_seconds = 0.5;
  report.wall_seconds = 5;
  RequestRecord refused = Record();
  refused.status_code = kStatusResourceExhausted;
  refused.samples = {SampleRecord()};
  const std::vector<RequestRecord> records = {Record(), refused};
  report.summary = Summarize(records, 0, 20, {});
  return report;
}

TEST(ReportTest, JsonHasWhatWasSummarized) {
  const Json json = ReportJson(Report());
  EXPECT_EQ(json["sent"], 2);
  EXPECT_EQ(json["by_status"], Json({{"OK", 1}, {"RESOURCE_EXHAUSTED", 1}}));
  EXPECT_EQ(json["rate"], 4.0);
  EXPECT_TRUE(json["concurrency"].is_null());
  EXPECT_EQ(json["ttft_seconds"]["p99"], 1.0);
  EXPECT_EQ(json["itl_seconds"]["count"], 1);
  EXPECT_EQ(json["refusal_seconds"]["p50"], 3.0);
  EXPECT_EQ(json["cached_prompt_tokens"], 96);
  EXPECT_EQ(json["valid"], true);
  EXPECT_EQ(json["anomalies"].size(), 7u);
  EXPECT_EQ(json["client_cpu_seconds"], 0.5);
}

TEST(ReportTest, PercentilesOfNothingAreNull) {
  const Json json = ReportJson(RunReport());
  EXPECT_TRUE(json["e2e_seconds"].is_null());
  EXPECT_TRUE(json["rate"].is_null());
}

TEST(ReportTest, TheTableSaysWhatIsWrong) {
  RunReport report = Report();
  std::string table = ReportTable(report);
  EXPECT_THAT(table, HasSubstr("sent 2, completed 1, RESOURCE_EXHAUSTED 1"));
  EXPECT_THAT(table, HasSubstr("4 requests/s offered"));
  EXPECT_THAT(table, HasSubstr("10.0 % of one core"));
  EXPECT_THAT(table, Not(HasSubstr("INVALID")));
  report.summary.anomalies.token_count = 2;
  EXPECT_THAT(ReportTable(report), HasSubstr("INVALID: token_count 2"));
}

TEST(ReportTest, ARecordIsOneLine) {
  const std::string line = RecordJsonLine(Record());
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  const auto json = ParseJsonObject(line, "line");
  ASSERT_TRUE(json.ok());
  EXPECT_EQ((*json)["index"], 3);
  EXPECT_EQ((*json)["status"], "OK");
  EXPECT_EQ((*json)["scheduled"], 10.0);
  EXPECT_EQ((*json)["samples"][0]["at"], Json({11.0, 12.0}));
  EXPECT_EQ((*json)["samples"][0]["num_tokens"], Json({1, 2}));
  EXPECT_EQ((*json)["samples"][0]["token_ids"], Json({7, 8, 9}));
}

TEST(ReportTest, ThePlotHasAMarkPerRunAndCurve) {
  const std::vector<RunReport> reports = {Report(), Report()};
  const std::string svg = RatePlotSvg(reports);
  size_t marks = 0;
  for (size_t at = svg.find("<circle"); at != std::string::npos;
       at = svg.find("<circle", at + 1)) {
    ++marks;
  }
  // Three latencies of three percentiles, and two throughputs.
  EXPECT_EQ(marks, 2u * (3 * 3 + 2));
}

}  // namespace
}  // namespace overfill
