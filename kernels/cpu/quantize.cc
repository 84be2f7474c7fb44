// From f32 to int8 and its scales.
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/cpu/int8.h"
#include "kernels/tensor.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantize.cc"
#include "hwy/foreach_target.h"  // must come first
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace overfill {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr float kLargestQ = 127;
constexpr float kLargestInput = 127 * 128;
// A group of nothing larger is nothing: its inverse scale would not be finite.
constexpr float kNothing = 1e-30f;

// NaN where one of the group's values is a NaN or infinite. As integers the
// bits of magnitudes have the order of their values, with those two on top.
HWY_INLINE float LargestMagnitude(const float* x) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  auto largest = hn::Zero(du);
  for (int64_t i = 0; i < kGroupDepth; i += hn::Lanes(d)) {
    largest = hn::Max(largest, hn::BitCast(du, hn::Abs(hn::LoadU(d, x + i))));
  }
  const uint32_t bits = hn::GetLane(hn::MaxOfLanes(du, largest));
  const float value = std::bit_cast<float>(bits);
  return value <= std::numeric_limits<float>::max()
             ? value
             : std::numeric_limits<float>::quiet_NaN();
}

// q = x * inverse_scale to the nearest, ties to even.
HWY_INLINE void ScaleToInt8(const float* x, float inverse_scale, int8_t* q) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const auto inverse = hn::Set(d, inverse_scale);
  for (int64_t i = 0; i < kGroupDepth; i += hn::Lanes(d)) {
    const auto whole = hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), inverse));
    hn::StoreU(hn::DemoteTo(d8, whole), d8, q + i);
  }
}

// 128 * high + low = x * inverse_scale to the nearest. Returns the sum of all.
HWY_INLINE int32_t ScaleToTwoInt8(const float* x, float inverse_scale,
                                  int8_t* high, int8_t* low) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const auto inverse = hn::Set(d, inverse_scale);
  const auto half = hn::Set(di, 64);
  auto sum = hn::Zero(di);
  for (int64_t i = 0; i < kGroupDepth; i += hn::Lanes(d)) {
    const auto whole = hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), inverse));
    const auto upper = hn::ShiftRight<7>(hn::Add(whole, half));
    const auto lower = hn::Sub(whole, hn::ShiftLeft<7>(upper));
    sum = hn::Add(sum, whole);
    hn::StoreU(hn::DemoteTo(d8, upper), d8, high + i);
    hn::StoreU(hn::DemoteTo(d8, lower), d8, low + i);
  }
  return hn::GetLane(hn::SumOfLanes(di, sum));
}

// Calls quantize(group, x) for each group, the last one filled up with zeros.
template <typename Quantize>
HWY_INLINE void ForEachGroup(const float* x, int64_t depth,
                             const Quantize& quantize) {
  int64_t group = 0;
  for (; (group + 1) * kGroupDepth <= depth; ++group) {
    quantize(group, x + group * kGroupDepth);
  }
  const int64_t left = depth - group * kGroupDepth;
  if (left == 0) return;
  float last[kGroupDepth] = {};
  std::memcpy(last, x + group * kGroupDepth, left * sizeof(float));
  quantize(group, last);
}

// Whether a group with this largest magnitude has numbers to keep; else `scale`
// says what its zeros stand for: nothing, or NaN.
HWY_INLINE bool HasValues(float largest, float* scale) {
  if (largest > kNothing) return true;
  *scale = largest <= kNothing ? 0 : largest;
  return false;
}

void QuantizeInputImpl(const float* x, int64_t depth, int8_t* high, int8_t* low,
                       float* scales, int32_t* sums) {
  ForEachGroup(x, depth, [&](int64_t group, const float* from) HWY_ATTR {
    const int64_t at = group * kGroupDepth;
    const float largest = LargestMagnitude(from);
    if (!HasValues(largest, &scales[group])) {
      std::memset(high + at, 0, kGroupDepth);
      std::memset(low + at, 0, kGroupDepth);
      sums[group] = 0;
      return;
    }
    scales[group] = largest / kLargestInput;
    sums[group] = 128 * ScaleToTwoInt8(from, kLargestInput / largest, high + at,
                                       low + at);
  });
}

void QuantizeWeightsImpl(const float* w, int64_t depth, int8_t* q,
                         uint16_t* scales) {
  ForEachGroup(w, depth, [&](int64_t group, const float* from) HWY_ATTR {
    int8_t* to = q + group * kGroupDepth;
    const float largest = LargestMagnitude(from);
    float scale;
    if (!HasValues(largest, &scale)) {
      std::memset(to, 0, kGroupDepth);
      scales[group] = BFloat16FromFloat(scale);
      return;
    }
    scale = largest / kLargestQ;
    scales[group] = BFloat16FromFloat(scale);
    if (FloatFromBFloat16(scales[group]) < scale) ++scales[group];
    ScaleToInt8(from, 1 / FloatFromBFloat16(scales[group]), to);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace overfill
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace overfill {

HWY_EXPORT(QuantizeInputImpl);
HWY_EXPORT(QuantizeWeightsImpl);

void QuantizeInput(const float* x, int64_t depth, int8_t* high, int8_t* low,
                   float* scales, int32_t* sums) {
  HWY_DYNAMIC_DISPATCH(QuantizeInputImpl)(x, depth, high, low, scales, sums);
}

void QuantizeWeights(const float* w, int64_t depth, int8_t* q,
                     uint16_t* scales) {
  HWY_DYNAMIC_DISPATCH(QuantizeWeightsImpl)(w, depth, q, scales);
}

}  // namespace overfill
#endif  // HWY_ONCE
