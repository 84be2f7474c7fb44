#include "scheduler/step_planner.h"

#include <algorithm>
#include <map>
#include <span>

#include "base/check.h"

namespace overfill {
namespace {

// What is left, resource by resource. A closed one goes to nobody.
class Purse {
 public:
  explicit Purse(const Resources& available) : left_(available) {}

  // All or nothing.
  bool Take(const Resources& needs) {
    for (int i = 0; i < 2; ++i) {
      if (needs.blocks[i] > left_.blocks[i]) return false;
      if (needs.slots[i] > left_.slots[i]) return false;
    }
    for (int i = 0; i < 2; ++i) {
      left_.blocks[i] -= needs.blocks[i];
      left_.slots[i] -= needs.slots[i];
    }
    return true;
  }

  void CloseWhat(const Resources& needs) {
    for (int i = 0; i < 2; ++i) {
      if (needs.blocks[i] > 0) left_.blocks[i] = 0;
      if (needs.slots[i] > 0) left_.slots[i] = 0;
    }
  }

 private:
  Resources left_;
};

// The candidates that may have rows, by priority, then arrival, and those that
// return.
std::vector<size_t> Eligible(const PlanInput& input,
                             std::vector<size_t>& returns) {
  const auto& prefill = input.prefill;
  std::vector<size_t> order(prefill.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (prefill[a].priority != prefill[b].priority) {
      return prefill[a].priority > prefill[b].priority;
    }
    return prefill[a].order < prefill[b].order;
  });
  Purse purse(input.available);
  std::vector<size_t> eligible;
  for (size_t i : order) {
    const PrefillCandidate& candidate = prefill[i];
    if (!candidate.is_started && !purse.Take(candidate.needs)) {
      if (candidate.is_blocking) purse.CloseWhat(candidate.needs);
      continue;
    }
    if (!candidate.is_here) continue;
    (candidate.is_return ? returns : eligible).push_back(i);
  }
  return eligible;
}

// What is left of the step for prompts.
struct Left {
  int32_t rows;
  int32_t sequences;
};

// Shares among candidates of one priority, `members` in order of arrival.
void ShareOut(const PlanInput& input, std::span<const size_t> members,
              Left& left, std::vector<PrefillShare>& shares) {
  if (left.rows == 0 || left.sequences == 0) return;
  const auto remaining = [&](size_t i) {
    return input.prefill[i].remaining_rows;
  };
  const size_t first = shares.size();
  shares.push_back(
      {members[0], std::min(remaining(members[0]), (left.rows + 1) / 2)});
  left.rows -= shares[first].rows;
  --left.sequences;

  // Each tenant's from the shortest; then the tenants' first ones, the second
  // ones, and so on, in the order in which the tenants come.
  std::vector<size_t> others(members.begin() + 1, members.end());
  std::stable_sort(others.begin(), others.end(), [&](size_t a, size_t b) {
    return remaining(a) < remaining(b);
  });
  std::map<int32_t, size_t> rounds;
  std::map<size_t, size_t> round_of;
  for (size_t i : others) round_of[i] = rounds[input.prefill[i].tenant]++;
  std::stable_sort(others.begin(), others.end(), [&](size_t a, size_t b) {
    return round_of[a] < round_of[b];
  });
  for (size_t i : others) {
    if (left.rows == 0 || left.sequences == 0) break;
    shares.push_back({i, std::min(remaining(i), left.rows)});
    left.rows -= shares.back().rows;
    --left.sequences;
  }
  // What nobody else wanted is the first one's.
  const int32_t more =
      std::min(left.rows, remaining(members[0]) - shares[first].rows);
  shares[first].rows += more;
  left.rows -= more;
}

}  // namespace

StepPlan PlanStep(const PlanInput& input) {
  const StepBudget& budget = input.budget;
  OVERFILL_CHECK_LE(input.num_decode_rows, budget.max_rows);
  OVERFILL_CHECK_LE(input.num_decode_rows, budget.max_sequences);
  StepPlan plan{
      .num_decode_rows = input.num_decode_rows, .prefill = {}, .returns = {}};
  Left left{
      .rows = std::min(budget.max_prefill_rows,
                       budget.max_rows - input.num_decode_rows),
      .sequences = budget.max_sequences - input.num_decode_rows,
  };
  const std::vector<size_t> eligible = Eligible(input, plan.returns);
  for (size_t begin = 0; begin < eligible.size();) {
    const int32_t priority = input.prefill[eligible[begin]].priority;
    size_t end = begin;
    while (end < eligible.size() &&
           input.prefill[eligible[end]].priority == priority) {
      ++end;
    }
    ShareOut(input, {eligible.data() + begin, end - begin}, left, plan.prefill);
    begin = end;
  }
  return plan;
}

}  // namespace overfill
