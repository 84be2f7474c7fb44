#include "benchmarks/serving/summary.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace overfill {
namespace {

// The latencies of one request, as far as it has them.
struct Latencies {
  std::optional<double> ttft;
  std::vector<double> gaps;   // of all answers
  std::vector<double> tpots;  // of answers of two tokens and more
};

Latencies LatenciesOf(const RequestRecord& record) {
  Latencies found;
  for (const SampleRecord& sample : record.samples) {
    if (sample.arrivals.empty()) continue;
    const double first = sample.arrivals.front().at - record.scheduled;
    found.ttft = std::min(found.ttft.value_or(first), first);
    for (size_t i = 1; i < sample.arrivals.size(); ++i) {
      found.gaps.push_back(sample.arrivals[i].at - sample.arrivals[i - 1].at);
    }
    const int64_t num_tokens = sample.num_tokens();
    if (num_tokens > 1) {
      found.tpots.push_back(
          (sample.arrivals.back().at - sample.arrivals.front().at) /
          static_cast<double>(num_tokens - 1));
    }
  }
  return found;
}

bool AllAtMost(const std::vector<double>& values, std::optional<double> bound) {
  return !bound || std::all_of(values.begin(), values.end(),
                               [&](double value) { return value <= *bound; });
}

bool Meets(const RequestRecord& record, const Latencies& latencies,
           const Objectives& objectives) {
  if (objectives.ttft &&
      !(latencies.ttft && *latencies.ttft <= *objectives.ttft)) {
    return false;
  }
  if (objectives.e2e && record.ended - record.scheduled > *objectives.e2e) {
    return false;
  }
  return AllAtMost(latencies.gaps, objectives.itl) &&
         AllAtMost(latencies.tpots, objectives.tpot);
}

void CountSampleAnomalies(const RequestRecord& record,
                          const SampleRecord& sample, Anomalies& anomalies) {
  const bool ok = record.status_code == kStatusOk;
  anomalies.missing_completion += ok && sample.num_completions == 0;
  anomalies.extra_completion += sample.num_completions > 1;
  anomalies.delta_after_completion += sample.delta_after_completion;
  anomalies.token_count +=
      sample.num_completions == 1 &&
      sample.usage_completion_tokens != sample.num_tokens();
}

void CountAnomalies(const RequestRecord& record, Anomalies& anomalies) {
  if (record.unfinished) {
    ++anomalies.unfinished;
    return;  // cut short by the client: the rest follows from that
  }
  anomalies.unknown_index += record.unknown_index;
  for (const SampleRecord& sample : record.samples) {
    CountSampleAnomalies(record, sample, anomalies);
  }
  anomalies.cancelled_by_server += record.status_code == kStatusCancelled &&
                                   !record.cancelled_by_client &&
                                   record.plan.reader == ReaderKind::kNormal;
}

bool IsRefusal(const RequestRecord& record, const Latencies& latencies) {
  // A dead reader gets no token in any case.
  return record.status_code == kStatusResourceExhausted && !latencies.ttft &&
         record.plan.reader != ReaderKind::kDead;
}

struct Values {
  std::vector<double> ttft, itl, tpot, e2e, refusal, lateness;
};

void AddLatencies(const RequestRecord& record, const Latencies& latencies,
                  Values& values) {
  values.lateness.push_back(record.sent - record.scheduled);
  const double whole = record.ended - record.scheduled;
  if (IsRefusal(record, latencies)) values.refusal.push_back(whole);
  // What others read late or not at all says nothing of the server.
  if (record.plan.reader != ReaderKind::kNormal || record.unfinished) return;
  if (latencies.ttft) values.ttft.push_back(*latencies.ttft);
  values.itl.insert(values.itl.end(), latencies.gaps.begin(),
                    latencies.gaps.end());
  if (record.status_code != kStatusOk) return;
  values.tpot.insert(values.tpot.end(), latencies.tpots.begin(),
                     latencies.tpots.end());
  values.e2e.push_back(whole);
}

double PerSecond(double amount, double seconds) {
  return seconds > 0 ? amount / seconds : 0;
}

// Sums over records on the way to rates.
struct Totals {
  int64_t messages = 0;
  int64_t tokens = 0;
  int64_t window_tokens = 0;
  int64_t window_completed = 0;
  double first_due = std::numeric_limits<double>::infinity();
  double last_end = -std::numeric_limits<double>::infinity();
};

void AddTotals(const RequestRecord& record, double begin, double end,
               RunSummary& summary, Totals& totals) {
  const auto in_window = [&](double at) { return at >= begin && at <= end; };
  totals.first_due = std::min(totals.first_due, record.scheduled);
  totals.last_end = std::max(totals.last_end, record.ended);
  const bool ok = record.status_code == kStatusOk;
  for (const SampleRecord& sample : record.samples) {
    totals.messages += static_cast<int64_t>(sample.arrivals.size());
    totals.tokens += sample.num_tokens();
    if (ok) summary.output_tokens += sample.num_tokens();
    for (const TokenArrival& arrival : sample.arrivals) {
      if (in_window(arrival.at)) totals.window_tokens += arrival.num_tokens;
    }
  }
  if (!ok) return;
  ++summary.completed;
  summary.prompt_tokens += record.usage_prompt_tokens;
  summary.cached_prompt_tokens += record.usage_cached_prompt_tokens;
  totals.window_completed += in_window(record.ended);
}

}  // namespace

const char* StatusName(int code) {
  static constexpr const char* kNames[kNumStatusCodes] = {"OK",
                                                          "CANCELLED",
                                                          "UNKNOWN",
                                                          "INVALID_ARGUMENT",
                                                          "DEADLINE_EXCEEDED",
                                                          "NOT_FOUND",
                                                          "ALREADY_EXISTS",
                                                          "PERMISSION_DENIED",
                                                          "RESOURCE_EXHAUSTED",
                                                          "FAILED_PRECONDITION",
                                                          "ABORTED",
                                                          "OUT_OF_RANGE",
                                                          "UNIMPLEMENTED",
                                                          "INTERNAL",
                                                          "UNAVAILABLE",
                                                          "DATA_LOSS",
                                                          "UNAUTHENTICATED"};
  return code >= 0 && code < kNumStatusCodes ? kNames[code] : "UNKNOWN";
}

double Percentile(std::span<const double> sorted, double q) {
  OVERFILL_CHECK(!sorted.empty());
  const double rank =
      std::clamp(q, 0.0, 1.0) * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above],
                   rank - static_cast<double>(below));
}

Percentiles ToPercentiles(std::vector<double> values) {
  Percentiles result;
  if (values.empty()) return result;
  std::sort(values.begin(), values.end());
  result.count = static_cast<int64_t>(values.size());
  result.mean = std::accumulate(values.begin(), values.end(), 0.0) /
                static_cast<double>(values.size());
  result.p50 = Percentile(values, 0.50);
  result.p90 = Percentile(values, 0.90);
  result.p95 = Percentile(values, 0.95);
  result.p99 = Percentile(values, 0.99);
  result.max = values.back();
  return result;
}

RunSummary Summarize(std::span<const RequestRecord> records,
                     double window_begin, double window_end,
                     const Objectives& objectives) {
  RunSummary summary;
  Totals totals;
  Values values;
  for (const RequestRecord& record : records) {
    ++summary.sent;
    const bool known =
        record.status_code >= 0 && record.status_code < kNumStatusCodes;
    ++summary.by_status[known ? record.status_code : 2];
    CountAnomalies(record, summary.anomalies);
    AddTotals(record, window_begin, window_end, summary, totals);
    const Latencies latencies = LatenciesOf(record);
    summary.good +=
        record.status_code == kStatusOk && Meets(record, latencies, objectives);
    if (record.scheduled >= window_begin) {
      AddLatencies(record, latencies, values);
    }
  }
  if (summary.sent == 0) return summary;
  const double duration = totals.last_end - totals.first_due;
  summary.duration_seconds = duration;
  summary.requests_per_second =
      PerSecond(static_cast<double>(summary.completed), duration);
  summary.output_tokens_per_second =
      PerSecond(static_cast<double>(summary.output_tokens), duration);
  summary.goodput_requests_per_second =
      PerSecond(static_cast<double>(summary.good), duration);
  summary.window_seconds = window_end - window_begin;
  summary.window_tokens_per_second = PerSecond(
      static_cast<double>(totals.window_tokens), summary.window_seconds);
  summary.window_requests_per_second = PerSecond(
      static_cast<double>(totals.window_completed), summary.window_seconds);
  summary.tokens_per_message = PerSecond(static_cast<double>(totals.tokens),
                                         static_cast<double>(totals.messages));
  summary.ttft = ToPercentiles(std::move(values.ttft));
  summary.itl = ToPercentiles(std::move(values.itl));
  summary.tpot = ToPercentiles(std::move(values.tpot));
  summary.e2e = ToPercentiles(std::move(values.e2e));
  summary.refusal = ToPercentiles(std::move(values.refusal));
  summary.lateness = ToPercentiles(std::move(values.lateness));
  return summary;
}

}  // namespace overfill
