// The command line of `overfill-bench serve`.
#ifndef OVERFILL_BENCHMARKS_SERVING_SERVE_OPTIONS_H_
#define OVERFILL_BENCHMARKS_SERVING_SERVE_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "benchmarks/serving/summary.h"
#include "benchmarks/serving/workload.h"
#include "client/connection.h"

namespace overfill {

struct ServeOptions {
  bool help = false;
  ConnectionOptions connection;
  std::vector<double> rates = {1};  // one run each
  std::string trace_file;
  WorkloadOptions workload;  // its rate is set by run
  int32_t concurrency = 0;
  int64_t num_requests = 0;
  absl::Duration duration = absl::ZeroDuration();
  absl::Duration warm_up = absl::ZeroDuration();
  absl::Duration give_up = absl::Minutes(10);
  absl::Duration slow_delay = absl::Milliseconds(500);
  absl::Duration dead_hold = absl::Minutes(1);
  absl::Duration connect_timeout = absl::Seconds(10);
  bool cancel_at_end = false;
  bool ignore_eos = true;
  int32_t n = 1;
  double temperature = 1;
  int32_t logprobs = -1;   // -1: none
  int32_t vocab_size = 0;  // 0: the model's
  int32_t num_channels = 4;
  Objectives objectives;
  std::string json_file;
  std::string plot_file;
  std::string records_file;
  bool token_ids = false;  // in the records
};

std::string ServeHelp();

// `args` without the program's name and the subcommand. Reads --trace.
// INVALID_ARGUMENT is one line.
absl::StatusOr<ServeOptions> ParseServeOptions(
    const std::vector<std::string>& args);

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_SERVE_OPTIONS_H_
