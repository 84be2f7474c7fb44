// What /metrics says of the process, by the names that Prometheus' own clients
// use.
#ifndef OVERFILL_SERVER_PROCESS_METRICS_H_
#define OVERFILL_SERVER_PROCESS_METRICS_H_

#include <memory>

#include "prometheus/collectable.h"

namespace overfill {

// process_cpu_seconds_total, process_start_time_seconds,
// process_resident_memory_bytes, process_virtual_memory_bytes,
// process_open_fds, process_max_fds, process_threads; read from /proc/self at
// each scrape. What cannot be read is left out.
std::shared_ptr<prometheus::Collectable> MakeProcessMetrics();

}  // namespace overfill

#endif  // OVERFILL_SERVER_PROCESS_METRICS_H_
