// What each tenant uses of its limits.
#ifndef OVERFILL_SERVER_QUOTAS_H_
#define OVERFILL_SERVER_QUOTAS_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "base/mutex.h"
#include "scheduler/request.h"
#include "server/tenants.h"

namespace overfill {

// A request that was not admitted: the status for the client with a
// google.rpc.QuotaFailure, a short constant reason for the metrics, and after
// how long to try again; 0 where that is not known here.
struct QuotaRefusal {
  absl::Status status;
  const char* reason = "";
  std::chrono::nanoseconds retry_after{0};
};

// One tenant's use. Thread-safe. It knows no clock.
//
// Tokens are a bucket that a minute fills: it holds max_tokens_per_minute at
// most, prompts and answers are taken out as they come, and where it is empty
// no request begins. What runs goes on, so that the bucket may be owed some:
// at most what the requests in flight still generate.
class TenantUse {
 public:
  // RESOURCE_EXHAUSTED: tenant_in_flight, tenant_rate.
  QuotaRefusal Begin(const TenantLimits& limits, SteadyTime now);
  // After a Begin that was not refused.
  void End();
  // Tokens of a prompt that was admitted, or of an answer.
  void Charge(int64_t tokens);
  int32_t in_flight() const;

 private:
  void Refill(const TenantLimits& limits, SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable Mutex mu_;
  int32_t in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  bool is_filled_ ABSL_GUARDED_BY(mu_) = false;
  double tokens_left_ ABSL_GUARDED_BY(mu_) = 0;
  SteadyTime filled_at_ ABSL_GUARDED_BY(mu_);
};

// A request's place among its tenant's, shared by what works for it; given back
// with the last of them.
class QuotaPlace {
 public:
  explicit QuotaPlace(std::shared_ptr<TenantUse> use) : use_(std::move(use)) {}
  ~QuotaPlace() { use_->End(); }
  QuotaPlace(const QuotaPlace&) = delete;

  void Charge(int64_t tokens) { use_->Charge(tokens); }

 private:
  const std::shared_ptr<TenantUse> use_;
};

// The use of all tenants, by name: it outlives a change of their limits.
// Thread-safe.
class Quotas {
 public:
  // Null where it is refused.
  std::shared_ptr<QuotaPlace> Begin(const Tenant& tenant, SteadyTime now,
                                    QuotaRefusal* refusal);

 private:
  Mutex mu_;
  absl::flat_hash_map<std::string, std::shared_ptr<TenantUse>> uses_
      ABSL_GUARDED_BY(mu_);
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_QUOTAS_H_
