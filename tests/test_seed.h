// The seed of the random tests.
#ifndef OVERFILL_TESTS_TEST_SEED_H_
#define OVERFILL_TESTS_TEST_SEED_H_

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>

namespace overfill {

// One seed per run, printed; OVERFILL_TEST_SEED repeats a run.
inline uint64_t TestSeed() {
  static const uint64_t seed = [] {
    const char* text = std::getenv("OVERFILL_TEST_SEED");
    const uint64_t value = text != nullptr ? std::strtoull(text, nullptr, 10)
                                           : std::random_device()();
    std::cout << "OVERFILL_TEST_SEED=" << value << std::endl;
    return value;
  }();
  return seed;
}

}  // namespace overfill

#endif  // OVERFILL_TESTS_TEST_SEED_H_
