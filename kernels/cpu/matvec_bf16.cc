// The AVX-512 BF16 panel product. Highway 1.0.3 has no target for these
// instructions, so this file states its own.
#include <immintrin.h>

#include <algorithm>

#include "base/checked_math.h"
#include "kernels/cpu/matvec.h"

#define OVERFILL_BF16_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace overfill {
namespace {

// A panel's block of this depth stays in the L2 cache while all rows use it.
constexpr int64_t kDepthBlock = 2048;
constexpr int kLanes = 16;
constexpr int kVectors = kPanelCols / kLanes;

// Loops over a tile are unrolled by request: else -O2 keeps the tile in memory
// instead of registers, at half the speed.

// Adds a row's sums to the output; the first depth block brings bias and old
// values.
OVERFILL_BF16_TARGET inline void StoreRow(const PanelProduct& p, int64_t row,
                                          bool first,
                                          const __m512 (&acc)[kVectors]) {
  float* out = p.out + row * p.out_stride;
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const int64_t left = p.cols - v * kLanes;
    if (left <= 0) return;
    const __mmask16 mask =
        left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    __m512 sum = acc[v];
    if (!first || p.accumulate) {
      sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, out + v * kLanes));
    }
    if (first && p.bias != nullptr) {
      sum =
          _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, p.bias + v * kLanes));
    }
    _mm512_mask_storeu_ps(out + v * kLanes, mask, sum);
  }
}

// acc += the pair of depths at `x` times the panel's pair `w`.
OVERFILL_BF16_TARGET inline void AddPair(const uint16_t* x,
                                         const __m512i (&w)[kVectors],
                                         __m512 (&acc)[kVectors]) {
  int pair;
  __builtin_memcpy(&pair, x, sizeof(pair));
  const __m512i broadcast = _mm512_set1_epi32(pair);
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    acc[v] = _mm512_dpbf16_ps(acc[v], (__m512bh)broadcast, (__m512bh)w[v]);
  }
}

// For few rows the weights' way from memory is the time. Two streams at once,
// each asked for so far ahead, come faster than one.
constexpr int kStreams = 2;
constexpr int64_t kPrefetchBytes = 1024;
static_assert(kPanelDepth % (2 * kStreams) == 0);

// Writes the rows' sums over all streams; sums s * kRows + r are row r's.
template <int kRows, int kSums>
OVERFILL_BF16_TARGET inline void StoreStreams(
    const PanelProduct& p,
    const __m512 (&acc)[kStreams][kSums * kRows][kVectors]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    __m512 total[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      total[v] = _mm512_setzero_ps();
#pragma GCC unroll 16
      for (int s = 0; s < kStreams * kSums; ++s) {
        total[v] =
            _mm512_add_ps(total[v], acc[s / kSums][s % kSums * kRows + r][v]);
      }
    }
    StoreRow(p, r, /*first=*/true, total);
  }
}

// All of the depth, in kStreams parts.
template <int kRows, bool kRest>
OVERFILL_BF16_TARGET void StreamRows(const PanelProduct& p) {
  // Where registers are left, what x's rounding left over has sums of its own:
  // else each sum waits for two instructions per step of depth.
  constexpr int kSums = kRest && kRows == 1 ? 2 : 1;
  const int64_t part = RoundUp(p.depth, kPanelDepth) / kStreams;
  const auto* x = static_cast<const uint16_t*>(p.x);
  const auto* panel = static_cast<const uint16_t*>(p.panel);
  __m512 acc[kStreams][kSums * kRows][kVectors];
#pragma GCC unroll 16
  for (auto& stream_acc : acc) {
#pragma GCC unroll 16
    for (auto& row_acc : stream_acc) {
#pragma GCC unroll 16
      for (__m512& a : row_acc) a = _mm512_setzero_ps();
    }
  }
  for (int64_t step = 0; step < part; step += 2) {
#pragma GCC unroll 16
    for (int s = 0; s < kStreams; ++s) {
      const int64_t k = s * part + step;
      const uint16_t* at = panel + k * kPanelCols;
      __m512i w[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        _mm_prefetch(
            reinterpret_cast<const char*>(at + v * 2 * kLanes) + kPrefetchBytes,
            _MM_HINT_T0);
        w[v] = _mm512_load_si512(at + v * 2 * kLanes);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        if constexpr (kRest) {
          AddPair(p.x_rest + r * p.x_stride + k, w,
                  acc[s][(kSums - 1) * kRows + r]);
        }
        AddPair(x + r * p.x_stride + k, w, acc[s][r]);
      }
    }
  }
  StoreStreams<kRows, kSums>(p, acc);
}

template <int kRows, bool kRest>
OVERFILL_BF16_TARGET void MultiplyRows(const PanelProduct& p, int64_t row,
                                       int64_t begin, int64_t end) {
  const uint16_t* x = static_cast<const uint16_t*>(p.x) + row * p.x_stride;
  const uint16_t* x_rest = kRest ? p.x_rest + row * p.x_stride : nullptr;
  const uint16_t* panel = static_cast<const uint16_t*>(p.panel);
  __m512 acc[kRows][kVectors];
#pragma GCC unroll 16
  for (auto& row_acc : acc) {
#pragma GCC unroll 16
    for (__m512& a : row_acc) a = _mm512_setzero_ps();
  }
  for (int64_t k = begin; k < end; k += 2) {
    __m512i w[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      w[v] = _mm512_load_si512(panel + k * kPanelCols + v * 2 * kLanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kRest) AddPair(x_rest + r * p.x_stride + k, w, acc[r]);
      AddPair(x + r * p.x_stride + k, w, acc[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) StoreRow(p, row + r, begin == 0, acc[r]);
}

template <bool kRest>
void MultiplyAllRows(const PanelProduct& p) {
  const int64_t depth = RoundUp(p.depth, kPanelDepth);
  int64_t begin = 0;
  do {
    const int64_t end = std::min(begin + kDepthBlock, depth);
    int64_t row = 0;
    for (; row + 6 <= p.rows; row += 6) {
      MultiplyRows<6, kRest>(p, row, begin, end);
    }
    switch (p.rows - row) {
      case 5:
        MultiplyRows<5, kRest>(p, row, begin, end);
        break;
      case 4:
        MultiplyRows<4, kRest>(p, row, begin, end);
        break;
      case 3:
        MultiplyRows<3, kRest>(p, row, begin, end);
        break;
      case 2:
        MultiplyRows<2, kRest>(p, row, begin, end);
        break;
      case 1:
        MultiplyRows<1, kRest>(p, row, begin, end);
        break;
    }
    begin = end;
  } while (begin < depth);
}

}  // namespace

void MultiplyPanelBF16Dot(const PanelProduct& p) {
  const bool exact = p.x_rest != nullptr;
  if (p.rows == 1)
    return exact ? StreamRows<1, true>(p) : StreamRows<1, false>(p);
  if (p.rows == 2)
    return exact ? StreamRows<2, true>(p) : StreamRows<2, false>(p);
  if (p.rows == 3)
    return exact ? StreamRows<3, true>(p) : StreamRows<3, false>(p);
  if (p.x_rest != nullptr) {
    MultiplyAllRows<true>(p);
  } else {
    MultiplyAllRows<false>(p);
  }
}

}  // namespace overfill
