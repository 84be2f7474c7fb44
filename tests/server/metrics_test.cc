#include "server/metrics.h"

#include <chrono>
#include <cstdio>
#include <ctime>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "prometheus/text_serializer.h"
#include "server/process_metrics.h"
#include "server/security_metrics.h"
#include "server/state_gauges.h"

namespace overfill {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Scrape(const prometheus::Collectable& collectable) {
  return prometheus::TextSerializer().Serialize(collectable.Collect());
}

// The value of a line "NAME{LABELS} VALUE", labels in the order of their names.
double ValueOf(const std::string& scrape, const std::string& series) {
  for (const absl::string_view line : absl::StrSplit(scrape, '\n')) {
    if (!absl::StartsWith(line, series + " ")) continue;
    double value;
    EXPECT_TRUE(absl::SimpleAtod(line.substr(series.size() + 1), &value));
    return value;
  }
  ADD_FAILURE() << "no " << series << " in\n" << scrape;
  return -1;
}

class MetricsTest : public ::testing::Test {
 protected:
  MetricsTest() : metrics_({{"version", "1.2.3"}}, {{"pair_digest", "d1"}}) {
    metrics_.Enable();
  }
  double Value(const std::string& series) {
    return ValueOf(Scrape(*metrics_.registry()), series);
  }
  ServerMetrics metrics_;
};

TEST_F(MetricsTest, InfoIsThereFromTheStart) {
  EXPECT_EQ(Value("overfill_build_info{version=\"1.2.3\"}"), 1);
  EXPECT_EQ(Value("overfill_model_info{pair_digest=\"d1\"}"), 1);
}

TEST_F(MetricsTest, StepsCountByPool) {
  metrics_.OnStep(PoolId::kPrefill, 0.00015, 100, 0, 2);
  metrics_.OnStep(PoolId::kDecode, 0.5, 0, 8, 8);
  const std::string pool = "{pool=\"prefill\"";
  EXPECT_EQ(Value("overfill_step_seconds_count" + pool + "}"), 1);
  EXPECT_EQ(Value("overfill_step_seconds_bucket" + pool + ",le=\"0.0001\"}"),
            0);
  EXPECT_EQ(Value("overfill_step_seconds_bucket" + pool + ",le=\"0.0002\"}"),
            1);
  EXPECT_EQ(Value("overfill_step_rows_sum{kind=\"prompt\",pool=\"prefill\"}"),
            100);
  EXPECT_EQ(Value("overfill_step_rows_sum{kind=\"decode\",pool=\"decode\"}"),
            8);
  EXPECT_EQ(Value("overfill_step_sequences_sum{pool=\"decode\"}"), 8);
  EXPECT_EQ(Value("overfill_step_seconds_sum{pool=\"decode\"}"), 0.5);
}

TEST_F(MetricsTest, TokensCountByPath) {
  metrics_.OnFirstToken(DecodePath::kFull, 0.25, 0.125);
  metrics_.OnToken(DecodePath::kFull, 0.0625);
  metrics_.OnToken(DecodePath::kFull, 0.0625);
  const std::string path = "{path=\"full\"}";
  EXPECT_EQ(Value("overfill_ttft_seconds_sum" + path), 0.25);
  EXPECT_EQ(Value("overfill_queue_seconds_sum" + path), 0.125);
  EXPECT_EQ(Value("overfill_inter_token_seconds_sum" + path), 0.125);
  EXPECT_EQ(Value("overfill_completion_tokens_total" + path), 3);
  EXPECT_EQ(Value("overfill_completion_tokens_total{path=\"two_stage\"}"), 0);
}

TEST_F(MetricsTest, MigrationsCountByKind) {
  metrics_.OnMigration(0.5, 0, false);
  metrics_.OnMigration(0.25, 4096, true);
  EXPECT_EQ(Value("overfill_migration_seconds_sum{kind=\"handoff\"}"), 0.5);
  EXPECT_EQ(Value("overfill_migration_seconds_sum{kind=\"copy\"}"), 0.25);
  EXPECT_EQ(Value("overfill_migration_bytes_sum{kind=\"copy\"}"), 4096);
}

TEST_F(MetricsTest, EveryOutcomeHasItsOwnCounter) {
  Terminal terminal;
  terminal.usage = {.prompt_tokens = 10, .completion_tokens = 5};
  terminal.timings.decode_seconds = 2;
  const auto end = [&](FinishReason reason, absl::Status status) {
    terminal.finish_reason = reason;
    terminal.status = status;
    if (status.ok()) {
      Completion completion;
      completion.usage = terminal.usage;
      completion.timings = terminal.timings;
      metrics_.OnCompletion(DecodePath::kTwoStage, completion);
    }
    metrics_.OnTerminal(DecodePath::kTwoStage, terminal, 3);
  };
  end(FinishReason::kStop, absl::OkStatus());
  end(FinishReason::kLength, absl::OkStatus());
  end(FinishReason::kEos, absl::OkStatus());
  end(FinishReason::kEos, absl::CancelledError());
  end(FinishReason::kEos, absl::DeadlineExceededError(""));
  end(FinishReason::kEos, absl::ResourceExhaustedError(""));
  end(FinishReason::kEos, absl::UnavailableError(""));
  end(FinishReason::kEos, absl::InternalError(""));
  end(FinishReason::kEos, absl::UnknownError(""));
  for (const auto& [outcome, count] :
       std::vector<std::pair<std::string, int>>{{"stop", 1},
                                                {"length", 1},
                                                {"eos", 1},
                                                {"cancelled", 1},
                                                {"deadline_exceeded", 1},
                                                {"resource_exhausted", 1},
                                                {"unavailable", 1},
                                                {"internal", 2}}) {
    EXPECT_EQ(Value("overfill_requests_total{outcome=\"" + outcome +
                    "\",path=\"two_stage\"}"),
              count)
        << outcome;
  }
  const std::string path = "{path=\"two_stage\"}";
  EXPECT_EQ(Value("overfill_prompt_tokens_total" + path), 90);
  // Latencies are those of complete answers.
  EXPECT_EQ(Value("overfill_e2e_seconds_count" + path), 3);
  EXPECT_EQ(Value("overfill_e2e_seconds_sum" + path), 9);
  EXPECT_EQ(Value("overfill_time_per_output_token_seconds_sum" + path), 1.5);
}

TEST_F(MetricsTest, RejectionsCountByReason) {
  metrics_.OnReject("queue_full");
  metrics_.OnReject("queue_full");
  EXPECT_EQ(Value("overfill_requests_rejected_total{reason=\"queue_full\"}"),
            2);
}

TEST_F(MetricsTest, EventsOfTheSchedulerCount) {
  metrics_.OnPrefixLookup(2000, 1984);
  metrics_.OnPrefixLookup(10, 0);
  metrics_.OnPreemption();
  metrics_.OnTransferRetry();
  metrics_.OnTransferRetry();
  EXPECT_EQ(Value("overfill_prefix_cache_queried_tokens_total"), 2010);
  EXPECT_EQ(Value("overfill_prefix_cache_hit_tokens_total"), 1984);
  EXPECT_EQ(Value("overfill_preemptions_total"), 1);
  EXPECT_EQ(Value("overfill_transfer_retries_total"), 2);
}

TEST_F(MetricsTest, WhatTheWatchdogFindsCounts) {
  EXPECT_EQ(Value("overfill_stuck_steps_total{pool=\"prefill\"}"), 0);
  metrics_.OnStuckStep(PoolId::kDecode);
  metrics_.OnIntegrityFailure();
  EXPECT_EQ(Value("overfill_stuck_steps_total{pool=\"prefill\"}"), 0);
  EXPECT_EQ(Value("overfill_stuck_steps_total{pool=\"decode\"}"), 1);
  EXPECT_EQ(Value("overfill_integrity_failures_total"), 1);
}

TEST_F(MetricsTest, CallsWithoutATokenCountByReason) {
  using Failure = Authenticator::Failure;
  const std::string name = "overfill_unauthenticated_calls_total{reason=";
  metrics_.OnUnauthenticated(Failure::kMissing);
  metrics_.OnUnauthenticated(Failure::kUnknown);
  metrics_.OnUnauthenticated(Failure::kUnknown);
  EXPECT_EQ(Value(name + "\"missing\"}"), 1);
  EXPECT_EQ(Value(name + "\"malformed\"}"), 0);
  EXPECT_EQ(Value(name + "\"unknown\"}"), 2);
  metrics_.OnUnauthenticated(Failure::kMalformed);
  EXPECT_EQ(Value(name + "\"malformed\"}"), 1);
}

TEST_F(MetricsTest, ReloadsCountByOutcome) {
  using Files = ServerMetrics::Files;
  const auto value = [&](const char* what, const char* outcome) {
    return Value(absl::StrCat("overfill_reloads_total{outcome=\"", outcome,
                              "\",what=\"", what, "\"}"));
  };
  metrics_.OnReload(Files::kTokens, Reload::kUnchanged);
  metrics_.OnReload(Files::kTokens, Reload::kLoaded);
  metrics_.OnReload(Files::kTokens, Reload::kLoaded);
  metrics_.OnReload(Files::kCertificates, Reload::kFailed);
  EXPECT_EQ(value("tokens", "ok"), 2);
  EXPECT_EQ(value("tokens", "failed"), 0);
  EXPECT_EQ(value("certificates", "ok"), 0);
  EXPECT_EQ(value("certificates", "failed"), 1);
}

TEST(ProcessMetricsTest, SaysWhatTheProcessUses) {
  const std::string scrape = Scrape(*MakeProcessMetrics());
  EXPECT_GT(ValueOf(scrape, "process_resident_memory_bytes"), 1 << 20);
  EXPECT_GE(ValueOf(scrape, "process_virtual_memory_bytes"),
            ValueOf(scrape, "process_resident_memory_bytes"));
  EXPECT_GE(ValueOf(scrape, "process_threads"), 1);
  EXPECT_NEAR(ValueOf(scrape, "process_start_time_seconds"),
              static_cast<double>(time(nullptr)), 600);
  EXPECT_GE(ValueOf(scrape, "process_cpu_seconds_total"), 0);
  const double open = ValueOf(scrape, "process_open_fds");
  EXPECT_LE(open, ValueOf(scrape, "process_max_fds"));
  FILE* const file = tmpfile();
  EXPECT_EQ(ValueOf(Scrape(*MakeProcessMetrics()), "process_open_fds"),
            open + 1);
  fclose(file);
}

TEST(SecurityMetricsTest, CertificatesOnlyWhereThereAreSome) {
  const std::string scrape = Scrape(*MakeSecurityMetrics(nullptr));
  EXPECT_GE(ValueOf(scrape, "overfill_tls_handshake_failures_total"), 0);
  EXPECT_THAT(scrape, Not(HasSubstr("overfill_certificate_expiry")));
}

TEST(MetricsEnableTest, NothingCountsBefore) {
  ServerMetrics metrics({}, {});
  metrics.OnFirstToken(DecodePath::kFull, 1, 1);
  metrics.OnToken(DecodePath::kFull, 1);
  metrics.OnStep(PoolId::kDecode, 1, 1, 1, 1);
  metrics.OnMigration(1, 1, true);
  metrics.OnCompletion(DecodePath::kFull, {});
  metrics.OnTerminal(DecodePath::kFull, {}, 1);
  metrics.OnReject("x");
  metrics.OnPrefixLookup(5, 5);
  metrics.OnPreemption();
  metrics.OnTransferRetry();
  const std::string scrape = Scrape(*metrics.registry());
  EXPECT_EQ(ValueOf(scrape, "overfill_ttft_seconds_count{path=\"full\"}"), 0);
  EXPECT_EQ(ValueOf(scrape, "overfill_completion_tokens_total{path=\"full\"}"),
            0);
  EXPECT_EQ(ValueOf(scrape, "overfill_step_seconds_count{pool=\"decode\"}"), 0);
  EXPECT_EQ(ValueOf(scrape, "overfill_migration_seconds_count{kind=\"copy\"}"),
            0);
  EXPECT_EQ(
      ValueOf(scrape,
              "overfill_requests_total{outcome=\"length\",path=\"full\"}"),
      0);
  EXPECT_THAT(scrape, Not(HasSubstr("reason=\"x\"")));
  EXPECT_EQ(
      ValueOf(scrape, "overfill_requests_rejected_total{reason=\"draining\"}"),
      0);
  EXPECT_EQ(ValueOf(scrape, "overfill_prefix_cache_queried_tokens_total"), 0);
  EXPECT_EQ(ValueOf(scrape, "overfill_preemptions_total"), 0);
  EXPECT_EQ(ValueOf(scrape, "overfill_transfer_retries_total"), 0);
}

TEST(StateGaugesTest, ShowTheSchedulersState) {
  SchedulerStats stats;
  stats.requests = {.queued = 1,
                    .prefilling = 2,
                    .migrating = 3,
                    .decoding = 4,
                    .swapped = 5};
  stats.queued_tokens = 77;
  stats.transfers = {.sending = 7, .fencing = 8, .discarded_commits = 9};
  stats.prefill_chunk_rows = 128;
  stats.stores = {{"shared", 10, 5, 4, 1}};
  stats.last_step[1] =
      std::chrono::steady_clock::now() - std::chrono::seconds(100);
  stats.has_work[1] = true;
  const auto gauges =
      MakeStateGauges([&stats] { return stats; }, [] { return 6; });
  const std::string scrape = Scrape(*gauges);
  const auto value = [&scrape](const std::string& series) {
    return ValueOf(scrape, series);
  };
  EXPECT_EQ(value("overfill_requests{state=\"queued\"}"), 1);
  EXPECT_EQ(value("overfill_requests{state=\"prefilling\"}"), 2);
  EXPECT_EQ(value("overfill_requests{state=\"migrating\"}"), 3);
  EXPECT_EQ(value("overfill_requests{state=\"decoding\"}"), 4);
  EXPECT_EQ(value("overfill_requests{state=\"swapped\"}"), 5);
  EXPECT_EQ(value("overfill_queued_tokens"), 77);
  EXPECT_EQ(value("overfill_kv_transfers{state=\"sending\"}"), 7);
  EXPECT_EQ(value("overfill_kv_transfers{state=\"fencing\"}"), 8);
  EXPECT_EQ(value("overfill_discarded_commits_total"), 9);
  EXPECT_EQ(value("overfill_prefill_chunk_rows"), 128);
  EXPECT_EQ(value("overfill_open_streams"), 6);
  const std::string store = "overfill_kv_blocks{store=\"shared\",state=";
  EXPECT_EQ(value(store + "\"free\"}"), 10);
  EXPECT_EQ(value(store + "\"cached\"}"), 5);
  EXPECT_EQ(value(store + "\"owned\"}"), 4);
  EXPECT_EQ(value(store + "\"quarantined\"}"), 1);
  EXPECT_EQ(value("overfill_kv_use_ratio{store=\"shared\"}"), 0.25);
  EXPECT_EQ(value("overfill_pool_stalled_seconds{pool=\"prefill\"}"), 0);
  EXPECT_GE(value("overfill_pool_stalled_seconds{pool=\"decode\"}"), 100);
  // The next scrape is of the next state.
  stats.requests.queued = 9;
  EXPECT_EQ(ValueOf(Scrape(*gauges), "overfill_requests{state=\"queued\"}"), 9);
}

TEST(MetricsServerTest, TakenPortIsAnError) {
  auto server = MetricsServer::Start({"127.0.0.1", 0}, {});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_GT((*server)->port(), 0);
  const auto again = MetricsServer::Start({"127.0.0.1", (*server)->port()}, {});
  EXPECT_EQ(again.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(again.status().message()),
              HasSubstr("cannot listen on 127.0.0.1"));
}

}  // namespace
}  // namespace overfill
