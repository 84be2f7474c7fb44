#include "server/metrics.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"

namespace overfill {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::ClientMetric;
using prometheus::Histogram;
using prometheus::MetricFamily;
using Buckets = Histogram::BucketBoundaries;
using HistogramFamily = prometheus::Family<Histogram>;

// A decode step of a small model on a fast device takes some 100 us.
const Buckets kStepSeconds = {.0001, .0002, .0005, .001, .002, .005,
                              .01,   .02,   .05,   .1,   .2,   .5,
                              1,     2,     5,     10,   30};
// Time to the next token.
const Buckets kTokenSeconds = {.0005, .001, .002, .005, .01, .02, .03,
                               .04,   .05,  .075, .1,   .15, .2,  .3,
                               .5,    .75,  1,    2.5,  5,   10,  30};
// What a user waits for.
const Buckets kWaitSeconds = {.001, .002, .005, .01, .02, .04, .06, .08,
                              .1,   .25,  .5,   .75, 1,   2.5, 5,   7.5,
                              10,   20,   40,   80,  160, 320, 640};
const Buckets kMigrationSeconds = {.00001, .0001, .0002, .0005, .001,
                                   .002,   .005,  .01,   .02,   .05,
                                   .1,     .2,    .5,    1,     5};
const Buckets kBytes = {1 << 10, 1 << 13, 1 << 16, 1 << 19, 1 << 20, 1 << 22,
                        1 << 24, 1 << 26, 1 << 28, 1 << 30, 4e9,     16e9};
const Buckets kCounts = {0,   1,   2,   4,   8,    16,   32,   64,  96,
                         128, 192, 256, 512, 1024, 2048, 4096, 8192};

HistogramFamily& AddHistogram(prometheus::Registry& registry, const char* name,
                              const char* help) {
  return BuildHistogram().Name(name).Help(help).Register(registry);
}

void AddInfo(prometheus::Registry& registry, const char* name, const char* help,
             const InfoLabels& labels) {
  BuildGauge().Name(name).Help(help).Register(registry).Add(labels).Set(1);
}

// A short constant for each way a request can end.
const char* Outcome(const Terminal& terminal) {
  switch (terminal.status.code()) {
    case absl::StatusCode::kOk:
      switch (terminal.finish_reason) {
        case FinishReason::kStop:
          return "stop";
        case FinishReason::kLength:
          return "length";
        case FinishReason::kEos:
          return "eos";
      }
      return "stop";
    case absl::StatusCode::kCancelled:
      return "cancelled";
    case absl::StatusCode::kDeadlineExceeded:
      return "deadline_exceeded";
    case absl::StatusCode::kResourceExhausted:
      return "resource_exhausted";
    case absl::StatusCode::kUnavailable:
      return "unavailable";
    default:
      return "internal";
  }
}

constexpr const char* kOutcomes[] = {"stop",
                                     "length",
                                     "eos",
                                     "cancelled",
                                     "deadline_exceeded",
                                     "resource_exhausted",
                                     "unavailable",
                                     "internal"};

MetricFamily GaugeFamily(const char* name, const char* help) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = prometheus::MetricType::Gauge;
  return family;
}

void AddGauge(MetricFamily& family, std::vector<ClientMetric::Label> labels,
              double value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  family.metric.push_back(std::move(metric));
}

MetricFamily RequestGauges(const RequestCounts& counts) {
  MetricFamily family =
      GaugeFamily("overfill_requests", "Live requests by state.");
  AddGauge(family, {{"state", "queued"}}, counts.queued);
  AddGauge(family, {{"state", "prefilling"}}, counts.prefilling);
  AddGauge(family, {{"state", "migrating"}}, counts.migrating);
  AddGauge(family, {{"state", "decoding"}}, counts.decoding);
  AddGauge(family, {{"state", "swapped"}}, counts.swapped);
  return family;
}

MetricFamily BlockGauges(const std::vector<BlockCounts>& stores) {
  MetricFamily family =
      GaugeFamily("overfill_kv_blocks", "KV blocks by store and state.");
  for (const BlockCounts& counts : stores) {
    const auto add = [&](const char* state, int32_t value) {
      AddGauge(family, {{"store", counts.store}, {"state", state}}, value);
    };
    add("free", counts.free);
    add("cached", counts.cached);
    add("owned", counts.owned);
    add("quarantined", counts.quarantined);
  }
  return family;
}

MetricFamily UseRatioGauges(const std::vector<BlockCounts>& stores) {
  MetricFamily family = GaugeFamily(
      "overfill_kv_use_ratio",
      "KV blocks that live requests hold, of all blocks of the store.");
  for (const BlockCounts& counts : stores) {
    const double used = counts.owned + counts.quarantined;
    const double total = used + counts.free + counts.cached;
    AddGauge(family, {{"store", counts.store}}, total > 0 ? used / total : 0);
  }
  return family;
}

MetricFamily StepAgeGauges(const SchedulerStats& stats) {
  MetricFamily family = GaugeFamily(
      "overfill_pool_stalled_seconds",
      "Seconds since the last step of a pool that has work; 0 without work.");
  const SteadyTime now = std::chrono::steady_clock::now();
  for (const PoolId pool : {PoolId::kPrefill, PoolId::kDecode}) {
    const size_t i = static_cast<size_t>(pool);
    const double seconds =
        std::chrono::duration<double>(now - stats.last_step[i]).count();
    AddGauge(family, {{"pool", PoolName(pool)}},
             stats.has_work[i] ? seconds : 0);
  }
  return family;
}

class StateGauges : public prometheus::Collectable {
 public:
  explicit StateGauges(std::function<SchedulerStats()> stats)
      : stats_(std::move(stats)) {}

  std::vector<MetricFamily> Collect() const override {
    const SchedulerStats stats = stats_();
    std::vector<MetricFamily> families = {
        RequestGauges(stats.requests), BlockGauges(stats.stores),
        UseRatioGauges(stats.stores), StepAgeGauges(stats)};
    families.push_back(
        GaugeFamily("overfill_queued_tokens",
                    "Prompt tokens of requests that wait to be admitted to a "
                    "step."));
    AddGauge(families.back(), {}, static_cast<double>(stats.queued_tokens));
    return families;
  }

 private:
  const std::function<SchedulerStats()> stats_;
};

}  // namespace

ServerMetrics::ServerMetrics(const InfoLabels& build, const InfoLabels& model)
    : registry_(std::make_shared<prometheus::Registry>()) {
  AddInfo(*registry_, "overfill_build_info", "The program.", build);
  AddInfo(*registry_, "overfill_model_info", "The pair that is served.", model);
  requests_ = &BuildCounter()
                   .Name("overfill_requests_total")
                   .Help("Admitted requests that ended, by outcome.")
                   .Register(*registry_);
  rejected_ = &BuildCounter()
                   .Name("overfill_requests_rejected_total")
                   .Help("Requests that were not admitted, by reason.")
                   .Register(*registry_);
  AddPathMetrics();
  AddPoolMetrics();
  AddMigrationMetrics();
}

void ServerMetrics::AddPathMetrics() {
  auto& queue = AddHistogram(*registry_, "overfill_queue_seconds",
                             "Arrival to the first prefill step.");
  auto& ttft = AddHistogram(*registry_, "overfill_ttft_seconds",
                            "Arrival to the first token.");
  auto& inter_token = AddHistogram(*registry_, "overfill_inter_token_seconds",
                                   "One token to the next.");
  auto& per_token = AddHistogram(
      *registry_, "overfill_time_per_output_token_seconds",
      "First to last token of an answer, divided by the tokens after the "
      "first.");
  auto& end_to_end = AddHistogram(*registry_, "overfill_e2e_seconds",
                                  "Arrival to the end of an answer.");
  auto& prompt = BuildCounter()
                     .Name("overfill_prompt_tokens_total")
                     .Help("Prompt tokens of requests that ended.")
                     .Register(*registry_);
  auto& completion = BuildCounter()
                         .Name("overfill_completion_tokens_total")
                         .Help("Tokens that were generated.")
                         .Register(*registry_);
  for (int i = 0; i < kNumDecodePaths; ++i) {
    const std::string name = DecodePathName(static_cast<DecodePath>(i));
    const prometheus::Labels path = {{"path", name}};
    paths_[i] = {&queue.Add(path, kWaitSeconds),
                 &ttft.Add(path, kWaitSeconds),
                 &inter_token.Add(path, kTokenSeconds),
                 &per_token.Add(path, kTokenSeconds),
                 &end_to_end.Add(path, kWaitSeconds),
                 &prompt.Add(path),
                 &completion.Add(path)};
    for (const char* outcome : kOutcomes) {
      requests_->Add({{"path", name}, {"outcome", outcome}});
    }
  }
}

void ServerMetrics::AddPoolMetrics() {
  auto& seconds =
      AddHistogram(*registry_, "overfill_step_seconds", "One step of a pool.");
  auto& rows = AddHistogram(*registry_, "overfill_step_rows",
                            "Rows of a step: prompt tokens, decoded tokens.");
  auto& sequences = AddHistogram(*registry_, "overfill_step_sequences",
                                 "Sequences of a step.");
  for (const PoolId pool : {PoolId::kPrefill, PoolId::kDecode}) {
    const std::string name = PoolName(pool);
    pools_[static_cast<size_t>(pool)] = {
        &seconds.Add({{"pool", name}}, kStepSeconds),
        &rows.Add({{"pool", name}, {"kind", "prompt"}}, kCounts),
        &rows.Add({{"pool", name}, {"kind", "decode"}}, kCounts),
        &sequences.Add({{"pool", name}}, kCounts)};
  }
}

void ServerMetrics::AddMigrationMetrics() {
  auto& seconds =
      AddHistogram(*registry_, "overfill_migration_seconds",
                   "KV changing owner between the pools: handoff, copy.");
  auto& bytes = AddHistogram(*registry_, "overfill_migration_bytes",
                             "KV that a migration moved.");
  for (const bool copied : {false, true}) {
    const prometheus::Labels kind = {{"kind", copied ? "copy" : "handoff"}};
    migrations_[copied] = {&seconds.Add(kind, kMigrationSeconds),
                           &bytes.Add(kind, kBytes)};
  }
}

void ServerMetrics::OnStep(PoolId pool, double seconds, int32_t num_prompt_rows,
                           int32_t num_decode_rows, int32_t num_sequences) {
  if (!enabled()) return;
  const PoolMetrics& metrics = pools_[static_cast<size_t>(pool)];
  metrics.seconds->Observe(seconds);
  metrics.prompt_rows->Observe(num_prompt_rows);
  metrics.decode_rows->Observe(num_decode_rows);
  metrics.sequences->Observe(num_sequences);
}

void ServerMetrics::OnFirstToken(DecodePath path, double ttft_seconds,
                                 double queue_seconds) {
  if (!enabled()) return;
  const PathMetrics& metrics = paths_[static_cast<size_t>(path)];
  metrics.ttft->Observe(ttft_seconds);
  metrics.queue->Observe(queue_seconds);
  metrics.completion_tokens->Increment();
}

void ServerMetrics::OnToken(DecodePath path, double inter_token_seconds) {
  if (!enabled()) return;
  const PathMetrics& metrics = paths_[static_cast<size_t>(path)];
  metrics.inter_token->Observe(inter_token_seconds);
  metrics.completion_tokens->Increment();
}

void ServerMetrics::OnMigration(double seconds, int64_t bytes, bool copied) {
  if (!enabled()) return;
  migrations_[copied].seconds->Observe(seconds);
  migrations_[copied].bytes->Observe(static_cast<double>(bytes));
}

void ServerMetrics::OnTerminal(DecodePath path, const Terminal& terminal,
                               double e2e_seconds) {
  if (!enabled()) return;
  const PathMetrics& metrics = paths_[static_cast<size_t>(path)];
  requests_
      ->Add({{"path", DecodePathName(path)}, {"outcome", Outcome(terminal)}})
      .Increment();
  metrics.prompt_tokens->Increment(terminal.usage.prompt_tokens);
  if (!terminal.status.ok()) return;
  metrics.end_to_end->Observe(e2e_seconds);
  if (terminal.usage.completion_tokens > 1) {
    metrics.per_output_token->Observe(terminal.timings.decode_seconds /
                                      (terminal.usage.completion_tokens - 1));
  }
}

void ServerMetrics::OnReject(absl::string_view reason) {
  if (!enabled()) return;
  rejected_->Add({{"reason", std::string(reason)}}).Increment();
}

std::shared_ptr<prometheus::Collectable> MakeStateGauges(
    std::function<SchedulerStats()> stats) {
  return std::make_shared<StateGauges>(std::move(stats));
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const HostPort& listen,
    std::vector<std::shared_ptr<prometheus::Collectable>> collectables) {
  std::unique_ptr<MetricsServer> server(new MetricsServer);
  server->collectables_ = std::move(collectables);
  // The library reports a port that is taken by an exception.
  try {
    server->exposer_ = std::make_unique<prometheus::Exposer>(listen.ToString());
    server->port_ = server->exposer_->GetListeningPorts().front();
  } catch (const std::exception&) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", listen.ToString(),
                     ": the address is taken, or not IPv4"));
  }
  for (const auto& collectable : server->collectables_) {
    server->exposer_->RegisterCollectable(collectable);
  }
  return server;
}

}  // namespace overfill
