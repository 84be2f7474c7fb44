#include "benchmarks/serving/summary.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

// Due at `due`, sent a tenth later; one answer whose messages came at `at`,
// with `num_tokens` tokens each; OK a half after the last.
RequestRecord Answered(double due, const std::vector<double>& at,
                       int32_t num_tokens = 1) {
  RequestRecord record;
  record.scheduled = due;
  record.sent = due + 0.1;
  record.ended = (at.empty() ? due : at.back()) + 0.5;
  record.usage_prompt_tokens = 10;
  record.usage_cached_prompt_tokens = 4;
  SampleRecord sample;
  for (const double time : at) sample.arrivals.push_back({time, num_tokens});
  sample.num_completions = 1;
  sample.usage_completion_tokens = sample.num_tokens();
  record.samples.push_back(sample);
  return record;
}

RequestRecord Ended(double due, double after, int code) {
  RequestRecord record;
  record.scheduled = record.sent = due;
  record.ended = due + after;
  record.status_code = code;
  record.samples.resize(1);
  return record;
}

RunSummary SummarizeAll(const std::vector<RequestRecord>& records,
                        const Objectives& objectives = {}) {
  return Summarize(records, -1e9, 1e9, objectives);
}

TEST(PercentileTest, InterpolatesAsNumpyDoes) {
  // numpy.percentile([1, 2, 4, 8], [0, 25, 50, 90, 100])
  const std::vector<double> values = {1, 2, 4, 8};
  EXPECT_DOUBLE_EQ(Percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(Percentile(values, 0.25), 1.75);
  EXPECT_DOUBLE_EQ(Percentile(values, 0.5), 3);
  EXPECT_DOUBLE_EQ(Percentile(values, 0.9), 6.8);
  EXPECT_DOUBLE_EQ(Percentile(values, 1), 8);
  EXPECT_DOUBLE_EQ(Percentile(std::vector<double>{5}, 0.99), 5);
}

TEST(PercentileTest, OfUniformDrawsIsTheShare) {
  std::mt19937_64 random(TestSeed());
  std::vector<double> values(20'000);
  std::uniform_real_distribution<double> unit(0, 1);
  for (double& value : values) value = unit(random);
  const Percentiles p = ToPercentiles(values);
  // A sample quantile's standard error is sqrt(q(1-q)/n): 0.0035 at most.
  EXPECT_NEAR(p.p50, 0.50, 0.022);
  EXPECT_NEAR(p.p90, 0.90, 0.013);
  EXPECT_NEAR(p.p95, 0.95, 0.0095);
  EXPECT_NEAR(p.p99, 0.99, 0.0045);
  EXPECT_NEAR(p.mean, 0.5, 0.0125);
  EXPECT_EQ(p.max, *std::max_element(values.begin(), values.end()));
  EXPECT_EQ(p.count, 20'000);
  EXPECT_EQ(ToPercentiles({}).count, 0);
}

TEST(SummaryTest, LatenciesFollowTheirDefinitions) {
  const RunSummary s = SummarizeAll({Answered(10, {12, 12.5, 13.5}, 2)});
  EXPECT_DOUBLE_EQ(s.ttft.p50, 2);  // from when it was due
  EXPECT_EQ(s.itl.count, 2);
  EXPECT_DOUBLE_EQ(s.itl.mean, 0.75);
  EXPECT_DOUBLE_EQ(s.itl.max, 1);
  EXPECT_DOUBLE_EQ(s.tpot.p50, 1.5 / 5);  // six tokens
  EXPECT_DOUBLE_EQ(s.e2e.p50, 4);
  EXPECT_NEAR(s.lateness.p50, 0.1, 1e-9);
  EXPECT_EQ(s.output_tokens, 6);
  EXPECT_EQ(s.prompt_tokens, 10);
  EXPECT_EQ(s.cached_prompt_tokens, 4);
  EXPECT_DOUBLE_EQ(s.tokens_per_message, 2);
  EXPECT_DOUBLE_EQ(s.duration_seconds, 4);
  EXPECT_DOUBLE_EQ(s.output_tokens_per_second, 1.5);
  EXPECT_TRUE(s.valid());
}

TEST(SummaryTest, AnswersOfOneRequestHaveGapsOfTheirOwn) {
  RequestRecord record = Answered(0, {1, 2});
  record.samples.push_back(Answered(0, {1.5, 4.5}).samples[0]);
  record.ended = 5;
  const RunSummary s = SummarizeAll({record});
  EXPECT_EQ(s.ttft.count, 1);
  EXPECT_DOUBLE_EQ(s.ttft.max, 1);
  EXPECT_EQ(s.itl.count, 2);
  EXPECT_DOUBLE_EQ(s.itl.mean, 2);
  EXPECT_EQ(s.tpot.count, 2);
  EXPECT_TRUE(s.valid());
}

TEST(SummaryTest, EachStatusIsCountedOnce) {
  RequestRecord cancelled = Ended(0, 1, kStatusCancelled);
  cancelled.cancelled_by_client = true;
  const RunSummary s = SummarizeAll(
      {Answered(0, {1, 2}), cancelled, Ended(0, 1, kStatusDeadlineExceeded),
       Ended(0, 0.25, kStatusResourceExhausted),
       Ended(0, 0.75, kStatusResourceExhausted), Ended(0, 1, 99)});
  EXPECT_EQ(s.sent, 6);
  EXPECT_EQ(s.completed, 1);
  EXPECT_EQ(s.by_status[kStatusOk], 1);
  EXPECT_EQ(s.by_status[kStatusCancelled], 1);
  EXPECT_EQ(s.by_status[kStatusDeadlineExceeded], 1);
  EXPECT_EQ(s.by_status[kStatusResourceExhausted], 2);
  EXPECT_EQ(s.by_status[2], 1);
  EXPECT_EQ(s.refusal.count, 2);
  EXPECT_DOUBLE_EQ(s.refusal.mean, 0.5);
  EXPECT_EQ(s.e2e.count, 1);
  EXPECT_TRUE(s.valid());
}

TEST(SummaryTest, ARefusalHasNoToken) {
  RequestRecord overflowed = Answered(0, {1});
  overflowed.status_code = kStatusResourceExhausted;
  overflowed.samples[0].num_completions = 0;
  RequestRecord dead = Ended(0, 60, kStatusResourceExhausted);
  dead.plan.reader = ReaderKind::kDead;
  EXPECT_EQ(SummarizeAll({overflowed, dead}).refusal.count, 0);
}

TEST(SummaryTest, OnlyRequestsDueInTheWindowHaveLatencies) {
  const std::vector<RequestRecord> records = {
      Answered(0, {1, 2, 3}), Answered(2, {3, 4, 5}), Answered(4, {9, 10, 11})};
  const RunSummary s = Summarize(records, 1.5, 6.5, {});
  EXPECT_EQ(s.ttft.count, 2);
  EXPECT_DOUBLE_EQ(s.ttft.max, 5);
  // Tokens at 2, 3, 3, 4 and 5; ends at 3.5 and 5.5.
  EXPECT_DOUBLE_EQ(s.window_tokens_per_second, 1);
  EXPECT_DOUBLE_EQ(s.window_requests_per_second, 0.4);
  EXPECT_EQ(s.completed, 3);
}

TEST(SummaryTest, GoodputCountsWhatMeetsEveryObjective) {
  // TTFT 1, gaps 1 and 3, TPOT 2, e2e 5.5.
  const std::vector<RequestRecord> records = {
      Answered(0, {1, 2, 5}), Ended(0, 5.5, kStatusResourceExhausted)};
  const auto good = [&](const Objectives& objectives) {
    const RunSummary s = SummarizeAll(records, objectives);
    EXPECT_DOUBLE_EQ(s.goodput_requests_per_second,
                     static_cast<double>(s.good) / 5.5);
    return s.good;
  };
  EXPECT_EQ(good({}), 1);
  EXPECT_EQ(good({.ttft = 1.0, .itl = 3.0, .tpot = 2.0, .e2e = 5.5}), 1);
  EXPECT_EQ(good({.ttft = 0.99}), 0);
  EXPECT_EQ(good({.itl = 2.99}), 0);
  EXPECT_EQ(good({.tpot = 1.99}), 0);
  EXPECT_EQ(good({.e2e = 5.49}), 0);
  // An answer without a token has no TTFT to meet it with.
  EXPECT_EQ(SummarizeAll({Answered(0, {})}, {.ttft = 1.0}).good, 0);
}

TEST(SummaryTest, EveryBreachOfTheContractIsSeen) {
  const auto breach = [](const std::function<void(RequestRecord&)>& change) {
    RequestRecord record = Answered(0, {1, 2});
    EXPECT_TRUE(SummarizeAll({record}).valid());
    change(record);
    const RunSummary s = SummarizeAll({record});
    EXPECT_FALSE(s.valid());
    EXPECT_EQ(s.anomalies.Sum(), 1);
    return s.anomalies;
  };
  using Record = RequestRecord;
  EXPECT_EQ(breach([](Record& r) { r.unfinished = true; }).unfinished, 1);
  EXPECT_EQ(breach([](Record& r) {
              r.samples[0].num_completions = 0;
            }).missing_completion,
            1);
  EXPECT_EQ(breach([](Record& r) {
              r.samples[0].num_completions = 2;
            }).extra_completion,
            1);
  EXPECT_EQ(breach([](Record& r) {
              r.samples[0].delta_after_completion = true;
            }).delta_after_completion,
            1);
  EXPECT_EQ(breach([](Record& r) { r.unknown_index = true; }).unknown_index, 1);
  EXPECT_EQ(breach([](Record& r) {
              r.samples[0].usage_completion_tokens = 3;
            }).token_count,
            1);
  EXPECT_EQ(breach([](Record& r) {
              r.status_code = kStatusCancelled;
            }).cancelled_by_server,
            1);
}

TEST(SummaryTest, ADeadReaderMayBeCut) {
  RequestRecord dead = Ended(0, 12, kStatusCancelled);
  dead.plan.reader = ReaderKind::kDead;
  EXPECT_TRUE(SummarizeAll({dead}).valid());
}

TEST(SummaryTest, NothingSentIsNothing) {
  const RunSummary s = SummarizeAll({});
  EXPECT_EQ(s.sent, 0);
  EXPECT_EQ(s.duration_seconds, 0);
  EXPECT_TRUE(s.valid());
}

}  // namespace
}  // namespace overfill
