// The AMX panel product: tiles of 16 rows by 16 columns, 32 deep.
//
// Tile registers, by row tile r and column tile v: sums 0..3, inputs 4 and 5,
// weights 6 and 7. A panel's pair k, k + 1 of 16 columns is 64 bytes, so that
// 16 pairs are a tile of weights as they lie in memory.
#include <immintrin.h>

#include <algorithm>

#include "base/checked_math.h"
#include "kernels/cpu/matvec.h"
#include "kernels/cpu/tile_config.h"

#define OVERFILL_AMX_TARGET \
  __attribute__((           \
      target("avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-bf16")))

namespace overfill {
namespace {

constexpr int64_t kTileDepth = 32;
static_assert(kPanelDepth == kTileDepth && kRowsTogether == kTileRows);
constexpr int64_t kRowBytes = kTileDepth * 2;  // of a tile of the input
static_assert(kPanelCols == 4 * kTileCols);
constexpr int64_t kPanelPairStride = kPanelCols * 4;        // bytes
constexpr int64_t kSumStride = kPanelCols * sizeof(float);  // bytes

// Of two column tiles, so much depth stays in the first cache.
constexpr int64_t kDepthBlock = 512;

OVERFILL_AMX_TARGET inline void ZeroSums() {
  _tile_loadd(0, kTileZeros.at, 0);
  _tile_loadd(1, kTileZeros.at, 0);
  _tile_loadd(2, kTileZeros.at, 0);
  _tile_loadd(3, kTileZeros.at, 0);
}

// Writes `rows` of sums from `row`, with the bias and the old values.
OVERFILL_AMX_TARGET void Store(const PanelProduct& p, int64_t row, int64_t rows,
                               const float (*sums)[kPanelCols]) {
  for (int64_t r = 0; r < rows; ++r) {
    float* out = p.out + (row + r) * p.out_stride;
    for (int64_t col = 0; col < p.cols; col += kTileCols) {
      const int64_t left = p.cols - col;
      const __mmask16 mask =
          left >= kTileCols ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      __m512 sum = _mm512_load_ps(&sums[r][col]);
      if (p.accumulate) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, out + col));
      }
      if (p.bias != nullptr) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, p.bias + col));
      }
      _mm512_mask_storeu_ps(out + col, mask, sum);
    }
  }
}

// Asks for a fourth of the panel's next `kTileDepth` depths.
// GCC would take the function for one without effect, and drop the call.
__attribute__((always_inline)) OVERFILL_AMX_TARGET inline void PrefetchQuarter(
    const char* next, int quarter) {
  constexpr int64_t kBytes = kTileDepth * kPanelCols * 2 / 4;
#pragma GCC unroll 16
  for (int64_t line = 0; line < kBytes; line += 64) {
    _mm_prefetch(next + quarter * kBytes + line, _MM_HINT_T0);
  }
}

// Depths [k, k + kTileDepth) of one row tile, all columns; asks for those that
// follow.
template <bool kRest>
OVERFILL_AMX_TARGET inline void AddOneTile(const uint16_t* x,
                                           const uint16_t* x_rest,
                                           const char* w) {
  const char* next = w + kTileDepth * kPanelCols * 2;
  _tile_loadd(4, x, kRowBytes);
  if constexpr (kRest) _tile_loadd(5, x_rest, kRowBytes);
  PrefetchQuarter(next, 0);
  _tile_loadd(6, w, kPanelPairStride);
  if constexpr (kRest) _tile_dpbf16ps(0, 5, 6);
  _tile_dpbf16ps(0, 4, 6);
  PrefetchQuarter(next, 1);
  _tile_loadd(7, w + 64, kPanelPairStride);
  if constexpr (kRest) _tile_dpbf16ps(1, 5, 7);
  _tile_dpbf16ps(1, 4, 7);
  PrefetchQuarter(next, 2);
  _tile_loadd(6, w + 128, kPanelPairStride);
  if constexpr (kRest) _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(2, 4, 6);
  PrefetchQuarter(next, 3);
  _tile_loadd(7, w + 192, kPanelPairStride);
  if constexpr (kRest) _tile_dpbf16ps(3, 5, 7);
  _tile_dpbf16ps(3, 4, 7);
}

// One row tile: all columns at once, so that the panel is read in one go, and
// its depth in two streams, which come faster than one.
template <bool kRest>
OVERFILL_AMX_TARGET void MultiplyOneTile(const PanelProduct& p, int64_t row,
                                         int64_t rows, int64_t depth) {
  const uint16_t* x = static_cast<const uint16_t*>(p.x) + row * p.x_stride;
  const uint16_t* x_rest = kRest ? p.x_rest + row * p.x_stride : nullptr;
  const char* panel = static_cast<const char*>(p.panel);
  const int64_t middle = RoundUp(depth / 2, kTileDepth);
  ConfigureTiles(rows, rows, rows, rows);
  ZeroSums();
  const auto add = [&](int64_t k) OVERFILL_AMX_TARGET {
    AddOneTile<kRest>(x + k * kTileRows,
                      kRest ? x_rest + k * kTileRows : nullptr,
                      panel + k * kPanelCols * 2);
  };
  for (int64_t k = 0; k < middle; k += kTileDepth) {
    add(k);
    if (k + middle < depth) add(k + middle);
  }
  alignas(64) float sums[kTileRows][kPanelCols];
  _tile_stored(0, &sums[0][0], kSumStride);
  _tile_stored(1, &sums[0][kTileCols], kSumStride);
  _tile_stored(2, &sums[0][2 * kTileCols], kSumStride);
  _tile_stored(3, &sums[0][3 * kTileCols], kSumStride);
  Store(p, row, rows, sums);
}

// For few rows: a row tile after the other, the first one at the pace of
// memory, the second one from the cache.
template <bool kRest>
OVERFILL_AMX_TARGET void MultiplyFewRows(const PanelProduct& p) {
  const int64_t depth = RoundUp(p.depth, kPanelDepth);
  for (int64_t row = 0; row < p.rows; row += kTileRows) {
    MultiplyOneTile<kRest>(p, row, std::min(p.rows - row, kTileRows), depth);
  }
}

// Sums of all rows, on their way from the tiles to the output.
struct RowSums {
  alignas(64) float at[kMaxPanelRows][kPanelCols];
};

// One step of depth of kRowTiles row tiles and two column tiles, whose weights
// are in 6 and 7.
template <int kRowTiles>
OVERFILL_AMX_TARGET inline void AddTiles(const uint16_t* x, int64_t x_stride) {
  _tile_loadd(4, x, kRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (kRowTiles == 2) {
    _tile_loadd(5, x + kTileRows * x_stride, kRowBytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// Depths [begin, end) of kRowTiles row tiles from `row` and of two column tiles
// from `col`. The first depths begin the sums.
template <int kRowTiles, bool kRest>
OVERFILL_AMX_TARGET inline void AddBlock(const PanelProduct& p, int64_t row,
                                         int64_t col, int64_t begin,
                                         int64_t end, RowSums& sums) {
  const auto* x = static_cast<const uint16_t*>(p.x) + row * p.x_stride;
  const uint16_t* x_rest = kRest ? p.x_rest + row * p.x_stride : nullptr;
  float* top = &sums.at[row][col];
  float* bottom = &sums.at[row + (kRowTiles - 1) * kTileRows][col];
  if (begin == 0) {
    ZeroSums();
  } else {
    _tile_loadd(0, top, kSumStride);
    _tile_loadd(1, top + kTileCols, kSumStride);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(2, bottom, kSumStride);
      _tile_loadd(3, bottom + kTileCols, kSumStride);
    }
  }
  for (int64_t k = begin; k < end; k += kTileDepth) {
    const char* w =
        static_cast<const char*>(p.panel) + k * kPanelCols * 2 + col * 4;
    _tile_loadd(6, w, kPanelPairStride);
    _tile_loadd(7, w + 64, kPanelPairStride);
    if constexpr (kRest) {
      AddTiles<kRowTiles>(x_rest + k * kTileRows, p.x_stride);
    }
    AddTiles<kRowTiles>(x + k * kTileRows, p.x_stride);
  }
  _tile_stored(0, top, kSumStride);
  _tile_stored(1, top + kTileCols, kSumStride);
  if constexpr (kRowTiles == 2) {
    _tile_stored(2, bottom, kSumStride);
    _tile_stored(3, bottom + kTileCols, kSumStride);
  }
}

// For many rows: the weights of kDepthBlock depths and two column tiles stay in
// the first cache while all rows pass.
template <bool kRest>
OVERFILL_AMX_TARGET void MultiplyManyRows(const PanelProduct& p) {
  const int64_t depth = RoundUp(p.depth, kPanelDepth);
  const int64_t rows = RoundUp(p.rows, kTileRows);
  ConfigureTiles(kTileRows, kTileRows, kTileRows, kTileRows);
  RowSums sums;
  for (int64_t col = 0; col < p.cols; col += 2 * kTileCols) {
    for (int64_t begin = 0; begin < depth; begin += kDepthBlock) {
      const int64_t end = std::min(begin + kDepthBlock, depth);
      int64_t row = 0;
      for (; row + 2 * kTileRows <= rows; row += 2 * kTileRows) {
        AddBlock<2, kRest>(p, row, col, begin, end, sums);
      }
      if (row < rows) AddBlock<1, kRest>(p, row, col, begin, end, sums);
    }
  }
  Store(p, 0, p.rows, sums.at);
}

template <bool kRest>
OVERFILL_AMX_TARGET void MultiplyAllRows(const PanelProduct& p) {
  if (p.rows <= 2 * kTileRows) {
    MultiplyFewRows<kRest>(p);
  } else {
    MultiplyManyRows<kRest>(p);
  }
  // Tiles in use are kept over each change of threads.
  _tile_release();
}

}  // namespace

void MultiplyPanelAmx(const PanelProduct& p) {
  if (p.x_rest != nullptr) {
    MultiplyAllRows<true>(p);
  } else {
    MultiplyAllRows<false>(p);
  }
}

}  // namespace overfill
