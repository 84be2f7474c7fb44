#include "benchmarks/serving/serve_options.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/flags.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

constexpr int32_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr uint64_t kMaxTraceBytes = 1 << 30;
constexpr int32_t kMaxPriority = 100;

absl::Status Invalid(absl::string_view message) {
  return absl::InvalidArgumentError(message);
}

FlagSet::Setter NumberSetter(double min, double max, double* target) {
  return [=](absl::string_view text) {
    double number;
    if (!absl::SimpleAtod(text, &number) || !(number >= min && number <= max)) {
      return Invalid(
          absl::StrCat("must be a number in [", min, ", ", max, "]"));
    }
    *target = number;
    return absl::OkStatus();
  };
}

// A time above 0, into seconds.
FlagSet::Setter SecondsSetter(std::optional<double>* target) {
  return [=](absl::string_view text) {
    absl::Duration duration;
    if (!absl::ParseDuration(text, &duration) ||
        duration <= absl::ZeroDuration()) {
      return Invalid("must be a duration such as 2s or 50ms");
    }
    *target = absl::ToDoubleSeconds(duration);
    return absl::OkStatus();
  };
}

FlagSet::Setter SecondsSetter(double* target) {
  return [=](absl::string_view text) {
    std::optional<double> seconds;
    RETURN_IF_ERROR(SecondsSetter(&seconds)(text));
    *target = *seconds;
    return absl::OkStatus();
  };
}

FlagSet::Setter RatesSetter(std::vector<double>* target) {
  return [=](absl::string_view text) {
    std::vector<double> rates;
    for (const absl::string_view part : absl::StrSplit(text, ',')) {
      double rate;
      if (!absl::SimpleAtod(part, &rate) || !(rate > 0)) {
        return Invalid("must be numbers above 0, as 1,2,4, or inf");
      }
      rates.push_back(rate);
    }
    *target = std::move(rates);
    return absl::OkStatus();
  };
}

FlagSet::Setter LengthSetter(LengthDistribution* target) {
  return [=](absl::string_view text) -> absl::Status {
    ASSIGN_OR_RETURN(*target, LengthDistribution::Parse(text));
    return absl::OkStatus();
  };
}

FlagSet::Setter PrioritiesSetter(WorkloadOptions* target) {
  return [=](absl::string_view text) {
    const std::vector<std::string> parts = absl::StrSplit(text, ':');
    int32_t min, max;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &min) ||
        !absl::SimpleAtoi(parts[1], &max) || min > max || min < -kMaxPriority ||
        max > kMaxPriority) {
      return Invalid("must be MIN:MAX in [-100, 100]");
    }
    target->min_priority = min;
    target->max_priority = max;
    return absl::OkStatus();
  };
}

FlagSet::Setter PathsSetter(std::vector<std::string>* target) {
  return [=](absl::string_view text) {
    std::vector<std::string> paths = absl::StrSplit(text, ',');
    for (const std::string& path : paths) {
      if (path != "two_stage" && path != "full" && path != "pruned") {
        return Invalid("must be of two_stage, full and pruned, as full,pruned");
      }
    }
    *target = std::move(paths);
    return absl::OkStatus();
  };
}

void AddArrivalFlags(FlagSet& flags, ServeOptions& options) {
  AddConnectionFlags(flags, &options.connection);
  flags.Add("rate", "F,F,...",
            "requests per second of an open loop; several: one run each; inf: "
            "all at once (1)",
            RatesSetter(&options.rates));
  flags.Add("burstiness", "F",
            "shape of the gamma-distributed gaps; 1: Poisson, less: bursts (1)",
            NumberSetter(1e-3, 1e6, &options.workload.burstiness));
  flags.AddString("trace", "FILE",
                  "arrivals from JSON lines {\"at_seconds\", "
                  "\"prompt_tokens\", \"output_tokens\"} instead",
                  &options.trace_file);
  flags.AddInt32("concurrency",
                 "a closed loop of so many requests instead; 0: open", 0,
                 1 << 16, &options.concurrency);
  flags.AddInt("num_requests", "requests of a run; 0: what the duration holds",
               0, kMaxInt32, &options.num_requests);
  flags.AddDuration("duration",
                    "how long requests are sent; 0: until num_requests",
                    &options.duration);
  flags.AddDuration(
      "warm_up",
      "begin of the duration, whose requests' latencies do not count",
      &options.warm_up);
  flags.AddBool("cancel_at_end", "cancel what still runs after the duration",
                &options.cancel_at_end);
  flags.AddDuration(
      "give_up",
      "so long after the last was sent, what has not ended is an error",
      &options.give_up);
}

void AddRequestFlags(FlagSet& flags, ServeOptions& options) {
  WorkloadOptions& workload = options.workload;
  flags.Add("prompt", "DIST",
            "prompt tokens: fixed:N, uniform:MIN:MAX, "
            "lognormal:MEDIAN:SIGMA:MAX, trace (fixed:128)",
            LengthSetter(&workload.prompt));
  flags.Add("output", "DIST", "answer tokens, likewise (fixed:32)",
            LengthSetter(&workload.output));
  flags.AddInt32("prefix_tokens", "shared tokens that prompts begin with", 0,
                 LengthDistribution::kMaxTokens, &workload.prefix_tokens);
  flags.AddInt32("num_prefixes", "how many different ones", 1, 1 << 20,
                 &workload.num_prefixes);
  flags.Add("priorities", "MIN:MAX", "of requests, drawn evenly (0:0)",
            PrioritiesSetter(&workload));
  flags.Add("paths", "PATH,...",
            "of two_stage, full and pruned, drawn evenly (two_stage)",
            PathsSetter(&workload.paths));
  flags.AddInt32("n", "answers per request", 1, 1 << 16, &options.n);
  flags.Add("temperature", "F", "0: greedy (1)",
            NumberSetter(0, 1e6, &options.temperature));
  flags.AddBool("ignore_eos", "answers are as long as drawn (true)",
                &options.ignore_eos);
  flags.AddInt32("logprobs", "best ones asked for with each token; -1: none",
                 -1, 20, &options.logprobs);
  flags.AddInt32("vocab", "prompt ids are below; 0: the model's vocabulary", 0,
                 kMaxInt32, &options.vocab_size);
  flags.Add("seed", "N", "draws the same requests again (1)",
            [&workload](absl::string_view text) {
              return absl::SimpleAtoi(text, &workload.seed)
                         ? absl::OkStatus()
                         : Invalid("must be a whole number, at least 0");
            });
}

void AddAbuseFlags(FlagSet& flags, ServeOptions& options) {
  WorkloadOptions& workload = options.workload;
  const auto fraction = [&](const char* name, const char* help,
                            double* target) {
    flags.Add(name, "F", absl::StrCat(help, " (0)"),
              NumberSetter(0, 1, target));
  };
  fraction("cancel_fraction", "share of requests that are cancelled",
           &workload.cancel_fraction);
  flags.Add(
      "cancel_within", "DURATION",
      "a cancel comes within it, or after some tokens, whichever is first; "
      "absent: after some tokens",
      SecondsSetter(&workload.cancel_within_seconds));
  fraction("slow_fraction", "share of readers that wait before each read",
           &workload.slow_fraction);
  flags.AddDuration("slow_delay", "wait of a slow reader before each read",
                    &options.slow_delay);
  fraction("dead_fraction", "share of readers that never read",
           &workload.dead_fraction);
  flags.AddDuration("dead_hold", "after it a dead reader leaves",
                    &options.dead_hold);
  fraction("deadline_fraction", "share of requests with a tiny deadline",
           &workload.deadline_fraction);
  flags.Add("tiny_deadline", "DURATION", "longest tiny deadline (20ms)",
            SecondsSetter(&workload.tiny_deadline_seconds));
  flags.Add("timeout", "DURATION",
            "deadline of all other requests; absent: none",
            SecondsSetter(&workload.timeout_seconds));
}

void AddOutputFlags(FlagSet& flags, ServeOptions& options) {
  flags.Add("slo_ttft", "DURATION", "goodput's bound of TTFT",
            SecondsSetter(&options.objectives.ttft));
  flags.Add("slo_itl", "DURATION",
            "goodput's bound of each gap between messages",
            SecondsSetter(&options.objectives.itl));
  flags.Add("slo_tpot", "DURATION", "goodput's bound of TPOT",
            SecondsSetter(&options.objectives.tpot));
  flags.Add("slo_e2e", "DURATION", "goodput's bound of the whole request",
            SecondsSetter(&options.objectives.e2e));
  flags.AddInt32("channels", "connections that normal readers share", 1, 1024,
                 &options.num_channels);
  flags.AddDuration("connect_timeout", "wait for the server to be there",
                    &options.connect_timeout);
  flags.AddString("json", "FILE", "results for machines", &options.json_file);
  flags.AddString("plot", "FILE", "SVG of latency against rate",
                  &options.plot_file);
  flags.AddString("records", "FILE", "JSON lines, one per request",
                  &options.records_file);
  flags.AddBool("token_ids", "the records have the answers' tokens",
                &options.token_ids);
}

void AddFlags(FlagSet& flags, ServeOptions& options) {
  AddArrivalFlags(flags, options);
  AddRequestFlags(flags, options);
  AddAbuseFlags(flags, options);
  AddOutputFlags(flags, options);
}

absl::Status Check(const ServeOptions& options) {
  const bool open = options.concurrency == 0;
  if (options.num_requests == 0 && options.duration == absl::ZeroDuration() &&
      options.trace_file.empty()) {
    return Invalid("--num_requests or --duration: one is needed");
  }
  if (!open && (options.rates.size() > 1 || !options.trace_file.empty())) {
    return Invalid("--concurrency: not with several rates or a trace");
  }
  const bool all_at_once =
      std::any_of(options.rates.begin(), options.rates.end(),
                  [](double rate) { return std::isinf(rate); });
  if (open && all_at_once && options.num_requests == 0) {
    return Invalid("--rate: inf needs --num_requests");
  }
  if (options.duration > absl::ZeroDuration() &&
      options.warm_up >= options.duration) {
    return Invalid("--warm_up: must be shorter than --duration");
  }
  return absl::OkStatus();
}

}  // namespace

std::string ServeHelp() {
  ServeOptions defaults;
  FlagSet flags;
  AddFlags(flags, defaults);
  return absl::StrCat(
      "overfill-bench serve [flags]\n\n"
      "Loads a server and says how it did. Exit codes: 0; 1: no server, or a "
      "run in\nwhich a request did not end as the API promises; 2: bad "
      "flags.\n\n",
      flags.Help(), "  --help\n      this text\n");
}

absl::StatusOr<ServeOptions> ParseServeOptions(
    const std::vector<std::string>& args) {
  ServeOptions options;
  for (const std::string& arg : args) {
    if (arg == "--help" || arg == "-h") {
      options.help = true;
      return options;
    }
  }
  FlagSet flags;
  AddFlags(flags, options);
  RETURN_IF_ERROR(flags.Parse(args, nullptr, nullptr));
  RETURN_IF_ERROR(Check(options));
  if (!options.trace_file.empty()) {
    ASSIGN_OR_RETURN(const std::string text,
                     ReadFile(options.trace_file, kMaxTraceBytes));
    ASSIGN_OR_RETURN(options.workload.trace,
                     ParseTrace(text, options.trace_file));
  }
  // What a workload refuses is the flags' fault.
  RETURN_IF_ERROR(Workload::Make(options.workload).status());
  return options;
}

}  // namespace overfill
