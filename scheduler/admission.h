// Who may join the queue.
#ifndef OVERFILL_SCHEDULER_ADMISSION_H_
#define OVERFILL_SCHEDULER_ADMISSION_H_

#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "scheduler/kv_ledger.h"
#include "scheduler/request.h"

namespace overfill {

struct AdmissionLimits {
  int32_t vocab_size = 0;
  int32_t max_sequence_tokens = 0;
  int32_t max_queued_requests = 0;
  int64_t max_queued_tokens = 0;
};

// A refused request: the status for the client, and a short constant reason
// for the metrics.
struct Refusal {
  absl::Status status;
  const char* reason = "";
};

// What the request itself gets wrong, whatever else is there.
//   invalid    INVALID_ARGUMENT: breaks what request.h says, a token id is
//              outside the vocabulary, prompt + max_tokens pass the limit
//   too_large  INVALID_ARGUMENT: more KV blocks than the store has; waiting
//              would not help
// An OK status: nothing.
Refusal CheckRequest(const Request& request, const AdmissionLimits& limits,
                     const KvStores& stores);

// The queue's bounds, and the ids in use. Not thread-safe.
class Admission {
 public:
  explicit Admission(const AdmissionLimits& limits) : limits_(limits) {}

  const AdmissionLimits& limits() const { return limits_; }
  int64_t queued_tokens() const { return queued_tokens_; }

  //   draining       UNAVAILABLE
  //   deadline       DEADLINE_EXCEEDED: it is past
  //   duplicate      ALREADY_EXISTS: the tenant has a live request of this id;
  //                  empty ids are never duplicates
  //   queue_full     RESOURCE_EXHAUSTED: too many requests are queued
  //   queued_tokens  RESOURCE_EXHAUSTED: too many prompt tokens are queued; an
  //                  empty queue takes any one request
  Refusal Check(const Request& request, SteadyTime now) const;

  void StopAdmission() { is_stopped_ = true; }
  // In the order of a request's life. Ended says whether it was still queued.
  void Enqueued(const Request& request);
  void Started(const Request& request);
  void Ended(const Request& request, bool was_queued);

 private:
  const AdmissionLimits limits_;
  bool is_stopped_ = false;
  int32_t queued_requests_ = 0;
  int64_t queued_tokens_ = 0;
  std::set<std::pair<std::string, std::string>> live_;  // (tenant, id)
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_ADMISSION_H_
