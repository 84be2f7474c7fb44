// Products of int8 weights: symmetric, with a scale for each group of a row.
//
// A weight is scale * q, q a whole number of -127 to 127. An input is scale *
// (128 * high + low) with two of them, 15 bits in all: in 8 bits the inputs'
// rounding would add more error than the weights' does, and in decode the
// weights' way from memory is the time. The products of a group are summed
// exactly; the groups' sums are scaled and added in f32, in one order. So every
// kernel here gives the same bits, whatever the instruction set and the rows
// beside a row.
#ifndef OVERFILL_KERNELS_CPU_INT8_H_
#define OVERFILL_KERNELS_CPU_INT8_H_

#include <cstdint>

#include "kernels/cpu/matvec.h"

namespace overfill {

// Depths that share a scale: a tile's of AMX.
inline constexpr int64_t kGroupDepth = 64;

// One group of a panel. Quads of depths lie together, as the dot products of
// AVX-512 VNNI and AMX take them.
struct alignas(64) Int8Group {
  uint16_t scales[kPanelCols];  // bf16
  int8_t q[kGroupDepth / 4][kPanelCols][4];
};
static_assert(sizeof(Int8Group) == 4224);

// The group that comes at `place` in the one order of sums: first and second
// half take turns, since two streams come from memory faster than one.
constexpr int64_t GroupAt(int64_t place, int64_t num_groups) {
  return place / 2 + (place % 2 == 0 ? 0 : (num_groups + 1) / 2);
}

// out[r, c] (+)= sum_g x_scales[r, g] * scale[g, c] * sum_k x[r, k] q[k, c],
// + bias[c], for c < cols, where x = 128 * x_high + x_low.
struct Int8Product {
  const int8_t* x_high = nullptr;   // [rows, num_groups * kGroupDepth]
  const int8_t* x_low = nullptr;    // [rows, num_groups * kGroupDepth]
  const float* x_scales = nullptr;  // [rows, num_groups]
  // 128 times the sum of the group's 128 * high + low: for VNNI, which takes
  // one factor without a sign, and is given q + 128.
  const int32_t* x_sums = nullptr;  // [rows, num_groups]
  int64_t rows = 0;
  const Int8Group* panel = nullptr;  // [num_groups]
  int64_t num_groups = 0;
  float* out = nullptr;  // [rows, out_stride]
  int64_t out_stride = 0;
  int64_t cols = kPanelCols;    // columns in use, 1..kPanelCols
  const float* bias = nullptr;  // [cols] or null
  bool accumulate = false;
};

void MultiplyPanelInt8Avx2(const Int8Product& product);
// Needs AVX-512 VNNI.
void MultiplyPanelInt8Vnni(const Int8Product& product);
// Needs AMX INT8, and the process's permission to use tiles.
void MultiplyPanelInt8Amx(const Int8Product& product);

// x [depth] in groups; the last one's end is zeros. Where a group holds a NaN
// or an infinity, its scale is NaN.
void QuantizeInput(const float* x, int64_t depth, int8_t* high, int8_t* low,
                   float* scales, int32_t* sums);
// The same for weights, in 8 bits. Scales are bf16, rounded away from zero so
// that no q is larger than 127.
void QuantizeWeights(const float* w, int64_t depth, int8_t* q,
                     uint16_t* scales);

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_INT8_H_
