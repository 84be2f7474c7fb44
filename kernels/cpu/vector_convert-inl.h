// bf16 conversions as vector code. Included once per Highway target.
#if defined(OVERFILL_KERNELS_CPU_VECTOR_CONVERT_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef OVERFILL_KERNELS_CPU_VECTOR_CONVERT_INL_H_
#undef OVERFILL_KERNELS_CPU_VECTOR_CONVERT_INL_H_
#else
#define OVERFILL_KERNELS_CPU_VECTOR_CONVERT_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/tensor.h"

HWY_BEFORE_NAMESPACE();
namespace overfill {
namespace HWY_NAMESPACE {

HWY_INLINE void VectorRoundToBF16(const float* HWY_RESTRICT x, int64_t count,
                                  uint16_t* HWY_RESTRICT out) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<float> d;
  const hn::ScalableTag<uint32_t> du;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto value = hn::LoadU(d, x + i);
    const auto bits = hn::BitCast(du, value);
    const auto high = hn::ShiftRight<16>(bits);
    const auto lowest = hn::And(high, hn::Set(du, 1u));
    const auto rounded = hn::ShiftRight<16>(
        hn::Add(bits, hn::Add(lowest, hn::Set(du, 0x7fffu))));
    const auto nan = hn::Or(high, hn::Set(du, 0x40u));
    const auto result =
        hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(value)), nan, rounded);
    hn::StoreU(hn::TruncateTo(d16, result), d16, out + i);
  }
  for (; i < count; ++i) out[i] = BFloat16FromFloat(x[i]);
}

HWY_INLINE void VectorWidenBF16(const uint16_t* HWY_RESTRICT x, int64_t count,
                                float* HWY_RESTRICT out) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<float> d;
  const hn::ScalableTag<uint32_t> du;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto bits = hn::PromoteTo(du, hn::LoadU(d16, x + i));
    hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(bits)), d, out + i);
  }
  for (; i < count; ++i) out[i] = FloatFromBFloat16(x[i]);
}

}  // namespace HWY_NAMESPACE
}  // namespace overfill
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
