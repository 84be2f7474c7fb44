#include "scheduler/admission.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "scheduler/route.h"

namespace overfill {
namespace {

Refusal Invalid(absl::string_view message) {
  return {absl::InvalidArgumentError(message), "invalid"};
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
  for (int32_t id : request.prompt_ids) {
    if (id >= 0 && id < limits.vocab_size) continue;
    return Invalid(absl::StrCat("token id ", id, " is outside the vocabulary"));
  }
  for (const std::string& stop : request.stop_rules.stop) {
    if (stop.empty()) return Invalid("a stop string is empty");
  }
  const auto blocks =
      stores.WorstCase(MakeRoute(request.path), prompt_tokens, max_tokens);
  for (int store = 0; store < 2; ++store) {
    const int32_t total = stores.Total()[store];
    if (blocks[store] <= total) continue;
    return {absl::InvalidArgumentError(
                absl::StrCat("the prompt and max_tokens need ", blocks[store],
                             " KV blocks, and the server has ", total)),
            "too_large"};
  }
  return {};
}

Refusal Admission::Check(const Request& request, SteadyTime now) const {
  if (is_stopped_) {
    return {absl::UnavailableError("the server is shutting down"), "draining"};
  }
  if (request.deadline <= now) {
    return {absl::DeadlineExceededError("the deadline is past"), "deadline"};
  }
  if (live_.contains({request.tenant, request.request_id})) {
    return {absl::AlreadyExistsError("a live request has this request_id"),
            "duplicate"};
  }
  if (queued_requests_ >= limits_.max_queued_requests) {
    return {absl::ResourceExhaustedError("too many requests are queued"),
            "queue_full"};
  }
  const auto prompt_tokens = static_cast<int64_t>(request.prompt_ids.size());
  if (queued_requests_ > 0 &&
      prompt_tokens > limits_.max_queued_tokens - queued_tokens_) {
    return {absl::ResourceExhaustedError("too many prompt tokens are queued"),
            "queued_tokens"};
  }
  return {};
}

void Admission::Enqueued(const Request& request) {
  ++queued_requests_;
  queued_tokens_ += static_cast<int64_t>(request.prompt_ids.size());
  if (request.request_id.empty()) return;
  const bool is_new = live_.insert({request.tenant, request.request_id}).second;
  OVERFILL_CHECK(is_new) << "a duplicate was admitted";
}

void Admission::Started(const Request& request) {
  --queued_requests_;
  queued_tokens_ -= static_cast<int64_t>(request.prompt_ids.size());
  OVERFILL_CHECK(queued_requests_ >= 0 && queued_tokens_ >= 0);
}

void Admission::Ended(const Request& request, bool was_queued) {
  if (was_queued) Started(request);
  live_.erase({request.tenant, request.request_id});
}

}  // namespace overfill
