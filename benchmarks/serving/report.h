// A run's summary as JSON, as a table and as a picture; records as JSON lines.
#ifndef OVERFILL_BENCHMARKS_SERVING_REPORT_H_
#define OVERFILL_BENCHMARKS_SERVING_REPORT_H_

#include <span>
#include <string>

#include "base/json.h"
#include "benchmarks/serving/record.h"
#include "benchmarks/serving/summary.h"

namespace overfill {

struct RunReport {
  double rate = 0;  // requests per second offered; 0: a closed loop or a trace
  int concurrency = 0;            // of a closed loop; 0: an open one
  double client_cpu_seconds = 0;  // the generator's own, user and system
  double wall_seconds = 0;
  RunSummary summary;
};

// Seconds, counts and shares; percentiles of nothing are null.
Json ReportJson(const RunReport& report);

// Some twenty lines, for people.
std::string ReportTable(const RunReport& report);

// Latency and throughput against the offered rate, one mark per run.
std::string RatePlotSvg(std::span<const RunReport> reports);

// One request in one line, with its line's end. Times stay on the steady clock
// (CLOCK_MONOTONIC), so that they compare with those of other programs on the
// machine.
std::string RecordJsonLine(const RequestRecord& record);

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_REPORT_H_
