#include "server/state_gauges.h"

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "prometheus/client_metric.h"
#include "prometheus/metric_family.h"
#include "prometheus/metric_type.h"

namespace overfill {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;

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

MetricFamily TransferGauges(const TransferStats& counts) {
  MetricFamily family = GaugeFamily(
      "overfill_kv_transfers",
      "KV under way between stores; fencing: past its lease, until no byte of "
      "it can be written any more.");
  AddGauge(family, {{"state", "sending"}}, counts.sending);
  AddGauge(family, {{"state", "fencing"}}, counts.fencing);
  return family;
}

MetricFamily DiscardedCommits(const TransferStats& counts) {
  MetricFamily family;
  family.name = "overfill_discarded_commits_total";
  family.help = "Ends of transfers that came twice, or too late to count.";
  family.type = prometheus::MetricType::Counter;
  ClientMetric metric;
  metric.counter.value = static_cast<double>(counts.discarded_commits);
  family.metric.push_back(std::move(metric));
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

MetricFamily PlainGauge(const char* name, const char* help, int64_t value) {
  MetricFamily family = GaugeFamily(name, help);
  AddGauge(family, {}, static_cast<double>(value));
  return family;
}

class StateGauges : public prometheus::Collectable {
 public:
  StateGauges(std::function<SchedulerStats()> stats,
              std::function<int32_t()> num_open_streams)
      : stats_(std::move(stats)),
        num_open_streams_(std::move(num_open_streams)) {}

  std::vector<MetricFamily> Collect() const override {
    const SchedulerStats stats = stats_();
    return {RequestGauges(stats.requests),
            BlockGauges(stats.stores),
            UseRatioGauges(stats.stores),
            StepAgeGauges(stats),
            TransferGauges(stats.transfers),
            DiscardedCommits(stats.transfers),
            PlainGauge("overfill_queued_tokens",
                       "Prompt tokens of requests that wait to be admitted to "
                       "a step.",
                       stats.queued_tokens),
            PlainGauge("overfill_prefill_chunk_rows",
                       "Prompt tokens that a step may take at present.",
                       stats.prefill_chunk_rows),
            PlainGauge("overfill_open_streams",
                       "Streams of Generate that are open, those that are only "
                       "being read among them.",
                       num_open_streams_())};
  }

 private:
  const std::function<SchedulerStats()> stats_;
  const std::function<int32_t()> num_open_streams_;
};

}  // namespace

std::shared_ptr<prometheus::Collectable> MakeStateGauges(
    std::function<SchedulerStats()> stats,
    std::function<int32_t()> num_open_streams) {
  return std::make_shared<StateGauges>(std::move(stats),
                                       std::move(num_open_streams));
}

}  // namespace overfill
