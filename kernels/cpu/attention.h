// Attention of a tile of queries over a range of paged KV.
#ifndef OVERFILL_KERNELS_CPU_ATTENTION_H_
#define OVERFILL_KERNELS_CPU_ATTENTION_H_

#include <cstdint>

#include "kernels/tensor.h"

namespace overfill {

// Queries of a tile at most, and KV tokens that it looks at in one piece.
inline constexpr int32_t kTileQueries = 64;
inline constexpr int32_t kTileTokens = 32;

// A tile's positions are summed in parts, each part piece by piece from
// nothing, and the parts are added up in order. A part or token that a row may
// not see changes nothing in its sums, so a row's result depends on where the
// parts lie and on nothing else: not on the tile's other rows, nor on whether
// the parts were added up here or by MergePartials.

// The queries are consecutive rows of one sequence, times the `group` query
// heads that share one KV head: query r * group + g is row r, head g.
struct AttentionTile {
  const float* q = nullptr;  // first row's first head
  int64_t q_stride = 0;      // elements between rows; heads are dense
  int32_t num_rows = 0;      // num_rows * group <= kTileQueries
  int32_t group = 0;
  int32_t head_dim = 0;        // D
  int32_t first_position = 0;  // row r attends to [0, first_position + r]
  float scale = 0;

  const void* k = nullptr;  // block 0's tile of this layer and head
  const void* v = nullptr;
  DType kv_dtype = DType::kBF16;
  int64_t block_stride = 0;  // elements between blocks
  int32_t block_tokens = 0;
  const int32_t* block_table = nullptr;
  int32_t kv_begin = 0;     // these of the positions, not empty
  int32_t kv_end = 0;       // at most first_position + num_rows
  int32_t part_tokens = 0;  // parts begin at kv_begin and every so many later

  float* work = nullptr;  // AttentionWorkFloats(head_dim), 64-byte aligned

  // The whole result where kv covers all positions: [row][group][D].
  float* out = nullptr;
  int64_t out_stride = 0;  // elements between rows
  // Or each part's share, to be merged: [part][query][kPartialHeader + D]
  // holding the largest score, the sum of exp(score - largest), and the sum of
  // exp(score - largest) v.
  float* partials = nullptr;
  int64_t part_stride = 0;  // floats between parts
};

inline constexpr int64_t kPartialHeader = 2;

int64_t AttentionWorkFloats(int32_t head_dim);

void AttendTile(const AttentionTile& tile);

// The same for a tile of one row, group <= kMaxRowQueries, head_dim a multiple
// of 16 and a single part, in another order of sums: faster there.
inline constexpr int32_t kMaxRowQueries = 8;
void AttendRow(const AttentionTile& tile);

// Stands for "no score yet": finite, so that differences stay numbers.
inline constexpr float kNoScore = -1e30f;

// out[d] = the softmax-weighted mean over `num_parts` partials, which lie
// `part_stride` floats apart.
void MergePartials(const float* partials, int64_t part_stride,
                   int32_t num_parts, int32_t head_dim, float* out);

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_ATTENTION_H_
