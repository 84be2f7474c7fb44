#include "engine/dummy_tensor.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "base/check.h"
#include "base/checked_math.h"

namespace overfill {
namespace {

// SplitMix64's finalizer, as a hash of a counter.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t KeyOf(const PlannedTensor& planned, uint64_t seed) {
  uint64_t key = Mix(seed);
  for (const char c : planned.name) {
    key = Mix(key ^ static_cast<unsigned char>(c));
  }
  return key;
}

void FillNoise(uint64_t key, float limit, std::vector<uint16_t>& values) {
  constexpr size_t kPerWord = 4;
  const float scale = limit / 32768;
  for (size_t begin = 0; begin < values.size(); begin += kPerWord) {
    uint64_t bits = Mix(key + begin);
    const size_t end = std::min(begin + kPerWord, values.size());
    for (size_t i = begin; i < end; ++i, bits >>= 16) {
      const auto centred = static_cast<int16_t>(bits & 0xffff);
      values[i] = BFloat16FromFloat((centred + 0.5f) * scale);
    }
  }
}

}  // namespace

HostTensor MakeDummyTensor(const PlannedTensor& planned, uint64_t seed,
                           std::vector<uint16_t>& storage) {
  const auto count = CheckedProduct(planned.shape);
  OVERFILL_CHECK(count.has_value());
  storage.resize(*count);
  switch (planned.role) {
    case TensorRole::kGain:
      std::fill(storage.begin(), storage.end(), BFloat16FromFloat(1));
      break;
    case TensorRole::kBias:
      std::fill(storage.begin(), storage.end(), 0);
      break;
    case TensorRole::kMatrix:
      FillNoise(KeyOf(planned, seed),
                std::sqrt(3.0f / static_cast<float>(planned.shape.back())),
                storage);
      break;
  }
  return {.data = reinterpret_cast<const std::byte*>(storage.data()),
          .dtype = DType::kBF16,
          .shape = planned.shape};
}

}  // namespace overfill
