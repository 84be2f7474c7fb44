// What the machine can do at best: the yardsticks of the engine's speed.
#ifndef OVERFILL_BENCHMARKS_ENGINE_MACHINE_RATES_H_
#define OVERFILL_BENCHMARKS_ENGINE_MACHINE_RATES_H_

#include <cstdint>
#include <string>
#include <vector>

namespace overfill {

struct ReadRate {
  std::string kernel;
  double bytes_per_second = 0;
};

// Reads memory that no cache holds with `num_threads` threads, each its own
// part, once with each of several kernels: loads of 32 and of 64 bytes, in one
// and in several streams, with and without prefetching. Takes `bytes` of
// memory, kept for the next call. One thread at a time.
std::vector<ReadRate> MeasureReadRates(int num_threads, int64_t bytes);

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_ENGINE_MACHINE_RATES_H_
