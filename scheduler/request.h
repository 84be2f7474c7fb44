// A request as the scheduler knows it: checked, tokenized, immutable.
#ifndef OVERFILL_SCHEDULER_REQUEST_H_
#define OVERFILL_SCHEDULER_REQUEST_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "engine/sampling.h"

namespace overfill {

using SteadyTime = std::chrono::steady_clock::time_point;

enum class DecodePath { kTwoStage, kFull, kPruned };
inline constexpr int kNumDecodePaths = 3;
const char* DecodePathName(DecodePath path);  // "two_stage", "full", "pruned"

// When an answer ends.
struct StopRules {
  int32_t max_tokens = 0;         // >= 1
  std::vector<std::string> stop;  // not empty strings
  std::vector<int32_t> stop_token_ids;
  std::vector<int32_t> eos_ids;  // empty under ignore_eos
  bool include_stop = false;
};

struct Request {
  std::string request_id;
  std::string tenant;               // "" where there is no authentication
  std::vector<int32_t> prompt_ids;  // at least one
  int64_t prompt_bytes = 0;         // as it came
  SamplingParams sampling;
  StopRules stop_rules;
  DecodePath path = DecodePath::kTwoStage;
  int32_t n = 1;         // answers to draw from the one prompt, >= 1
  int32_t priority = 0;  // higher goes first
  SteadyTime arrival;
  SteadyTime deadline = SteadyTime::max();
};

enum class FinishReason { kStop, kLength, kEos };

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t cached_prompt_tokens = 0;
  int32_t completion_tokens = 0;
};

// Seconds on the steady clock; see Timings in the public API.
struct Timings {
  double queue_seconds = 0;
  double prefill_seconds = 0;
  double migration_seconds = 0;
  double decode_seconds = 0;
  double ttft_seconds = 0;
};

struct TokenLogprobs {
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // best first
};

// Text and tokens since the last delta of this sample.
struct Delta {
  int32_t index = 0;  // of the sample, 0..n - 1
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprobs> logprobs;  // parallel to token_ids, or empty
};

// The end of one sample's answer, once for each that is complete.
struct Completion {
  int32_t index = 0;
  FinishReason finish_reason = FinishReason::kLength;
  std::variant<std::monostate, std::string, int32_t> matched_stop;
  uint64_t seed = 0;
  Usage usage;  // this sample's
  Timings timings;
};

// The one last event of a request. All but the status is set on errors too,
// and is the whole request's: the tokens of all samples; the reason and the
// times of the sample that ended last.
struct Terminal {
  absl::Status status;  // OK: every sample is complete
  FinishReason finish_reason = FinishReason::kLength;
  uint64_t seed = 0;
  Usage usage;
  Timings timings;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_REQUEST_H_
