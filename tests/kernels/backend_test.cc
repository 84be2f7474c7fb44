#include "tests/kernels/backend_test.h"

namespace overfill {
namespace {

// f16 from a float, rounded towards zero; the tests need values that f16 holds,
// not the best ones.
uint16_t Float16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const int exponent = static_cast<int>((bits >> 23) & 0xffu) - 127;
  const uint32_t fraction = (bits >> 13) & 0x3ffu;
  if (exponent > 15) return sign | 0x7bffu;
  if (exponent >= -14) return sign | (exponent + 15) << 10 | fraction;
  if (exponent < -24) return sign;
  return sign | (0x400u | fraction) >> (-14 - exponent);
}

}  // namespace

OwnedTensor::OwnedTensor(std::vector<int64_t> shape, DType dtype,
                         std::span<const float> numbers) {
  // One byte off, since files promise no alignment.
  const int64_t element_bytes = DTypeBytes(dtype);
  bytes.resize(1 + numbers.size() * element_bytes);
  for (size_t i = 0; i < numbers.size(); ++i) {
    std::byte* at = bytes.data() + 1 + i * element_bytes;
    if (dtype == DType::kF32) {
      std::memcpy(at, &numbers[i], sizeof(float));
      values.push_back(numbers[i]);
      continue;
    }
    const uint16_t half = dtype == DType::kBF16 ? BFloat16FromFloat(numbers[i])
                                                : Float16FromFloat(numbers[i]);
    std::memcpy(at, &half, sizeof(half));
    values.push_back(dtype == DType::kBF16 ? FloatFromBFloat16(half)
                                           : FloatFromFloat16(half));
  }
  view = {bytes.data() + 1, dtype, std::move(shape)};
}

}  // namespace overfill
