// The int8 panel product of AMX: tiles of 16 rows by 16 columns, a group deep.
//
// Tile registers: sums of the input's high halves 0 and 2, of its low halves 1
// and 3, for even and for odd column tiles; inputs 4 (high) and 5 (low);
// weights 6 and 7, for even and odd. A group's quad of 16 columns is 64 bytes,
// so that its 16 quads are a tile of weights as they lie in memory.
#include <immintrin.h>

#include <algorithm>

#include "kernels/cpu/int8.h"
#include "kernels/cpu/int8_store.h"
#include "kernels/cpu/tile_config.h"

#define OVERFILL_AMX_INT8_TARGET \
  __attribute__((                \
      target("avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-int8")))

namespace overfill {
namespace {

static_assert(kGroupDepth == 64 && kPanelCols == 64);
constexpr int64_t kQuadStride = kPanelCols * 4;  // bytes
struct Totals {
  alignas(64) float at[kTileRows][kPanelCols];
};
struct TileSums {
  alignas(64) int32_t at[kTileRows][kTileCols];
};
// A group's sums of one row tile: [high, low][column tile].
struct GroupSums {
  TileSums at[2][4];
};

// Adds a column tile of a group's sums of `rows` rows from `row` to their
// totals.
OVERFILL_AMX_INT8_TARGET inline void AddColumns(const Int8Product& p,
                                                int64_t group, int64_t row,
                                                int64_t rows, int tile,
                                                const GroupSums& sums,
                                                Totals& totals) {
  const int64_t col = tile * kTileCols;
  const __m512 scales = LoadScales16(&p.panel[group].scales[col]);
  const float* x_scales = p.x_scales + row * p.num_groups + group;
  for (int64_t r = 0; r < rows; ++r) {
    const __m512i both = AddHigh16(_mm512_load_si512(sums.at[1][tile].at[r]),
                                   _mm512_load_si512(sums.at[0][tile].at[r]));
    AddScaled16(both, scales, x_scales[r * p.num_groups], &totals.at[r][col]);
  }
}

// Asks for a fourth of the next group.
// GCC would take the function for one without effect, and drop the call.
__attribute__((always_inline)) OVERFILL_AMX_INT8_TARGET inline void
PrefetchQuarter(const Int8Group& group, int quarter) {
  constexpr int kLines = sizeof(Int8Group) / 64;
  const auto* next = reinterpret_cast<const char*>(&group + 1);
  const int begin = kLines * quarter / 4, end = kLines * (quarter + 1) / 4;
#pragma GCC unroll 32
  for (int line = begin; line < end; ++line) {
    _mm_prefetch(next + line * 64, _MM_HINT_T0);
  }
}

constexpr int64_t kSumStride = kTileCols * sizeof(int32_t);

// Sums of an even column tile; the inputs are loaded.
OVERFILL_AMX_INT8_TARGET inline void MultiplyEven(const Int8Group& group,
                                                  int tile) {
  PrefetchQuarter(group, tile);
  _tile_loadd(0, kTileZeros.at, 0);
  _tile_loadd(1, kTileZeros.at, 0);
  _tile_loadd(6, &group.q[0][tile * kTileCols][0], kQuadStride);
  _tile_dpbssd(0, 4, 6);
  _tile_dpbssd(1, 5, 6);
}
OVERFILL_AMX_INT8_TARGET inline void StoreEven(int tile, GroupSums& sums) {
  _tile_stored(0, sums.at[0][tile].at, kSumStride);
  _tile_stored(1, sums.at[1][tile].at, kSumStride);
}
// The same of an odd one.
OVERFILL_AMX_INT8_TARGET inline void MultiplyOdd(const Int8Group& group,
                                                 int tile) {
  PrefetchQuarter(group, tile);
  _tile_loadd(2, kTileZeros.at, 0);
  _tile_loadd(3, kTileZeros.at, 0);
  _tile_loadd(7, &group.q[0][tile * kTileCols][0], kQuadStride);
  _tile_dpbssd(2, 4, 7);
  _tile_dpbssd(3, 5, 7);
}
OVERFILL_AMX_INT8_TARGET inline void StoreOdd(int tile, GroupSums& sums) {
  _tile_stored(2, sums.at[0][tile].at, kSumStride);
  _tile_stored(3, sums.at[1][tile].at, kSumStride);
}

// A tile of `rows` rows from `row`.
OVERFILL_AMX_INT8_TARGET void MultiplyRows(const Int8Product& p, int64_t row,
                                           int64_t rows) {
  ConfigureTiles(rows, rows, rows, rows);
  Totals totals;
  for (int64_t r = 0; r < rows; ++r) {
    std::fill_n(totals.at[r], kPanelCols, 0.0f);
  }
  // What a product takes to end is long: each tile of sums is stored while the
  // next one is made, and added while the next group is.
  const int64_t x_stride = p.num_groups * kGroupDepth;
  const int64_t last = p.num_groups - 1;
  GroupSums sums[2];
  for (int64_t place = 0; place < p.num_groups; ++place) {
    const int64_t index = GroupAt(place, p.num_groups);
    const Int8Group& group = p.panel[index];
    GroupSums& now = sums[place % 2];
    GroupSums& before = sums[(place + 1) % 2];
    const int64_t x = row * x_stride + index * kGroupDepth;
    _tile_loadd(4, p.x_high + x, x_stride);
    _tile_loadd(5, p.x_low + x, x_stride);
    const int64_t old = place > 0 ? GroupAt(place - 1, p.num_groups) : -1;
    const auto add = [&](int tile) OVERFILL_AMX_INT8_TARGET {
      if (old >= 0) AddColumns(p, old, row, rows, tile, before, totals);
    };
    MultiplyEven(group, 0);
    if (old >= 0) StoreOdd(3, before);
    add(0);
    MultiplyOdd(group, 1);
    StoreEven(0, now);
    add(1);
    MultiplyEven(group, 2);
    StoreOdd(1, now);
    add(2);
    MultiplyOdd(group, 3);
    StoreEven(2, now);
    add(3);
  }
  StoreOdd(3, sums[last % 2]);
  for (int tile = 0; tile < 4; ++tile) {
    AddColumns(p, GroupAt(last, p.num_groups), row, rows, tile, sums[last % 2],
               totals);
  }
  for (int64_t r = 0; r < rows; ++r) StoreTotals16(p, row + r, totals.at[r]);
}

}  // namespace

OVERFILL_AMX_INT8_TARGET void MultiplyPanelInt8Amx(const Int8Product& p) {
  for (int64_t row = 0; row < p.rows; row += kTileRows) {
    MultiplyRows(p, row, std::min(p.rows - row, kTileRows));
  }
  // Tiles in use are kept over each change of threads.
  _tile_release();
}

}  // namespace overfill
