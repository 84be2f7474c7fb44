#include "scheduler/turn_order.h"

#include <algorithm>
#include <functional>
#include <map>
#include <string_view>
#include <tuple>
#include <unordered_map>

#include "base/check.h"

namespace overfill {
namespace {

// A tenant's requests of the level that is being shared out, and its counter
// as it will be once those before are taken.
struct Account {
  int64_t counter = 0;
  std::vector<size_t> requests;  // a heap, the oldest in front
};

class Interleaver {
 public:
  Interleaver(std::span<const Waiting> waiting, const FairShare& shares)
      : waiting_(waiting), shares_(shares) {}

  // Appends those of one level to `order`, until it has `limit`.
  void Take(const std::vector<size_t>& level, size_t limit,
            std::vector<size_t>& order);

 private:
  size_t AccountOf(absl::string_view tenant) {
    const auto [it, is_new] = index_.try_emplace(
        std::string_view(tenant.data(), tenant.size()), accounts_.size());
    if (is_new) accounts_.push_back({shares_.counter(tenant), {}});
    return it->second;
  }
  bool IsYounger(size_t a, size_t b) const {
    return std::tie(waiting_[a].arrival, waiting_[a].order) >
           std::tie(waiting_[b].arrival, waiting_[b].order);
  }
  // Whether account a's turn is after b's.
  bool IsLater(size_t a, size_t b) const {
    if (accounts_[a].counter != accounts_[b].counter) {
      return accounts_[a].counter > accounts_[b].counter;
    }
    return IsYounger(accounts_[a].requests.front(),
                     accounts_[b].requests.front());
  }

  const std::span<const Waiting> waiting_;
  const FairShare& shares_;
  std::unordered_map<std::string_view, size_t> index_;
  std::vector<Account> accounts_;
};

void Interleaver::Take(const std::vector<size_t>& level, size_t limit,
                       std::vector<size_t>& order) {
  std::vector<size_t> turns;  // a heap of accounts, the next in front
  for (size_t i : level) {
    const size_t account = AccountOf(waiting_[i].tenant);
    if (accounts_[account].requests.empty()) turns.push_back(account);
    accounts_[account].requests.push_back(i);
  }
  const auto younger = [this](size_t a, size_t b) { return IsYounger(a, b); };
  const auto later = [this](size_t a, size_t b) { return IsLater(a, b); };
  for (size_t account : turns) {
    auto& requests = accounts_[account].requests;
    std::make_heap(requests.begin(), requests.end(), younger);
  }
  std::make_heap(turns.begin(), turns.end(), later);
  while (!turns.empty() && order.size() < limit) {
    std::pop_heap(turns.begin(), turns.end(), later);
    Account& account = accounts_[turns.back()];
    order.push_back(account.requests.front());
    std::pop_heap(account.requests.begin(), account.requests.end(), younger);
    account.requests.pop_back();
    const int64_t cost = waiting_[order.back()].cost_tokens;
    OVERFILL_DCHECK(cost >= 0);
    account.counter += FairShare::kPromptWeight * cost;
    if (account.requests.empty()) {
      turns.pop_back();
    } else {
      std::push_heap(turns.begin(), turns.end(), later);
    }
  }
}

}  // namespace

int32_t EffectivePriority(int32_t priority, SteadyTime arrival, SteadyTime now,
                          const Ageing& ageing) {
  if (ageing.period <= ageing.period.zero() || now <= arrival ||
      priority >= ageing.top) {
    return priority;
  }
  const int64_t room = int64_t{ageing.top} - priority;
  const int64_t raise = (now - arrival) / ageing.period;
  return static_cast<int32_t>(priority + std::min(raise, room));
}

std::vector<size_t> TurnOrder(std::span<const Waiting> waiting,
                              const FairShare& shares, SteadyTime now,
                              const Ageing& ageing, size_t limit) {
  limit = std::min(limit, waiting.size());
  std::map<int32_t, std::vector<size_t>, std::greater<>> levels;
  for (size_t i = 0; i < waiting.size(); ++i) {
    const Waiting& one = waiting[i];
    levels[EffectivePriority(one.priority, one.arrival, now, ageing)].push_back(
        i);
  }
  std::vector<size_t> order;
  order.reserve(limit);
  Interleaver interleaver(waiting, shares);
  for (const auto& [priority, level] : levels) {
    if (order.size() == limit) break;
    interleaver.Take(level, limit, order);
  }
  return order;
}

}  // namespace overfill
