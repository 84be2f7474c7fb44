// What the client saw of each request. Times are seconds on its steady clock.
#ifndef OVERFILL_BENCHMARKS_SERVING_RECORD_H_
#define OVERFILL_BENCHMARKS_SERVING_RECORD_H_

#include <cstdint>
#include <vector>

#include "benchmarks/serving/workload.h"

namespace overfill {

// The numbers of gRPC's status codes.
constexpr int kStatusOk = 0;
constexpr int kStatusCancelled = 1;
constexpr int kStatusDeadlineExceeded = 4;
constexpr int kStatusResourceExhausted = 8;
constexpr int kNumStatusCodes = 17;

// As grpc.io names it; "UNKNOWN" for what is no code.
const char* StatusName(int code);

// Tokens that came in one message. An empty delta is none.
struct TokenArrival {
  double at;
  int32_t num_tokens;
};

// One of the n answers of a request.
struct SampleRecord {
  std::vector<TokenArrival> arrivals;
  std::vector<int32_t> token_ids;  // if they were to be kept
  int32_t num_completions = 0;
  bool delta_after_completion = false;
  int64_t usage_completion_tokens = 0;  // as the completion says

  int64_t num_tokens() const {
    int64_t sum = 0;
    for (const TokenArrival& arrival : arrivals) sum += arrival.num_tokens;
    return sum;
  }
};

struct RequestRecord {
  PlannedRequest plan;
  double scheduled = 0;  // when it was due; latencies count from here
  double sent = 0;
  double ended = 0;  // its status came
  int status_code = kStatusOk;
  bool cancelled_by_client = false;
  // The status came only after the run had waited in vain and given up.
  bool unfinished = false;
  bool unknown_index = false;  // an event of an answer that is none of the n
  int64_t usage_cached_prompt_tokens = 0;
  int64_t usage_prompt_tokens = 0;
  std::vector<SampleRecord> samples;
};

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_RECORD_H_
