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
// A group of nothing larger is nothing: its inverse scale would not be finite.
constexpr float kNothing = 1e-30f;

// NaN where one of the group's values is a NaN or infinite. As integers the
// bits of magnitudes have the order of their values, with those two on top.
HWY_INLINE float LargestMagnitude(const float* x) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  auto largest = hn::Zero(du);
  for (int64_t i = 0; i < kGroupDepth; i += hn::Lanes(d)) {
    largest =
        hn::Max(largest, hn::BitCast(du, hn::Abs(hn::LoadU(d, x + i))));
  }
  const uint32_t bits = hn::GetLane(hn::MaxOfLanes(du, largest));
  const float value = std::bit_cast<float>(bits);
  return value <= std::numeric_limits<float>::max()
             ? value
             : std::numeric_limits<float>::quiet_NaN();
}

// q = x * inverse_scale to the nearest, ties to even. Returns the sum of q.
HWY_INLINE int32_t ScaleToInt8(const float* x, float inverse_scale, int8_t* q) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const auto inverse = hn::Set(d, inverse_scale);
  auto sum = hn::Zero(di);
  for (int64_t i = 0; i < kGroupDepth; i += hn::Lanes(d)) {
    const auto whole = hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), inverse));
    sum = hn::Add(sum, whole);
    hn::StoreU(hn::DemoteTo(d8, whole), d8, q + i);
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

// Whether a group with this largest magnitude has numbers to keep; else its q
// are zeros, and `scale` says what they stand for: nothing, or NaN.
HWY_INLINE bool HasValues(float largest, int8_t* q, float* scale) {
  if (largest > kNothing) return true;
  std::memset(q, 0, kGroupDepth);
  *scale = largest <= kNothing ? 0 : largest;
  return false;
}

void QuantizeInputImpl(const float* x, int64_t depth, int8_t* q, float* scales,
                       int32_t* sums) {
  ForEachGroup(x, depth, [&](int64_t group, const float* from) {
    int8_t* to = q + group * kGroupDepth;
    sums[group] = 0;
    const float largest = LargestMagnitude(from);
    if (!HasValues(largest, to, &scales[group])) return;
    scales[group] = largest / kLargestQ;
    sums[group] = 128 * ScaleToInt8(from, kLargestQ / largest, to);
  });
}

void QuantizeWeightsImpl(const float* w, int64_t depth, int8_t* q,
                         uint16_t* scales) {
  ForEachGroup(w, depth, [&](int64_t group, const float* from) {
    int8_t* to = q + group * kGroupDepth;
    const float largest = LargestMagnitude(from);
    float scale;
    if (!HasValues(largest, to, &scale)) {
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

void QuantizeInput(const float* x, int64_t depth, int8_t* q, float* scales,
                   int32_t* sums) {
  HWY_DYNAMIC_DISPATCH(QuantizeInputImpl)(x, depth, q, scales, sums);
}

void QuantizeWeights(const float* w, int64_t depth, int8_t* q,
                     uint16_t* scales) {
  HWY_DYNAMIC_DISPATCH(QuantizeWeightsImpl)(w, depth, q, scales);
}

}  // namespace overfill
#endif  // HWY_ONCE
