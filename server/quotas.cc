#include "server/quotas.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "server/errors.h"

namespace overfill {
namespace {

constexpr double kMinuteSeconds = 60;
constexpr double kLongestSeconds = 3600;  // of a wait that a client is told

double Seconds(std::chrono::nanoseconds duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

QuotaRefusal TenantUse::Begin(const TenantLimits& limits, SteadyTime now) {
  MutexLock lock(&mu_);
  if (limits.max_requests_in_flight > 0 &&
      in_flight_ >= limits.max_requests_in_flight) {
    return {QuotaError("too many of your requests are in flight",
                       "requests_in_flight"),
            "tenant_in_flight"};
  }
  Refill(limits, now);
  if (limits.max_tokens_per_minute > 0 && tokens_left_ <= 0) {
    // Until there is one token.
    const double seconds = (1 - tokens_left_) * kMinuteSeconds /
                           static_cast<double>(limits.max_tokens_per_minute);
    return {QuotaError("your tokens of this minute are used up",
                       "tokens_per_minute"),
            "tenant_rate",
            std::chrono::nanoseconds(static_cast<int64_t>(
                std::min(seconds, kLongestSeconds) * 1e9))};
  }
  ++in_flight_;
  return {};
}

void TenantUse::Refill(const TenantLimits& limits, SteadyTime now) {
  const auto full = static_cast<double>(limits.max_tokens_per_minute);
  if (!is_filled_) tokens_left_ = full;
  const double seconds =
      is_filled_ ? Seconds(std::max(now, filled_at_) - filled_at_) : 0;
  // A limit that was lowered cuts what is left.
  tokens_left_ = std::min(full, tokens_left_ + full * seconds / kMinuteSeconds);
  filled_at_ = is_filled_ ? std::max(now, filled_at_) : now;
  is_filled_ = full > 0;
}

void TenantUse::End() {
  MutexLock lock(&mu_);
  OVERFILL_CHECK(in_flight_ > 0) << "an end without a begin";
  --in_flight_;
}

void TenantUse::Charge(int64_t tokens) {
  MutexLock lock(&mu_);
  if (is_filled_) tokens_left_ -= static_cast<double>(tokens);
}

int32_t TenantUse::in_flight() const {
  MutexLock lock(&mu_);
  return in_flight_;
}

std::shared_ptr<QuotaPlace> Quotas::Begin(const Tenant& tenant, SteadyTime now,
                                          QuotaRefusal* refusal) {
  std::shared_ptr<TenantUse> use;
  {
    MutexLock lock(&mu_);
    std::shared_ptr<TenantUse>& known = uses_[tenant.name];
    if (known == nullptr) known = std::make_shared<TenantUse>();
    use = known;
  }
  *refusal = use->Begin(tenant.limits, now);
  if (!refusal->status.ok()) return nullptr;
  return std::make_shared<QuotaPlace>(std::move(use));
}

}  // namespace overfill
