// What a run's records come to. The words mean what `vllm bench serve` and
// NVIDIA AIPerf mean by them:
//
// TTFT: to the first token (both).
// ITL: the gap between two messages with tokens of one answer, all gaps of all
//   answers together (vLLM's ITL; AIPerf's inter chunk latency).
// TPOT: per answer, (last token - first token) / (tokens - 1) (vLLM's TPOT;
//   AIPerf's inter token latency).
// e2e: to the end of the stream.
// goodput: completed requests per second that meet every objective set (both).
//
// One thing differs: TTFT and e2e count from when a request was due, not from
// when it was sent, so that a late generator does not hide what users would
// have waited (coordinated omission). `lateness` says how late it was.
#ifndef OVERFILL_BENCHMARKS_SERVING_SUMMARY_H_
#define OVERFILL_BENCHMARKS_SERVING_SUMMARY_H_

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "benchmarks/serving/record.h"

namespace overfill {

// The value below which the share `q` of sorted `values` lies, interpolated
// linearly between neighbours, as numpy.percentile does. Not empty.
double Percentile(std::span<const double> sorted, double q);

struct Percentiles {
  int64_t count = 0;  // 0: the rest means nothing
  double mean = 0;
  double p50 = 0, p90 = 0, p95 = 0, p99 = 0;
  double max = 0;
};

Percentiles ToPercentiles(std::vector<double> values);

// In seconds; unset: none.
struct Objectives {
  std::optional<double> ttft = {};
  std::optional<double> itl = {};  // of every gap of the request
  std::optional<double> tpot = {};
  std::optional<double> e2e = {};
};

// Breaches of the stream's contract. One makes a run invalid.
struct Anomalies {
  int64_t unfinished = 0;          // no status in time
  int64_t missing_completion = 0;  // OK, without a completion of each answer
  int64_t extra_completion = 0;    // a second one of an answer
  int64_t delta_after_completion = 0;
  int64_t unknown_index = 0;
  int64_t token_count = 0;          // the usage says other than what came
  int64_t cancelled_by_server = 0;  // of a reader that reads and did not cancel

  int64_t Sum() const {
    return unfinished + missing_completion + extra_completion +
           delta_after_completion + unknown_index + token_count +
           cancelled_by_server;
  }
};

struct RunSummary {
  // Of all requests.
  int64_t sent = 0;
  std::array<int64_t, kNumStatusCodes> by_status = {};
  int64_t completed = 0;  // status OK
  Anomalies anomalies;
  bool valid() const { return anomalies.Sum() == 0; }

  // From the first due to the last end.
  double duration_seconds = 0;
  int64_t prompt_tokens = 0;  // of completed requests, as the next two
  int64_t cached_prompt_tokens = 0;
  int64_t output_tokens = 0;
  double requests_per_second = 0;  // completed
  double output_tokens_per_second = 0;
  // Tokens of any request that came in the window, per second of it: without
  // the warm-up and the last requests' way out.
  double window_seconds = 0;
  double window_tokens_per_second = 0;
  double window_requests_per_second = 0;  // that ended OK in it
  int64_t good = 0;
  double goodput_requests_per_second = 0;
  double tokens_per_message = 0;

  // Of requests that were due after the warm-up. TTFT and ITL are of all that
  // got tokens and whose reader is normal; TPOT and e2e of completed ones;
  // refusals are RESOURCE_EXHAUSTED without any token.
  Percentiles ttft, itl, tpot, e2e, refusal, lateness;
};

// The window is [begin, end] on the records' clock.
RunSummary Summarize(std::span<const RequestRecord> records,
                     double window_begin, double window_end,
                     const Objectives& objectives);

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_SUMMARY_H_
