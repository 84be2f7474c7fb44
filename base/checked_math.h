// Overflow-safe arithmetic for sizes that come from files and clients.
#ifndef OVERFILL_BASE_CHECKED_MATH_H_
#define OVERFILL_BASE_CHECKED_MATH_H_

#include <cstdint>
#include <optional>
#include <span>

namespace overfill {

inline std::optional<uint64_t> CheckedMul(uint64_t a, uint64_t b) {
  uint64_t result;
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

inline std::optional<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t result;
  if (__builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

// The product of all `dims`; nullopt for a negative one or an overflow.
inline std::optional<uint64_t> CheckedProduct(std::span<const int64_t> dims) {
  uint64_t result = 1;
  for (int64_t dim : dims) {
    if (dim < 0) return std::nullopt;
    auto next = CheckedMul(result, static_cast<uint64_t>(dim));
    if (!next) return std::nullopt;
    result = *next;
  }
  return result;
}

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

}  // namespace overfill

#endif  // OVERFILL_BASE_CHECKED_MATH_H_
