// Products with one panel of packed weights.
#ifndef OVERFILL_KERNELS_CPU_MATVEC_H_
#define OVERFILL_KERNELS_CPU_MATVEC_H_

#include <cstdint>

namespace overfill {

// Output columns of a panel.
inline constexpr int64_t kPanelCols = 64;
// In bf16 a panel's depth K is padded with zeros to a multiple of this.
inline constexpr int64_t kPanelDepth = 32;

// out[r, c] (+)= sum_k x[r, k] w[k, c] + bias[c] for c < cols. Where x is f32,
// each element is summed over k in one fixed order, whatever `rows` is.
struct PanelProduct {
  const void* x = nullptr;  // [rows, x_stride], f32 or bf16
  // For bf16 x: the bf16 of what x's rounding left over, [rows, x_stride]; or
  // null, and x is all there is.
  const uint16_t* x_rest = nullptr;
  int64_t x_stride = 0;
  int64_t rows = 0;
  // f32: [depth][kPanelCols]. bf16: [depth / 2][kPanelCols][2], so that the
  // pair k, k + 1 of a column lies in 32 bits.
  const void* panel = nullptr;
  int64_t depth = 0;     // K; for bf16 weights the padding is not counted
  float* out = nullptr;  // [rows, out_stride]
  int64_t out_stride = 0;
  int64_t cols = kPanelCols;    // columns in use, 1..kPanelCols
  const float* bias = nullptr;  // [cols] or null
  bool accumulate = false;
};

// f32 x, f32 weights.
void MultiplyPanelF32(const PanelProduct& product);
// f32 x, bf16 weights widened to f32.
void MultiplyPanelBF16(const PanelProduct& product);
// bf16 x with rows padded with zeros to kPanelDepth, bf16 weights. Needs
// AVX-512 BF16.
void MultiplyPanelBF16Dot(const PanelProduct& product);
// The same for up to kMaxPanelRows rows, with x and x_rest in tiles:
// [rows / kRowsTogether][x_stride / kPanelDepth][kRowsTogether][kPanelDepth].
// Reads a whole number of kRowsTogether rows; what the others hold is of no
// matter. Needs AMX BF16, and the process's permission to use tiles.
inline constexpr int64_t kMaxPanelRows = 256;
inline constexpr int64_t kRowsTogether = 16;
void MultiplyPanelAmx(const PanelProduct& product);

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_MATVEC_H_
