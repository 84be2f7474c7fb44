// The int8 panel products of AVX-512 VNNI and of AVX2.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/int8.h"
#include "kernels/cpu/int8_store.h"

#define OVERFILL_VNNI_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define OVERFILL_AVX2_TARGET __attribute__((target("avx2,fma")))

namespace overfill {
namespace {

constexpr int64_t kQuads = kGroupDepth / 4;

// The weights' way from memory is the time: a group sets out while the one
// before it is multiplied.
constexpr int64_t kPrefetchBytes = sizeof(Int8Group);

// The weights are asked for as their forerunners are read. GCC would take the
// function for one without effect, and drop the call.
__attribute__((always_inline)) inline void PrefetchScales(
    const Int8Group& group) {
  const auto* next = reinterpret_cast<const char*>(&group) + kPrefetchBytes;
  _mm_prefetch(next, _MM_HINT_T0);
  _mm_prefetch(next + 64, _MM_HINT_T0);
}

int32_t LoadQuad(const int8_t* x) {
  int32_t quad;
  std::memcpy(&quad, x, sizeof(quad));
  return quad;
}

// ---- AVX-512 VNNI: four vectors of 16 columns. Its dot product takes a factor
// without a sign: q + 128.

constexpr int kVectors = kPanelCols / 16;

OVERFILL_VNNI_TARGET inline __m512i LoadUnsigned(const int8_t* q) {
  return _mm512_xor_si512(_mm512_load_si512(q),
                          _mm512_set1_epi8(static_cast<char>(0x80)));
}

// sums[r] = the group's sums, without the weights' 128.
template <int kRows>
OVERFILL_VNNI_TARGET inline void SumGroup(const Int8Product& p, int64_t row,
                                          int64_t group,
                                          __m512i (&sums)[kRows][kVectors]) {
  const int64_t x_stride = p.num_groups * kGroupDepth;
  const int64_t at = row * x_stride + group * kGroupDepth;
  const int8_t* high = p.x_high + at;
  const int8_t* low = p.x_low + at;
  __m512i high_sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const int32_t x_sum = p.x_sums[(row + r) * p.num_groups + group];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = _mm512_set1_epi32(-x_sum);
      high_sums[r][v] = _mm512_setzero_si512();
    }
  }
  for (int64_t quad = 0; quad < kQuads; ++quad) {
    const int8_t* weights = &p.panel[group].q[quad][0][0];
    __m512i w[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      _mm_prefetch(weights + v * 64 + kPrefetchBytes, _MM_HINT_T0);
      w[v] = LoadUnsigned(weights + v * 64);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const int64_t x = r * x_stride + quad * 4;
      const __m512i x_high = _mm512_set1_epi32(LoadQuad(high + x));
      const __m512i x_low = _mm512_set1_epi32(LoadQuad(low + x));
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        high_sums[r][v] = _mm512_dpbusd_epi32(high_sums[r][v], w[v], x_high);
        sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], w[v], x_low);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = AddHigh16(sums[r][v], high_sums[r][v]);
    }
  }
}

template <int kRows>
OVERFILL_VNNI_TARGET void MultiplyRowsVnni(const Int8Product& p, int64_t row) {
  alignas(64) float totals[kRows][kPanelCols] = {};
  for (int64_t place = 0; place < p.num_groups; ++place) {
    const int64_t group = GroupAt(place, p.num_groups);
    __m512i sums[kRows][kVectors];
    PrefetchScales(p.panel[group]);
    SumGroup<kRows>(p, row, group, sums);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const __m512 scales = LoadScales16(&p.panel[group].scales[v * 16]);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const float x_scale = p.x_scales[(row + r) * p.num_groups + group];
        AddScaled16(sums[r][v], scales, x_scale, &totals[r][v * 16]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) StoreTotals16(p, row + r, totals[r]);
}

// Bytes of a stream that are on their way.
constexpr int64_t kStreamBytes = 1024;

// Sums of one row over a quad of one stream's group.
OVERFILL_VNNI_TARGET inline void AddQuad(const Int8Product& p, int64_t group,
                                         int64_t quad,
                                         __m512i (&low_sums)[kVectors],
                                         __m512i (&high_sums)[kVectors]) {
  const int64_t x = group * kGroupDepth + quad * 4;
  const __m512i x_high = _mm512_set1_epi32(LoadQuad(p.x_high + x));
  const __m512i x_low = _mm512_set1_epi32(LoadQuad(p.x_low + x));
  const int8_t* weights = &p.panel[group].q[quad][0][0];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    _mm_prefetch(weights + v * 64 + kStreamBytes, _MM_HINT_T0);
    const __m512i w = LoadUnsigned(weights + v * 64);
    high_sums[v] = _mm512_dpbusd_epi32(high_sums[v], w, x_high);
    low_sums[v] = _mm512_dpbusd_epi32(low_sums[v], w, x_low);
  }
}

OVERFILL_VNNI_TARGET inline void AddGroup(const Int8Product& p, int64_t group,
                                          const __m512i (&low_sums)[kVectors],
                                          const __m512i (&high_sums)[kVectors],
                                          float* totals) {
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    AddScaled16(AddHigh16(low_sums[v], high_sums[v]),
                LoadScales16(&p.panel[group].scales[v * 16]), p.x_scales[group],
                totals + v * 16);
  }
}

// A group of each half of the depth at once, so that lines of both come in
// turns.
OVERFILL_VNNI_TARGET void MultiplyOneRowVnni(const Int8Product& p) {
  alignas(64) float totals[kPanelCols] = {};
  const int64_t second = (p.num_groups + 1) / 2;
  for (int64_t group = 0; group < second; ++group) {
    const int64_t other = std::min(second + group, p.num_groups - 1);
    __m512i low[2][kVectors], high[2][kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      low[0][v] = _mm512_set1_epi32(-p.x_sums[group]);
      low[1][v] = _mm512_set1_epi32(-p.x_sums[other]);
      high[0][v] = high[1][v] = _mm512_setzero_si512();
    }
    for (int64_t quad = 0; quad < kQuads; ++quad) {
      AddQuad(p, group, quad, low[0], high[0]);
      AddQuad(p, other, quad, low[1], high[1]);
    }
    AddGroup(p, group, low[0], high[0], totals);
    if (second + group < p.num_groups) {
      AddGroup(p, other, low[1], high[1], totals);
    }
  }
  StoreTotals16(p, 0, totals);
}

// ---- AVX2: vectors of eight columns. Even and odd depths apart: as 16-bit
// numbers, pairs of products are summed by one instruction.

constexpr int64_t kAvx2Vectors = kPanelCols / 8;

// 128 * high + low of the even, or of the odd, bytes, as 16-bit numbers.
OVERFILL_AVX2_TARGET inline __m256i JoinOdd(__m256i high, __m256i low) {
  return _mm256_add_epi16(_mm256_slli_epi16(_mm256_srai_epi16(high, 8), 7),
                          _mm256_srai_epi16(low, 8));
}
OVERFILL_AVX2_TARGET inline __m256i JoinEven(__m256i high, __m256i low) {
  return JoinOdd(_mm256_slli_epi16(high, 8), _mm256_slli_epi16(low, 8));
}

template <int kRows, int kCount>
OVERFILL_AVX2_TARGET inline void MultiplyPartAvx2(const Int8Product& p,
                                                  int64_t row, int64_t group,
                                                  int64_t first,
                                                  float (*totals)[kPanelCols]) {
  const int64_t x_stride = p.num_groups * kGroupDepth;
  const int64_t at = row * x_stride + group * kGroupDepth;
  const Int8Group& part = p.panel[group];
  __m256i sums[kRows][kCount];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) sums[r][v] = _mm256_setzero_si256();
  }
  for (int64_t quad = 0; quad < kQuads; ++quad) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const int64_t x = at + r * x_stride + quad * 4;
      const __m256i high = _mm256_set1_epi32(LoadQuad(p.x_high + x));
      const __m256i low = _mm256_set1_epi32(LoadQuad(p.x_low + x));
      const __m256i x_even = JoinEven(high, low);
      const __m256i x_odd = JoinOdd(high, low);
#pragma GCC unroll 16
      for (int v = 0; v < kCount; ++v) {
        const int8_t* weights = &part.q[quad][(first + v) * 8][0];
        if (r == 0 && v % 2 == 0) {
          _mm_prefetch(weights + kPrefetchBytes, _MM_HINT_T0);
        }
        const __m256i w =
            _mm256_load_si256(reinterpret_cast<const __m256i*>(weights));
        const __m256i even = _mm256_madd_epi16(
            _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), x_even);
        const __m256i odd = _mm256_madd_epi16(_mm256_srai_epi16(w, 8), x_odd);
        sums[r][v] = _mm256_add_epi32(sums[r][v], _mm256_add_epi32(even, odd));
      }
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < kCount; ++v) {
    const __m256 scales = LoadScales8(&part.scales[(first + v) * 8]);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const float x_scale = p.x_scales[(row + r) * p.num_groups + group];
      AddScaled8(sums[r][v], scales, x_scale, &totals[r][(first + v) * 8]);
    }
  }
}

template <int kRows>
OVERFILL_AVX2_TARGET void MultiplyRowsAvx2(const Int8Product& p, int64_t row) {
  constexpr int kCount = kRows == 1 ? 8 : kRows == 2 ? 4 : 2;
  alignas(64) float totals[kRows][kPanelCols] = {};
  for (int64_t place = 0; place < p.num_groups; ++place) {
    const int64_t group = GroupAt(place, p.num_groups);
    PrefetchScales(p.panel[group]);
    for (int64_t first = 0; first < kAvx2Vectors; first += kCount) {
      MultiplyPartAvx2<kRows, kCount>(p, row, group, first, totals);
    }
  }
  for (int r = 0; r < kRows; ++r) StoreTotals(p, row + r, totals[r]);
}

}  // namespace

void MultiplyPanelInt8Vnni(const Int8Product& p) {
  if (p.rows == 1) return MultiplyOneRowVnni(p);
  int64_t row = 0;
  for (; row + 3 <= p.rows; row += 3) MultiplyRowsVnni<3>(p, row);
  switch (p.rows - row) {
    case 2:
      MultiplyRowsVnni<2>(p, row);
      break;
    case 1:
      MultiplyRowsVnni<1>(p, row);
      break;
  }
}

void MultiplyPanelInt8Avx2(const Int8Product& p) {
  int64_t row = 0;
  for (; row + 4 <= p.rows; row += 4) MultiplyRowsAvx2<4>(p, row);
  switch (p.rows - row) {
    case 3:
      MultiplyRowsAvx2<3>(p, row);
      break;
    case 2:
      MultiplyRowsAvx2<2>(p, row);
      break;
    case 1:
      MultiplyRowsAvx2<1>(p, row);
      break;
  }
}

}  // namespace overfill
