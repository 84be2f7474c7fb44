// What the int8 kernels do with a group's sums: in one place, so that all of
// them round alike.
#ifndef OVERFILL_KERNELS_CPU_INT8_STORE_H_
#define OVERFILL_KERNELS_CPU_INT8_STORE_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/int8.h"

namespace overfill {

// For GCC 12, which takes the undefined lanes behind the unmasked forms of some
// instructions for a mistake.
inline constexpr uint16_t kAllLanes = 0xffff;

// Scales of 16, or of 8, columns as f32.
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) inline __m512
LoadScales16(const uint16_t* scales) {
  const __m256i bits =
      _mm256_load_si256(reinterpret_cast<const __m256i*>(scales));
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(kAllLanes, bits);
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAllLanes, wide, 16));
}
__attribute__((target("avx2,fma"))) inline __m256 LoadScales8(
    const uint16_t* scales) {
  const __m128i bits = _mm_load_si128(reinterpret_cast<const __m128i*>(scales));
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// The sums of both halves of the input.
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) inline __m512i
AddHigh16(__m512i low_sums, __m512i high_sums) {
  return _mm512_add_epi32(low_sums,
                          _mm512_maskz_slli_epi32(kAllLanes, high_sums, 7));
}

// totals += sums * (scales * x_scale).
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) inline void
AddScaled16(__m512i sums, __m512 scales, float x_scale, float* totals) {
  const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x_scale));
  const __m512 wide = _mm512_maskz_cvtepi32_ps(kAllLanes, sums);
  _mm512_store_ps(totals, _mm512_fmadd_ps(wide, scale, _mm512_load_ps(totals)));
}
__attribute__((target("avx2,fma"))) inline void AddScaled8(__m256i sums,
                                                           __m256 scales,
                                                           float x_scale,
                                                           float* totals) {
  const __m256 scale = _mm256_mul_ps(scales, _mm256_set1_ps(x_scale));
  _mm256_store_ps(totals, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scale,
                                          _mm256_load_ps(totals)));
}

// The same as StoreTotals.
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) inline void
StoreTotals16(const Int8Product& p, int64_t row, const float* totals) {
  float* out = p.out + row * p.out_stride;
  for (int64_t c = 0; c < p.cols; c += 16) {
    const int64_t left = p.cols - c;
    const __mmask16 mask =
        left >= 16 ? kAllLanes : static_cast<__mmask16>((1u << left) - 1);
    __m512 old = _mm512_setzero_ps();
    if (p.accumulate) old = _mm512_maskz_loadu_ps(mask, out + c);
    if (p.bias != nullptr) {
      old = _mm512_add_ps(old, _mm512_maskz_loadu_ps(mask, p.bias + c));
    }
    _mm512_mask_storeu_ps(out + c, mask,
                          _mm512_add_ps(old, _mm512_load_ps(totals + c)));
  }
}

// Writes one row of the output: `totals` with the bias and the old values.
inline void StoreTotals(const Int8Product& p, int64_t row,
                        const float* totals) {
  float* out = p.out + row * p.out_stride;
  for (int64_t c = 0; c < p.cols; ++c) {
    float old = p.accumulate ? out[c] : 0.0f;
    if (p.bias != nullptr) old += p.bias[c];
    out[c] = old + totals[c];
  }
}

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_INT8_STORE_H_
