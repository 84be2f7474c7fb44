#include "benchmarks/serving/serve.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/status_macros.h"
#include "benchmarks/serving/event_loop.h"
#include "benchmarks/serving/load_client.h"
#include "benchmarks/serving/report.h"
#include "benchmarks/serving/serve_options.h"
#include "grpc/support/log.h"

namespace overfill {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitBadFlags = 2;

int Fail(int code, absl::string_view line) {
  std::fprintf(stderr, "overfill-bench: %s\n", std::string(line).c_str());
  return code;
}

// Of this process, user and system.
double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) +
           1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) {
    return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  }
  return absl::OkStatus();
}

RunOptions ToRunOptions(const ServeOptions& options, int32_t vocab_size) {
  RunOptions run;
  run.concurrency = options.concurrency;
  run.num_requests = options.num_requests;
  run.duration_seconds = absl::ToDoubleSeconds(options.duration);
  run.cancel_at_end = options.cancel_at_end;
  run.give_up_seconds = absl::ToDoubleSeconds(options.give_up);
  run.vocab_size = vocab_size;
  run.request.set_n(options.n);
  run.request.mutable_sampling()->set_temperature(
      static_cast<float>(options.temperature));
  run.request.mutable_limits()->set_ignore_eos(options.ignore_eos);
  if (options.logprobs >= 0) {
    run.request.mutable_output()->set_logprobs(options.logprobs);
  }
  run.call.slow_delay_seconds = absl::ToDoubleSeconds(options.slow_delay);
  run.call.dead_hold_seconds = absl::ToDoubleSeconds(options.dead_hold);
  run.call.keep_token_ids = options.token_ids;
  return run;
}

// Run `number` of the sweep. Appends its records' lines to `lines`.
absl::StatusOr<RunReport> RunOnce(LoadClient& client,
                                  const ServeOptions& options,
                                  const RunOptions& run, size_t number,
                                  std::string& lines) {
  const double rate = options.rates[number];
  WorkloadOptions workload_options = options.workload;
  workload_options.rate = rate;
  // Prompts that an earlier run has sent would be found in the prefix cache.
  if (number > 0) {
    workload_options.seed = DeriveSeed(options.workload.seed, number);
  }
  ASSIGN_OR_RETURN(Workload workload, Workload::Make(workload_options));
  const double begin = SteadySeconds(), cpu_begin = CpuSeconds();
  const RunRecords records = client.Run(std::move(workload), run);
  RunReport report;
  report.wall_seconds = SteadySeconds() - begin;
  report.client_cpu_seconds = CpuSeconds() - cpu_begin;
  report.concurrency = options.concurrency;
  if (options.concurrency == 0 && options.workload.trace.empty()) {
    report.rate = rate;
  }
  // A run of a duration sends to its end, even if its last arrival was before.
  const double window_end =
      std::max(records.send_end, records.begin + run.duration_seconds);
  report.summary = Summarize(
      records.records, records.begin + absl::ToDoubleSeconds(options.warm_up),
      window_end, options.objectives);
  if (!options.records_file.empty()) {
    for (const RequestRecord& record : records.records) {
      absl::StrAppend(&lines, RecordJsonLine(record));
    }
  }
  return report;
}

absl::Status WriteFiles(const ServeOptions& options,
                        const std::vector<RunReport>& reports,
                        const std::string& lines) {
  if (!options.json_file.empty()) {
    Json json = {{"name", "serve"},
                 {"target", options.connection.target},
                 {"seed", options.workload.seed},
                 {"runs", Json::array()}};
    for (const RunReport& report : reports) {
      json["runs"].push_back(ReportJson(report));
    }
    RETURN_IF_ERROR(WriteFile(options.json_file, json.dump(2) + "\n"));
  }
  if (!options.plot_file.empty()) {
    RETURN_IF_ERROR(WriteFile(options.plot_file, RatePlotSvg(reports)));
  }
  if (!options.records_file.empty()) {
    RETURN_IF_ERROR(WriteFile(options.records_file, lines));
  }
  return absl::OkStatus();
}

// All runs; OK only if all were valid.
absl::Status Serve(const ServeOptions& options) {
  ASSIGN_OR_RETURN(const Connection connection,
                   Connection::Create(options.connection));
  LoadClient client(connection, options.num_channels);
  auto info =
      client.GetModelInfo(absl::ToDoubleSeconds(options.connect_timeout));
  if (!info.ok()) {
    return absl::UnavailableError(absl::StrCat(
        connection.target(), ": ", info.status().message(), " (GetModelInfo)"));
  }
  const RunOptions run = ToRunOptions(
      options, options.vocab_size > 0
                   ? options.vocab_size
                   : static_cast<int32_t>(info->full().vocab_size()));
  std::vector<RunReport> reports;
  std::string lines;
  bool valid = true;
  for (size_t number = 0; number < options.rates.size(); ++number) {
    ASSIGN_OR_RETURN(RunReport report,
                     RunOnce(client, options, run, number, lines));
    valid &= report.summary.valid();
    std::fputs(ReportTable(report).c_str(), stdout);
    std::fflush(stdout);
    reports.push_back(std::move(report));
  }
  RETURN_IF_ERROR(WriteFiles(options, reports, lines));
  return valid ? absl::OkStatus()
               : absl::InternalError("a request did not end as promised");
}

}  // namespace

int RunServe(const std::vector<std::string>& args) {
  // An error is one line, ours.
  gpr_set_log_function([](gpr_log_func_args*) {});
  const auto options = ParseServeOptions(args);
  if (!options.ok()) return Fail(kExitBadFlags, options.status().message());
  if (options->help) {
    std::fputs(ServeHelp().c_str(), stdout);
    return 0;
  }
  const absl::Status status = Serve(*options);
  return status.ok() ? 0 : Fail(kExitFailed, status.message());
}

}  // namespace overfill
