// The metrics that are read from the server's present state.
#ifndef OVERFILL_SERVER_STATE_GAUGES_H_
#define OVERFILL_SERVER_STATE_GAUGES_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "prometheus/collectable.h"
#include "scheduler/observer.h"

namespace overfill {

// The present state, read at each scrape. Both must stay callable as long as an
// exposer holds the result.
std::shared_ptr<prometheus::Collectable> MakeStateGauges(
    std::function<SchedulerStats()> stats,
    std::function<int32_t()> num_open_streams);

}  // namespace overfill

#endif  // OVERFILL_SERVER_STATE_GAUGES_H_
