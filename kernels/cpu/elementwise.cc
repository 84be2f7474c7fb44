#include "kernels/cpu/elementwise.h"

#include <cmath>

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "hwy/foreach_target.h"  // must come first
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
#include "kernels/cpu/vector_convert-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace overfill {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

void RmsNormRowImpl(const float* x, const float* HWY_RESTRICT gain,
                    int64_t count, float eps, float* out) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = hn::Lanes(d);
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    const auto a = hn::LoadU(d, x + i);
    const auto b = hn::LoadU(d, x + i + lanes);
    sum0 = hn::MulAdd(a, a, sum0);
    sum1 = hn::MulAdd(b, b, sum1);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; i < count; ++i) sum += x[i] * x[i];

  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(count) + eps);
  const auto scales = hn::Set(d, scale);
  i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto normed = hn::Mul(hn::LoadU(d, x + i), scales);
    hn::StoreU(hn::Mul(normed, hn::LoadU(d, gain + i)), d, out + i);
  }
  for (; i < count; ++i) out[i] = x[i] * scale * gain[i];
}

void SiluMulRowImpl(const float* HWY_RESTRICT gate,
                    const float* HWY_RESTRICT up, int64_t count,
                    float* HWY_RESTRICT out) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = hn::Lanes(d);
  const auto one = hn::Set(d, 1.0f);
  // exp stays finite; silu(-88) is 0 for all that f32 can tell.
  const auto largest = hn::Set(d, 88.0f);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto g = hn::LoadU(d, gate + i);
    const auto e = hn::Exp(d, hn::Min(hn::Neg(g), largest));
    const auto silu = hn::Div(g, hn::Add(one, e));
    hn::StoreU(hn::Mul(silu, hn::LoadU(d, up + i)), d, out + i);
  }
  for (; i < count; ++i) {
    out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
  }
}

void RotateHeadImpl(const float* HWY_RESTRICT cos_sin, int64_t num_pairs,
                    float* HWY_RESTRICT head) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = hn::Lanes(d);
  float* low = head;
  float* high = head + num_pairs;
  int64_t i = 0;
  for (; i + lanes <= num_pairs; i += lanes) {
    hn::Vec<decltype(d)> c, s;
    hn::LoadInterleaved2(d, cos_sin + 2 * i, c, s);
    const auto a = hn::LoadU(d, low + i);
    const auto b = hn::LoadU(d, high + i);
    hn::StoreU(hn::MulSub(a, c, hn::Mul(b, s)), d, low + i);
    hn::StoreU(hn::MulAdd(b, c, hn::Mul(a, s)), d, high + i);
  }
  for (; i < num_pairs; ++i) {
    const float c = cos_sin[2 * i];
    const float s = cos_sin[2 * i + 1];
    const float a = low[i];
    const float b = high[i];
    low[i] = a * c - b * s;
    high[i] = b * c + a * s;
  }
}

void RoundToBF16Impl(const float* x, int64_t count, uint16_t* out) {
  VectorRoundToBF16(x, count, out);
}

void WidenBF16Impl(const uint16_t* x, int64_t count, float* out) {
  VectorWidenBF16(x, count, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace overfill
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace overfill {

HWY_EXPORT(RmsNormRowImpl);
HWY_EXPORT(SiluMulRowImpl);
HWY_EXPORT(RotateHeadImpl);
HWY_EXPORT(RoundToBF16Impl);
HWY_EXPORT(WidenBF16Impl);

void RmsNormRow(const float* x, const float* gain, int64_t count, float eps,
                float* out) {
  HWY_DYNAMIC_DISPATCH(RmsNormRowImpl)(x, gain, count, eps, out);
}

void SiluMulRow(const float* gate, const float* up, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(SiluMulRowImpl)(gate, up, count, out);
}

void RotateHead(const float* cos_sin, int64_t num_pairs, float* head) {
  HWY_DYNAMIC_DISPATCH(RotateHeadImpl)(cos_sin, num_pairs, head);
}

void RoundToBF16(const float* x, int64_t count, uint16_t* out) {
  HWY_DYNAMIC_DISPATCH(RoundToBF16Impl)(x, count, out);
}

void WidenBF16(const uint16_t* x, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(WidenBF16Impl)(x, count, out);
}

}  // namespace overfill
#endif  // HWY_ONCE
