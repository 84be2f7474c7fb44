// The load generator's randomness: everything follows from one seed.
#ifndef OVERFILL_BENCHMARKS_SERVING_RANDOM_H_
#define OVERFILL_BENCHMARKS_SERVING_RANDOM_H_

#include <cstdint>
#include <random>

namespace overfill {

using Random = std::mt19937_64;

// A seed for stream `stream` of what `seed` makes; near values give unrelated
// ones (the finalizer of SplitMix64, Steele et al., OOPSLA 2014).
inline uint64_t DeriveSeed(uint64_t seed, uint64_t stream) {
  uint64_t z = seed + (stream + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// In [0, 1).
inline double DrawUnit(Random& random) {
  return std::uniform_real_distribution<double>(0.0, 1.0)(random);
}

// In [min, max].
inline int64_t DrawInt(Random& random, int64_t min, int64_t max) {
  return std::uniform_int_distribution<int64_t>(min, max)(random);
}

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_RANDOM_H_
