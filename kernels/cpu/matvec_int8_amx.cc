// The int8 panel product of AMX: tiles of 16 rows by 16 columns, a group deep.
//
// Tile registers: sums 0 to 3, each of one row tile and one column tile, of the
// input's high halves (0 and 1) or its low ones (2 and 3); inputs 4 (high) and
// 5 (low); weights 6 and 7. A group's quad of 16 columns is 64 bytes, so that
// its 16 quads are a tile of weights as they lie in memory.
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
// The weights' way from memory is the time: a group sets out while the one
// before it is multiplied.
constexpr int64_t kPrefetchBytes = sizeof(Int8Group);

struct Totals {
  alignas(64) float at[kTileRows][kPanelCols];
};
struct TileSums {
  alignas(64) int32_t at[kTileRows][kTileCols];
};

// Adds a tile of sums to the totals of `rows` rows from `row`.
OVERFILL_AMX_INT8_TARGET inline void AddTile(
    const Int8Product& p, int64_t group, int64_t row, int64_t rows, int64_t col,
    const TileSums& high, const TileSums& low, Totals& totals) {
  const __m512 scales = LoadScales16(&p.panel[group].scales[col]);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = (row + r) * p.num_groups + group;
    const __m512i sums =
        AddHigh16(_mm512_load_si512(low.at[r]), _mm512_load_si512(high.at[r]));
    const __m512i exact =
        _mm512_sub_epi32(sums, _mm512_set1_epi32(p.x_sums[at]));
    AddScaled16(exact, scales, p.x_scales[at], &totals.at[r][col]);
  }
}

OVERFILL_AMX_INT8_TARGET inline void Prefetch(const char* group) {
  for (size_t line = 0; line < sizeof(Int8Group); line += 64) {
    _mm_prefetch(group + kPrefetchBytes + line, _MM_HINT_T0);
  }
}

// One group of `rows` rows from `row`.
OVERFILL_AMX_INT8_TARGET inline void MultiplyGroup(const Int8Product& p,
                                                   int64_t group, int64_t row,
                                                   int64_t rows,
                                                   TileSums (&sums)[4],
                                                   Totals& totals) {
  const int64_t x_stride = p.num_groups * kGroupDepth;
  const int64_t x = row * x_stride + group * kGroupDepth;
  const uint8_t* q = &p.panel[group].q[0][0][0];
  constexpr int64_t kSumStride = sizeof(sums[0].at[0]);
  _tile_loadd(4, p.x_high + x, x_stride);
  _tile_loadd(5, p.x_low + x, x_stride);
  for (int64_t col = 0; col < kPanelCols; col += 2 * kTileCols) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(6, q + col * 4, kQuadStride);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(2, 5, 6);
    _tile_loadd(7, q + col * 4 + 64, kQuadStride);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(3, 5, 7);
    _tile_stored(0, sums[0].at, kSumStride);
    _tile_stored(1, sums[1].at, kSumStride);
    _tile_stored(2, sums[2].at, kSumStride);
    _tile_stored(3, sums[3].at, kSumStride);
    AddTile(p, group, row, rows, col, sums[0], sums[2], totals);
    AddTile(p, group, row, rows, col + kTileCols, sums[1], sums[3], totals);
  }
}

// A tile of `rows` rows from `row`.
OVERFILL_AMX_INT8_TARGET void MultiplyRows(const Int8Product& p, int64_t row,
                                           int64_t rows) {
  ConfigureTiles(rows, rows, rows, rows);
  Totals totals;
  for (int64_t r = 0; r < rows; ++r) {
    std::fill_n(totals.at[r], kPanelCols, 0.0f);
  }
  TileSums sums[4];
  for (int64_t place = 0; place < p.num_groups; ++place) {
    const int64_t group = GroupAt(place, p.num_groups);
    Prefetch(reinterpret_cast<const char*>(&p.panel[group]));
    MultiplyGroup(p, group, row, rows, sums, totals);
  }
  for (int64_t r = 0; r < rows; ++r) StoreTotals(p, row + r, totals.at[r]);
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
