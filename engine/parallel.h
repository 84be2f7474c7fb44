// Work of start-up, spread over threads of its own: the device's thread team
// belongs to its streams.
#ifndef OVERFILL_ENGINE_PARALLEL_H_
#define OVERFILL_ENGINE_PARALLEL_H_

#include <cstddef>
#include <functional>

#include "absl/status/status.h"
#include "kernels/device.h"

namespace overfill {

// How many threads may load for a device: its team's size, else the cores that
// this process may run on. At least 1.
int LoadingThreads(const Device& device);

// Calls task(i) for each i < num_tasks, on up to `num_threads` threads, the
// caller's among them. Lower ones begin first. After an error no further task
// begins; the error of the lowest task that failed is returned.
absl::Status ParallelTasks(int num_threads, size_t num_tasks,
                           const std::function<absl::Status(size_t)>& task);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_PARALLEL_H_
