#include "benchmarks/serving/report.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/serving/svg_plot.h"

namespace overfill {
namespace {

constexpr std::pair<const char*, int64_t Anomalies::*> kAnomalies[] = {
    {"unfinished", &Anomalies::unfinished},
    {"missing_completion", &Anomalies::missing_completion},
    {"extra_completion", &Anomalies::extra_completion},
    {"delta_after_completion", &Anomalies::delta_after_completion},
    {"unknown_index", &Anomalies::unknown_index},
    {"token_count", &Anomalies::token_count},
    {"cancelled_by_server", &Anomalies::cancelled_by_server},
};

constexpr std::pair<const char*, Percentiles RunSummary::*> kLatencies[] = {
    {"ttft", &RunSummary::ttft},       {"itl", &RunSummary::itl},
    {"tpot", &RunSummary::tpot},       {"e2e", &RunSummary::e2e},
    {"refusal", &RunSummary::refusal}, {"lateness", &RunSummary::lateness},
};

Json PercentilesJson(const Percentiles& p) {
  if (p.count == 0) return nullptr;
  return {{"count", p.count}, {"mean", p.mean}, {"p50", p.p50}, {"p90", p.p90},
          {"p95", p.p95},     {"p99", p.p99},   {"max", p.max}};
}

std::string LatencyLine(const char* name, const Percentiles& p) {
  if (p.count == 0) return absl::StrFormat("%-10s %10s\n", name, "none");
  return absl::StrFormat(
      "%-10s %10.1f %10.1f %10.1f %10.1f %10.1f %10.1f %10d\n", name,
      p.mean * 1e3, p.p50 * 1e3, p.p90 * 1e3, p.p95 * 1e3, p.p99 * 1e3,
      p.max * 1e3, p.count);
}

PlotPanel LatencyPanel(const char* title, std::span<const RunReport> reports,
                       Percentiles RunSummary::*member) {
  PlotPanel panel{title,
                  "offered requests per second",
                  "milliseconds",
                  true,
                  {{"p50", {}}, {"p90", {}}, {"p99", {}}}};
  for (const RunReport& report : reports) {
    const Percentiles& p = report.summary.*member;
    if (p.count == 0) continue;
    panel.series[0].points.push_back({report.rate, p.p50 * 1e3});
    panel.series[1].points.push_back({report.rate, p.p90 * 1e3});
    panel.series[2].points.push_back({report.rate, p.p99 * 1e3});
  }
  return panel;
}

PlotPanel ThroughputPanel(std::span<const RunReport> reports) {
  PlotPanel panel{"Throughput",
                  "offered requests per second",
                  "requests per second",
                  false,
                  {{"completed", {}}, {"goodput", {}}}};
  for (const RunReport& report : reports) {
    const RunSummary& summary = report.summary;
    panel.series[0].points.push_back(
        {report.rate, summary.requests_per_second});
    panel.series[1].points.push_back(
        {report.rate, summary.goodput_requests_per_second});
  }
  return panel;
}

}  // namespace

Json ReportJson(const RunReport& report) {
  const RunSummary& s = report.summary;
  Json json = {{"rate", nullptr},
               {"concurrency", nullptr},
               {"sent", s.sent},
               {"completed", s.completed},
               {"valid", s.valid()},
               {"duration_seconds", s.duration_seconds},
               {"prompt_tokens", s.prompt_tokens},
               {"cached_prompt_tokens", s.cached_prompt_tokens},
               {"output_tokens", s.output_tokens},
               {"requests_per_second", s.requests_per_second},
               {"output_tokens_per_second", s.output_tokens_per_second},
               {"window_seconds", s.window_seconds},
               {"window_tokens_per_second", s.window_tokens_per_second},
               {"window_requests_per_second", s.window_requests_per_second},
               {"good", s.good},
               {"goodput_requests_per_second", s.goodput_requests_per_second},
               {"tokens_per_message", s.tokens_per_message},
               {"client_cpu_seconds", report.client_cpu_seconds},
               {"wall_seconds", report.wall_seconds}};
  // JSON knows no infinity: all at once is a rate of null, too.
  if (report.rate > 0 && std::isfinite(report.rate)) json["rate"] = report.rate;
  if (report.concurrency > 0) json["concurrency"] = report.concurrency;
  for (int code = 0; code < kNumStatusCodes; ++code) {
    if (s.by_status[code] > 0) {
      json["by_status"][StatusName(code)] = s.by_status[code];
    }
  }
  for (const auto& [name, member] : kAnomalies) {
    json["anomalies"][name] = s.anomalies.*member;
  }
  for (const auto& [name, member] : kLatencies) {
    json[absl::StrCat(name, "_seconds")] = PercentilesJson(s.*member);
  }
  return json;
}

std::string ReportTable(const RunReport& report) {
  const RunSummary& s = report.summary;
  std::string table = "\n";
  if (report.concurrency > 0) {
    absl::StrAppend(&table, "closed loop, ", report.concurrency,
                    " at a time\n");
  } else if (report.rate > 0) {
    absl::StrAppendFormat(&table, "%g requests/s offered\n", report.rate);
  }
  absl::StrAppendFormat(&table, "sent %d, completed %d", s.sent, s.completed);
  for (int code = 1; code < kNumStatusCodes; ++code) {
    if (s.by_status[code] > 0) {
      absl::StrAppend(&table, ", ", StatusName(code), " ", s.by_status[code]);
    }
  }
  absl::StrAppendFormat(
      &table,
      "\nin %.1f s: %.2f requests/s, %.1f tokens/s out; goodput %.2f "
      "requests/s\nwindow of %.1f s: %.2f requests/s, %.1f tokens/s out\n"
      "%d prompt tokens, %d of them cached; %.2f tokens per message\n",
      s.duration_seconds, s.requests_per_second, s.output_tokens_per_second,
      s.goodput_requests_per_second, s.window_seconds,
      s.window_requests_per_second, s.window_tokens_per_second, s.prompt_tokens,
      s.cached_prompt_tokens, s.tokens_per_message);
  absl::StrAppendFormat(&table, "%-10s %10s %10s %10s %10s %10s %10s %10s\n",
                        "ms", "mean", "p50", "p90", "p95", "p99", "max",
                        "count");
  for (const auto& [name, member] : kLatencies) {
    absl::StrAppend(&table, LatencyLine(name, s.*member));
  }
  absl::StrAppendFormat(
      &table, "generator: %.2f s of CPU in %.1f s, %.1f %% of one core\n",
      report.client_cpu_seconds, report.wall_seconds,
      report.wall_seconds > 0
          ? 100 * report.client_cpu_seconds / report.wall_seconds
          : 0);
  for (const auto& [name, member] : kAnomalies) {
    if (s.anomalies.*member > 0) {
      absl::StrAppend(&table, "INVALID: ", name, " ", s.anomalies.*member,
                      "\n");
    }
  }
  return table;
}

std::string RatePlotSvg(std::span<const RunReport> reports) {
  const std::vector<PlotPanel> panels = {
      LatencyPanel("TTFT", reports, &RunSummary::ttft),
      LatencyPanel("ITL", reports, &RunSummary::itl),
      LatencyPanel("End to end", reports, &RunSummary::e2e),
      ThroughputPanel(reports)};
  return RenderSvg("Latency against rate", panels);
}

std::string RecordJsonLine(const RequestRecord& record) {
  Json json = {{"index", record.plan.index},
               {"scheduled", record.scheduled},
               {"sent", record.sent},
               {"ended", record.ended},
               {"status", StatusName(record.status_code)},
               {"reader", ReaderKindName(record.plan.reader)},
               {"prefix", record.plan.prefix},
               {"prompt_tokens", record.usage_prompt_tokens},
               {"cached_prompt_tokens", record.usage_cached_prompt_tokens},
               {"samples", Json::array()}};
  for (const SampleRecord& sample : record.samples) {
    Json at = Json::array(), counts = Json::array();
    for (const TokenArrival& arrival : sample.arrivals) {
      at.push_back(arrival.at);
      counts.push_back(arrival.num_tokens);
    }
    json["samples"].push_back({{"at", std::move(at)},
                               {"num_tokens", std::move(counts)},
                               {"token_ids", sample.token_ids}});
  }
  return json.dump() + "\n";
}

}  // namespace overfill
