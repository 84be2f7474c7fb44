// How the AMX kernels use the tile registers.
#ifndef OVERFILL_KERNELS_CPU_TILE_CONFIG_H_
#define OVERFILL_KERNELS_CPU_TILE_CONFIG_H_

#include <immintrin.h>

#include <cstdint>

namespace overfill {

// A tile is 16 rows of 64 bytes: sums are 16 columns of 32 bits.
inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileCols = 16;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Row counts of the sums, registers 0 to 3, and of the inputs, 4 and 5; 1 to 16
// each. Weights, 6 and 7, have all rows.
__attribute__((target("amx-tile"))) inline void ConfigureTiles(
    int64_t rows_of_0_and_1, int64_t rows_of_2_and_3, int64_t rows_of_4,
    int64_t rows_of_5) {
  TileConfig config;
  const int64_t rows[8] = {rows_of_0_and_1, rows_of_0_and_1, rows_of_2_and_3,
                           rows_of_2_and_3, rows_of_4,       rows_of_5,
                           kTileRows,       kTileRows};
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = static_cast<uint8_t>(rows[i]);
  }
  // GCC 12 takes the instruction to read eight bytes, and would not write the
  // others.
  asm volatile("" : "+m"(config));
  _tile_loadconfig(&config);
}

// A row of zeros. To load it, with a stride of 0, is some ten times as fast as
// the instruction that clears a tile.
struct alignas(64) TileZeros {
  int32_t at[kTileCols] = {};
};
inline constexpr TileZeros kTileZeros;

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_TILE_CONFIG_H_
