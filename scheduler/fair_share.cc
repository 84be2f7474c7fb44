#include "scheduler/fair_share.h"

#include <algorithm>

#include "base/check.h"

namespace overfill {

void FairShare::Arrive(absl::string_view tenant) {
  auto it = accounts_.find(tenant);
  if (it == accounts_.end()) {
    it = accounts_.emplace(std::string(tenant), Account{}).first;
  }
  Account& account = it->second;
  if (account.num_waiting == 0) {
    departed_.erase({account.counter, it->first});
    account.counter = std::max(account.counter, floor_);
    waiting_.insert({account.counter, it->first});
  }
  ++account.num_waiting;
  RaiseFloor();
}

void FairShare::Start(absl::string_view tenant) {
  const auto it = Find(tenant);
  StopWaiting(it);
  ++it->second.num_running;
  RaiseFloor();
}

void FairShare::Leave(absl::string_view tenant, bool was_waiting) {
  const auto it = Find(tenant);
  Account& account = it->second;
  if (was_waiting) {
    StopWaiting(it);
  } else {
    OVERFILL_CHECK_GE(--account.num_running, 0);
  }
  if (account.num_waiting == 0 && account.num_running == 0) {
    departed_.insert({account.counter, it->first});
  }
  RaiseFloor();
}

void FairShare::Charge(absl::string_view tenant, int64_t prompt_tokens,
                       int64_t decode_tokens) {
  OVERFILL_CHECK(prompt_tokens >= 0 && decode_tokens >= 0);
  const auto it = Find(tenant);
  Account& account = it->second;
  OVERFILL_CHECK_GE(account.num_waiting + account.num_running, 1);
  const int64_t before = account.counter;
  account.counter +=
      kPromptWeight * prompt_tokens + kDecodeWeight * decode_tokens;
  if (account.num_waiting == 0) return;
  waiting_.erase({before, it->first});
  waiting_.insert({account.counter, it->first});
  RaiseFloor();
}

int64_t FairShare::counter(absl::string_view tenant) const {
  const auto it = accounts_.find(tenant);
  if (it == accounts_.end()) return floor_;
  const Account& account = it->second;
  if (account.num_waiting + account.num_running > 0) return account.counter;
  return std::max(account.counter, floor_);
}

FairShare::Accounts::iterator FairShare::Find(absl::string_view tenant) {
  const auto it = accounts_.find(tenant);
  OVERFILL_CHECK(it != accounts_.end()) << "a tenant without a request";
  return it;
}

void FairShare::StopWaiting(Accounts::iterator it) {
  Account& account = it->second;
  OVERFILL_CHECK_GE(--account.num_waiting, 0);
  if (account.num_waiting == 0) waiting_.erase({account.counter, it->first});
}

void FairShare::RaiseFloor() {
  if (!waiting_.empty()) floor_ = std::max(floor_, waiting_.begin()->first);
  // Too many to remember: the floor goes up to the least of them, so that it
  // gains nothing by being forgotten.
  while (!departed_.empty() && (departed_.begin()->first <= floor_ ||
                                departed_.size() > kMaxRemembered)) {
    floor_ = std::max(floor_, departed_.begin()->first);
    const auto it = accounts_.find(departed_.begin()->second);
    departed_.erase(departed_.begin());
    accounts_.erase(it);
  }
}

}  // namespace overfill
