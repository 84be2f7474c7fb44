// Whose turn it is among the requests that wait: a pure function.
#ifndef OVERFILL_SCHEDULER_TURN_ORDER_H_
#define OVERFILL_SCHEDULER_TURN_ORDER_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "absl/strings/string_view.h"
#include "scheduler/fair_share.h"
#include "scheduler/request.h"

namespace overfill {

struct Waiting {
  int32_t priority = 0;  // higher goes first
  SteadyTime arrival;
  uint64_t order = 0;  // among those of one arrival; unique
  absl::string_view tenant;
  // What its tenant will be charged for the prompt when it starts, >= 0; 0 for
  // one that has been charged and only comes back.
  int64_t cost_tokens = 0;
};

// How waiting raises a priority.
struct Ageing {
  std::chrono::nanoseconds period{0};  // for one more; zero or less: never
  // As far as the highest priority of those who wait, and no further: ageing is
  // against the more urgent. Above that an old backlog of one tenant would
  // come before whatever other tenants ask for, and all would be by arrival.
  int32_t top = 0;
};

// The priority plus one for each full period that it has waited, up to `top`,
// or the priority itself where that is above.
int32_t EffectivePriority(int32_t priority, SteadyTime arrival, SteadyTime now,
                          const Ageing& ageing);

// Indices of `waiting`, the next first, no more than `limit`.
//
// By effective priority (`ageing.top` is at least that of all who wait).
// Within one, always the oldest request of the tenant
// with the least counter, as if each had been charged when it was taken; equal
// counters by arrival. Those of one tenant are in order of arrival.
//
// With ageing nothing starves: after top - priority periods a request is among
// the most urgent; of its tenant only those that came before it are ahead
// there, and of other tenants what keeps their counters from passing its own.
// O(n log n); O(n + limit log n) where few priorities differ.
std::vector<size_t> TurnOrder(
    std::span<const Waiting> waiting, const FairShare& shares, SteadyTime now,
    const Ageing& ageing, size_t limit = std::numeric_limits<size_t>::max());

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_TURN_ORDER_H_
