#include "kernels/cpu/matvec.h"

#include <algorithm>
#include <cstring>

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matvec.cc"
#include "hwy/foreach_target.h"  // must come first
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace overfill {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::ScalableTag<uint32_t>;
using VF = hn::Vec<F32>;

// A panel's block of this depth stays in the L2 cache while all rows use it.
constexpr int64_t kDepthBlock = 2048;

// For few rows the weights' way from memory is the time; this many pairs of
// depth ahead of their use they set out.
constexpr int64_t kPrefetchPairs = 16;

// Loops over a tile are unrolled by request: else -O2 keeps the tile in memory
// instead of registers, at half the speed.

// Vectors of columns that one tile of `rows` rows holds in registers.
template <int kRows>
constexpr int TileVectors() {
#if HWY_TARGET == HWY_AVX3
  return 4;
#else
  return kRows == 1 ? 8 : kRows == 2 ? 4 : 2;
#endif
}

// One step of depth: acc[r][v] += x[r] * w[v].
template <int kRows, int kVectors>
HWY_INLINE void AddProducts(const float* HWY_RESTRICT x, int64_t x_stride,
                            const VF (&w)[kVectors],
                            VF (&acc)[kRows][kVectors]) {
  const F32 d;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const VF broadcast = hn::Set(d, x[r * x_stride]);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      acc[r][v] = hn::MulAdd(broadcast, w[v], acc[r][v]);
    }
  }
}

// acc += x[:, begin, end) w[begin, end) for f32 weights.
template <int kRows, int kVectors>
HWY_INLINE void AccumulateF32(const PanelProduct& p, int64_t row, int64_t col,
                              int64_t begin, int64_t end,
                              VF (&acc)[kRows][kVectors]) {
  const F32 d;
  const float* x = static_cast<const float*>(p.x) + row * p.x_stride;
  const float* panel = static_cast<const float*>(p.panel) + col;
  for (int64_t k = begin; k < end; ++k) {
    VF w[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      w[v] = hn::Load(d, panel + k * kPanelCols + v * hn::Lanes(d));
    }
    AddProducts<kRows, kVectors>(x + k, p.x_stride, w, acc);
  }
}

// The same for bf16 weights; `begin` is even.
template <int kRows, int kVectors>
HWY_INLINE void AccumulateBF16(const PanelProduct& p, int64_t row, int64_t col,
                               int64_t begin, int64_t end,
                               VF (&acc)[kRows][kVectors]) {
  const F32 d;
  const U32 du;
  const float* x = static_cast<const float*>(p.x) + row * p.x_stride;
  const uint32_t* panel = static_cast<const uint32_t*>(p.panel) + col;
  const auto odd_mask = hn::Set(du, 0xffff0000u);
  for (int64_t k = begin; k < end; k += 2) {
    const uint32_t* pairs = panel + k / 2 * kPanelCols;
    VF w[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const uint32_t* at = pairs + v * hn::Lanes(du);
      if (kRows <= 2) __builtin_prefetch(at + kPrefetchPairs * kPanelCols);
      w[v] = hn::BitCast(d, hn::ShiftLeft<16>(hn::Load(du, at)));
    }
    AddProducts<kRows, kVectors>(x + k, p.x_stride, w, acc);
    if (k + 1 == end) break;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const auto pair = hn::Load(du, pairs + v * hn::Lanes(du));
      w[v] = hn::BitCast(d, hn::And(pair, odd_mask));
    }
    AddProducts<kRows, kVectors>(x + k + 1, p.x_stride, w, acc);
  }
}

// Adds a tile to the output; the first depth block brings bias and old values.
template <int kRows, int kVectors>
HWY_INLINE void StoreTile(const PanelProduct& p, int64_t row, int64_t col,
                          bool first, const VF (&acc)[kRows][kVectors]) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  HWY_ALIGN float sums[kVectors * HWY_MAX_BYTES / sizeof(float)];
  const int64_t cols = std::min<int64_t>(p.cols - col, kVectors * lanes);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* out = p.out + (row + r) * p.out_stride + col;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v)
      hn::Store(acc[r][v], d, sums + v * lanes);
    for (int64_t c = 0; c < cols; ++c) {
      float old = !first || p.accumulate ? out[c] : 0.0f;
      if (first && p.bias != nullptr) old += p.bias[col + c];
      out[c] = old + sums[c];
    }
  }
}

template <bool kBF16, int kRows>
void MultiplyRows(const PanelProduct& p, int64_t row, int64_t begin,
                  int64_t end) {
  constexpr int kVectors = TileVectors<kRows>();
  const F32 d;
  for (int64_t col = 0; col < p.cols; col += kVectors * hn::Lanes(d)) {
    VF acc[kRows][kVectors];
#pragma GCC unroll 16
    for (auto& row_acc : acc) {
#pragma GCC unroll 16
      for (VF& a : row_acc) a = hn::Zero(d);
    }
    if constexpr (kBF16) {
      AccumulateBF16<kRows, kVectors>(p, row, col, begin, end, acc);
    } else {
      AccumulateF32<kRows, kVectors>(p, row, col, begin, end, acc);
    }
    StoreTile<kRows, kVectors>(p, row, col, begin == 0, acc);
  }
}

template <bool kBF16>
HWY_INLINE void MultiplyPanel(const PanelProduct& p) {
  int64_t begin = 0;
  do {
    const int64_t end = std::min(begin + kDepthBlock, p.depth);
    int64_t row = 0;
    for (; row + 6 <= p.rows; row += 6) {
      MultiplyRows<kBF16, 6>(p, row, begin, end);
    }
    switch (p.rows - row) {
      case 5:
        MultiplyRows<kBF16, 5>(p, row, begin, end);
        break;
      case 4:
        MultiplyRows<kBF16, 4>(p, row, begin, end);
        break;
      case 3:
        MultiplyRows<kBF16, 3>(p, row, begin, end);
        break;
      case 2:
        MultiplyRows<kBF16, 2>(p, row, begin, end);
        break;
      case 1:
        MultiplyRows<kBF16, 1>(p, row, begin, end);
        break;
    }
    begin = end;
  } while (begin < p.depth);
}

void PanelF32(const PanelProduct& product) { MultiplyPanel<false>(product); }
void PanelBF16(const PanelProduct& product) { MultiplyPanel<true>(product); }

}  // namespace HWY_NAMESPACE
}  // namespace overfill
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace overfill {

HWY_EXPORT(PanelF32);
HWY_EXPORT(PanelBF16);

void MultiplyPanelF32(const PanelProduct& product) {
  HWY_DYNAMIC_DISPATCH(PanelF32)(product);
}

void MultiplyPanelBF16(const PanelProduct& product) {
  HWY_DYNAMIC_DISPATCH(PanelBF16)(product);
}

}  // namespace overfill
#endif  // HWY_ONCE
