// The requests of a run, all drawn before the clock plays a part.
#ifndef OVERFILL_BENCHMARKS_SERVING_WORKLOAD_H_
#define OVERFILL_BENCHMARKS_SERVING_WORKLOAD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "benchmarks/serving/distributions.h"
#include "benchmarks/serving/random.h"

namespace overfill {

// One line of a trace.
struct TraceLine {
  double at_seconds;
  int32_t num_prompt_tokens;
  int32_t num_output_tokens;
};

// JSON lines {"at_seconds": 0.5, "prompt_tokens": 100, "output_tokens": 20},
// in the order of time. INVALID_ARGUMENT names the line.
absl::StatusOr<std::vector<TraceLine>> ParseTrace(absl::string_view text,
                                                  absl::string_view origin);

// How a client reads its stream. A dead reader never does.
enum class ReaderKind { kNormal, kSlow, kDead };

const char* ReaderKindName(ReaderKind kind);

struct WorkloadOptions {
  uint64_t seed = 1;
  double rate = 1;        // requests per second; infinite: all at once
  double burstiness = 1;  // of the gaps; 1: Poisson
  // Not empty: arrivals are its lines', and "trace" lengths.
  std::vector<TraceLine> trace;
  LengthDistribution prompt = LengthDistribution::Fixed(128);
  LengthDistribution output = LengthDistribution::Fixed(32);
  // Each prompt begins with one of so many prefixes of so many tokens (as far
  // as the prompt is long).
  int32_t num_prefixes = 1;
  int32_t prefix_tokens = 0;
  // Disjoint shares of the requests, at most 1 together.
  double cancel_fraction = 0;
  double slow_fraction = 0;
  double dead_fraction = 0;
  double deadline_fraction = 0;
  // A cancel comes after a random number of tokens or, where this is above 0,
  // after a random part of so many seconds, whichever is first.
  double cancel_within_seconds = 0;
  double tiny_deadline_seconds = 0.02;  // at most; each is a part of it
  double timeout_seconds = 0;           // of all others; 0: none
  int32_t min_priority = 0;
  int32_t max_priority = 0;
  // Chosen from at random, one entry as likely as another.
  std::vector<std::string> paths = {"two_stage"};
};

struct PlannedRequest {
  int64_t index = 0;
  double at_seconds = 0;  // since the run began; an open loop's
  int32_t num_prompt_tokens = 0;
  int32_t prefix = -1;  // which; -1: none
  uint64_t prompt_seed = 0;
  int32_t max_tokens = 0;
  uint64_t sampling_seed = 0;
  ReaderKind reader = ReaderKind::kNormal;
  std::optional<int32_t> cancel_after_tokens;
  std::optional<double> cancel_after_seconds;  // since it was sent
  double timeout_seconds = 0;                  // 0: none
  bool tiny_deadline = false;
  int32_t priority = 0;
  std::string path;
};

// Draws requests one after the other. Request i is the same whatever the rate
// and the arrivals, its time apart.
class Workload {
 public:
  // INVALID_ARGUMENT: fractions that do not add up, or lengths from a trace
  // that is not there.
  static absl::StatusOr<Workload> Make(WorkloadOptions options);

  // A trace ends; nothing else does.
  bool AtEnd() const {
    return !options_.trace.empty() &&
           next_index_ >= static_cast<int64_t>(options_.trace.size());
  }
  PlannedRequest Next();

  // Ids below `vocab_size`, which is at least 1.
  std::vector<int32_t> PromptTokens(const PlannedRequest& request,
                                    int32_t vocab_size) const;

 private:
  explicit Workload(WorkloadOptions options);

  void DrawFate(Random& random, PlannedRequest& request) const;

  WorkloadOptions options_;
  ArrivalProcess arrivals_;
  Random gaps_;
  double now_seconds_ = 0;
  int64_t next_index_ = 0;
};

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_WORKLOAD_H_
