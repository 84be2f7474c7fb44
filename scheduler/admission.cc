#include "scheduler/admission.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "scheduler/route.h"

namespace overfill {
namespace {

using std::chrono::nanoseconds;

// An estimate is well past a deadline at so many times what is left.
constexpr double kDeadlineMargin = 1.5;

struct Words {
  const char* reason;
  const char* message;
};
// By requests, tokens, bytes.
using BoundWords = std::array<Words, 3>;
constexpr BoundWords kOfAll = {{
    {"queue_full", "too many requests are queued"},
    {"queued_tokens", "too many prompt tokens are queued"},
    {"queued_bytes", "too many bytes of prompts are queued"},
}};
constexpr BoundWords kOfTenant = {{
    {"tenant_queue_full", "too many of your requests are queued"},
    {"tenant_queued_tokens", "too many of your prompt tokens are queued"},
    {"tenant_queued_bytes", "too many bytes of your prompts are queued"},
}};

Refusal Invalid(absl::string_view message) {
  return {absl::InvalidArgumentError(message), "invalid", {}};
}

int64_t OrNoBound(int64_t bound) {
  return bound > 0 ? bound : std::numeric_limits<int64_t>::max();
}

}  // namespace

Refusal CheckRequest(const Request& request, const AdmissionLimits& limits,
                     const KvStores& stores) {
  const auto prompt_tokens = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t max_tokens = request.stop_rules.max_tokens;
  if (prompt_tokens == 0) return Invalid("the prompt is empty");
  if (max_tokens < 1) return Invalid("max_tokens must be at least 1");
  if (prompt_tokens > limits.max_sequence_tokens - max_tokens) {
    return Invalid(absl::StrCat(
        "the prompt's ", prompt_tokens, " tokens and max_tokens ", max_tokens,
        " pass the limit of ", limits.max_sequence_tokens));
  }
  if (request.n < 1 || request.n > limits.max_samples) {
    return Invalid(absl::StrCat("n must be between 1 and ", limits.max_samples,
                                ", not ", request.n));
  }
  for (int32_t id : request.prompt_ids) {
    if (id >= 0 && id < limits.vocab_size) continue;
    return Invalid(absl::StrCat("token id ", id, " is outside the vocabulary"));
  }
  for (const std::string& stop : request.stop_rules.stop) {
    if (stop.empty()) return Invalid("a stop string is empty");
  }
  const auto blocks = stores.WorstCase(MakeRoute(request.path), prompt_tokens,
                                       max_tokens, request.n);
  for (int store = 0; store < 2; ++store) {
    const int32_t total = stores.Total()[store];
    if (blocks[store] <= total) continue;
    return {absl::InvalidArgumentError(
                absl::StrCat("the prompt and max_tokens need ", blocks[store],
                             " KV blocks, and the server has ", total)),
            "too_large",
            {}};
  }
  return {};
}

// What may be queued, what is, and what is to come.
struct Admission::Room {
  // The bound that `more` passes. Tokens and bytes have none where nothing is
  // queued; where something is, it may be more than the bound already.
  const Words* Passed(const BoundWords& words) const {
    if (more.requests > bounds.requests - queued.requests) return &words[0];
    if (queued.requests == 0) return nullptr;
    if (more.tokens > bounds.tokens - queued.tokens) return &words[1];
    if (more.bytes > bounds.bytes - queued.bytes) return &words[2];
    return nullptr;
  }

  // How many of the queued tokens must leave until there is room; at least one
  // request's.
  double TokensInTheWay() const {
    if (queued.requests == 0) return 0;
    const auto tokens = static_cast<double>(queued.tokens);
    const double tokens_a_byte =
        tokens / std::max(static_cast<double>(queued.bytes), 1.0);
    const auto excess_bytes = static_cast<double>(
        more.bytes - std::min(more.bytes, bounds.bytes - queued.bytes));
    const auto excess_tokens = static_cast<double>(
        more.tokens - std::min(more.tokens, bounds.tokens - queued.tokens));
    return std::min(tokens,
                    std::max({tokens / static_cast<double>(queued.requests),
                              excess_tokens, excess_bytes * tokens_a_byte}));
  }

  Amount bounds;
  Amount queued;
  Amount more;
};

Refusal Admission::CheckOpen(SteadyTime deadline, SteadyTime now) const {
  if (is_stopped_) {
    return {
        absl::UnavailableError("the server is shutting down"), "draining", {}};
  }
  if (deadline <= now) {
    return {
        absl::DeadlineExceededError("the deadline is past"), "deadline", {}};
  }
  return {};
}

Refusal Admission::Precheck(absl::string_view tenant, int64_t prompt_bytes,
                            SteadyTime deadline, SteadyTime now) const {
  Refusal refusal = CheckOpen(deadline, now);
  if (!refusal.status.ok()) return refusal;
  // Whatever it is, it has a token.
  const int64_t bytes = std::max<int64_t>(prompt_bytes, 0);
  return CheckBounds(tenant, {.requests = 1, .tokens = 1, .bytes = bytes}, now);
}

Refusal Admission::Check(const Request& request, SteadyTime now) const {
  Refusal refusal = CheckOpen(request.deadline, now);
  if (!refusal.status.ok()) return refusal;
  if (live_.contains({request.tenant, request.request_id})) {
    return {absl::AlreadyExistsError("a live request has this request_id"),
            "duplicate",
            {}};
  }
  refusal = CheckBounds(request.tenant, AmountOf(request), now);
  if (!refusal.status.ok()) return refusal;
  return CheckDeadline(request, now);
}

Admission::Amount Admission::AmountOf(const Request& request) {
  return {.requests = 1,
          .tokens = static_cast<int64_t>(request.prompt_ids.size()),
          .bytes = std::max<int64_t>(request.prompt_bytes, 0)};
}

Refusal Admission::CheckBounds(absl::string_view tenant, const Amount& more,
                               SteadyTime now) const {
  const auto own = tenants_.find(tenant);
  const Room own_room = {
      .bounds = {.requests = OrNoBound(limits_.max_tenant_queued_requests),
                 .tokens = OrNoBound(limits_.max_tenant_queued_tokens),
                 .bytes = OrNoBound(limits_.max_tenant_queued_bytes)},
      .queued = own == tenants_.end() ? Amount{} : own->second,
      .more = more};
  if (const Words* passed = own_room.Passed(kOfTenant)) {
    // The tenants with something queued take turns.
    const double tokens =
        own_room.TokensInTheWay() * static_cast<double>(tenants_.size());
    return {absl::ResourceExhaustedError(passed->message), passed->reason,
            RetryAfter(tokens, now)};
  }
  const Room room = {.bounds = {.requests = limits_.max_queued_requests,
                                .tokens = limits_.max_queued_tokens,
                                .bytes = limits_.max_queued_bytes},
                     .queued = all_,
                     .more = more};
  if (const Words* passed = room.Passed(kOfAll)) {
    return {absl::ResourceExhaustedError(passed->message), passed->reason,
            RetryAfter(room.TokensInTheWay(), now)};
  }
  return {};
}

Refusal Admission::CheckDeadline(const Request& request, SteadyTime now) const {
  if (request.deadline == SteadyTime::max() || !drain_rate_.IsMeasured(now)) {
    return {};
  }
  const std::chrono::duration<double> left = request.deadline - now;
  const std::chrono::duration<double> wait =
      drain_rate_.TimeToDrain(TokensAhead(request), now);
  if (wait <= kDeadlineMargin * left) return {};
  const double rate = drain_rate_.TokensPerSecond(now);
  return {absl::ResourceExhaustedError(
              "the queue is too long for the request to start in time"),
          "deadline_unreachable",
          RetryAfter((wait - kDeadlineMargin * left).count() * rate, now)};
}

int64_t Admission::TokensAhead(const Request& request) const {
  int64_t ahead = 0;
  for (const auto& [priority, tenants] : levels_) {
    if (priority < request.priority) break;
    const auto own = tenants.find(request.tenant);
    const int64_t own_tokens = own == tenants.end() ? 0 : own->second.tokens;
    for (const auto& [tenant, queued] : tenants) {
      // Tenants of one priority take turns: until its own earlier ones have
      // started, others start about as much, and no more than they have.
      const bool goes_first = priority > request.priority;
      ahead += goes_first ? queued.tokens : std::min(queued.tokens, own_tokens);
    }
  }
  return ahead;
}

nanoseconds Admission::RetryAfter(SteadyTime now) const {
  const Room room = {.bounds = all_, .queued = all_, .more = {}};
  return RetryAfter(room.TokensInTheWay(), now);
}

nanoseconds Admission::RetryAfter(double tokens, SteadyTime now) const {
  constexpr double kMost = 1e15;
  const auto whole = static_cast<int64_t>(std::min(tokens, kMost));
  return std::clamp(drain_rate_.TimeToDrain(whole, now), kShortestRetry,
                    kLongestRetry);
}

void Admission::Enqueued(const Request& request, SteadyTime now) {
  const Amount amount = AmountOf(request);
  all_ += amount;
  tenants_[request.tenant] += amount;
  levels_[request.priority][request.tenant] += amount;
  drain_rate_.SetWaiting(true, now);
  if (request.request_id.empty()) return;
  const bool is_new = live_.insert({request.tenant, request.request_id}).second;
  OVERFILL_CHECK(is_new) << "a duplicate was admitted";
}

void Admission::Started(const Request& request, SteadyTime now) {
  drain_rate_.Started(AmountOf(request).tokens, now);
  LeaveQueue(request, now);
}

void Admission::Ended(const Request& request, bool was_queued, SteadyTime now) {
  if (was_queued) LeaveQueue(request, now);
  live_.erase({request.tenant, request.request_id});
}

void Admission::LeaveQueue(const Request& request, SteadyTime now) {
  const Amount amount = AmountOf(request);
  const auto leave = [&](ByTenant& tenants) {
    const auto it = tenants.find(request.tenant);
    OVERFILL_CHECK(it != tenants.end()) << "it was not queued";
    it->second -= amount;
    if (it->second.requests == 0) tenants.erase(it);
  };
  leave(tenants_);
  const auto level = levels_.find(request.priority);
  OVERFILL_CHECK(level != levels_.end());
  leave(level->second);
  if (level->second.empty()) levels_.erase(level);
  all_ -= amount;
  drain_rate_.SetWaiting(all_.requests > 0, now);
}

void Admission::Amount::operator+=(const Amount& more) {
  requests += more.requests;
  tokens += more.tokens;
  bytes += more.bytes;
}

void Admission::Amount::operator-=(const Amount& less) {
  requests -= less.requests;
  tokens -= less.tokens;
  bytes -= less.bytes;
  OVERFILL_CHECK(requests >= 0 && tokens >= 0 && bytes >= 0);
}

}  // namespace overfill
