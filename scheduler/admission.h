// Who may join the queue.
#ifndef OVERFILL_SCHEDULER_ADMISSION_H_
#define OVERFILL_SCHEDULER_ADMISSION_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "scheduler/drain_rate.h"
#include "scheduler/kv_ledger.h"
#include "scheduler/request.h"

namespace overfill {

struct AdmissionLimits {
  int32_t vocab_size = 0;
  int32_t max_sequence_tokens = 0;
  int32_t max_samples = 1;
  // Of what is queued, in all.
  int32_t max_queued_requests = 0;
  int64_t max_queued_tokens = 0;
  int64_t max_queued_bytes = std::numeric_limits<int64_t>::max();
  // Of one tenant; 0: no bound of its own.
  int32_t max_tenant_queued_requests = 0;
  int64_t max_tenant_queued_tokens = 0;
  int64_t max_tenant_queued_bytes = 0;
};

// A refused request: the status for the client, a short constant reason for
// the metrics, and where waiting helps, after how long to try again; else 0.
struct Refusal {
  absl::Status status;
  const char* reason = "";
  std::chrono::nanoseconds retry_after{0};
};

// What the request itself gets wrong, whatever else is there.
//   invalid    INVALID_ARGUMENT: breaks what request.h says, a token id is
//              outside the vocabulary, prompt + max_tokens pass the limit
//   too_large  INVALID_ARGUMENT: more KV blocks than the store has; waiting
//              would not help
// An OK status: nothing.
Refusal CheckRequest(const Request& request, const AdmissionLimits& limits,
                     const KvStores& stores);

// The queue's bounds, the ids in use, and how fast the queue drains. Not
// thread-safe. No call's `now` should be before an earlier one's.
class Admission {
 public:
  // What retry_after is kept within.
  static constexpr std::chrono::nanoseconds kShortestRetry =
      std::chrono::milliseconds(100);
  static constexpr std::chrono::nanoseconds kLongestRetry =
      std::chrono::seconds(60);

  explicit Admission(const AdmissionLimits& limits) : limits_(limits) {}

  const AdmissionLimits& limits() const { return limits_; }
  int64_t queued_tokens() const { return all_.tokens; }
  const DrainRate& drain_rate() const { return drain_rate_; }

  // Whether a prompt of so many bytes has a chance: before it is parsed and
  // tokenized.
  //   draining             UNAVAILABLE
  //   deadline             DEADLINE_EXCEEDED: it is past
  // and RESOURCE_EXHAUSTED, for what is queued of the tenant, then in all:
  //   tenant_queue_full, queue_full        too many requests
  //   tenant_queued_tokens, queued_tokens  no room for one more prompt token
  //   tenant_queued_bytes, queued_bytes    too many bytes of prompts
  // Where nothing is queued, of the tenant or in all, any one request has room
  // by tokens and bytes.
  Refusal Precheck(absl::string_view tenant, int64_t prompt_bytes,
                   SteadyTime deadline, SteadyTime now) const;

  // All of Precheck, now with all of the prompt's tokens, and
  //   duplicate             ALREADY_EXISTS: the tenant has a live request of
  //                         this id; empty ids are never duplicates
  //   deadline_unreachable  RESOURCE_EXHAUSTED: at the rate at which the queue
  //                         has been draining, what is certainly ahead of it
  //                         takes well past its deadline. Never where that
  //                         rate is not known.
  Refusal Check(const Request& request, SteadyTime now) const;

  // When there will be room for about one more request. Within the bounds
  // above.
  std::chrono::nanoseconds RetryAfter(SteadyTime now) const;

  void StopAdmission() { is_stopped_ = true; }
  // In the order of a request's life. Ended says whether it was still queued.
  void Enqueued(const Request& request, SteadyTime now);
  void Started(const Request& request, SteadyTime now);
  void Ended(const Request& request, bool was_queued, SteadyTime now);

 private:
  // Of queued requests.
  struct Amount {
    int64_t requests = 0;
    int64_t tokens = 0;
    int64_t bytes = 0;
    void operator+=(const Amount& more);
    void operator-=(const Amount& less);
  };
  struct Room;
  using ByTenant = std::map<std::string, Amount, std::less<>>;

  static Amount AmountOf(const Request& request);
  Refusal CheckOpen(SteadyTime deadline, SteadyTime now) const;
  Refusal CheckBounds(absl::string_view tenant, const Amount& more,
                      SteadyTime now) const;
  Refusal CheckDeadline(const Request& request, SteadyTime now) const;
  int64_t TokensAhead(const Request& request) const;
  std::chrono::nanoseconds RetryAfter(double tokens, SteadyTime now) const;
  void LeaveQueue(const Request& request, SteadyTime now);

  const AdmissionLimits limits_;
  bool is_stopped_ = false;
  Amount all_;
  ByTenant tenants_;  // those with something queued
  std::map<int32_t, ByTenant, std::greater<>> levels_;  // by priority
  DrainRate drain_rate_;
  std::set<std::pair<std::string, std::string>> live_;  // (tenant, id)
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_ADMISSION_H_
