// Views of numbers in device memory, and of tensors in host files.
#ifndef OVERFILL_KERNELS_TENSOR_H_
#define OVERFILL_KERNELS_TENSOR_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace overfill {

// kInt8 is of weights alone, with a scale for each group of a row.
enum class DType : uint8_t { kF32, kBF16, kF16, kInt8 };

constexpr int64_t DTypeBytes(DType dtype) {
  return dtype == DType::kF32 ? 4 : dtype == DType::kInt8 ? 1 : 2;
}
constexpr const char* DTypeName(DType dtype) {
  return dtype == DType::kF32    ? "f32"
         : dtype == DType::kBF16 ? "bf16"
         : dtype == DType::kF16  ? "f16"
                                 : "int8";
}

// bf16 as its bits; rounding is to nearest even, a NaN stays a NaN.
constexpr uint16_t BFloat16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x0040u;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
constexpr float FloatFromBFloat16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// f16 (IEEE binary16) from its bits; exact.
constexpr float FloatFromFloat16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t fraction = bits & 0x3ffu;
  if (exponent == 0) {  // zero, or a multiple of 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t biased = exponent == 0x1fu ? 0xffu : exponent + 112;
  return std::bit_cast<float>(sign | biased << 23 | fraction << 13);
}

// A tensor in host memory, usually inside a mapped checkpoint file: row-major,
// dense, any alignment. Owns nothing.
struct HostTensor {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

// Rows of numbers in device memory: row r begins at data + r * stride elements
// and has `cols` elements in use. Owns nothing.
struct Matrix {
  void* data = nullptr;  // [rows, stride] of dtype
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // >= cols, in elements

  // The first `count` rows of this matrix.
  Matrix Rows(int64_t count) const {
    return {data, dtype, count, cols, stride};
  }
  float* f32() const { return static_cast<float*>(data); }
  uint16_t* bf16() const { return static_cast<uint16_t*>(data); }
};

// Paged KV in device memory. A block is contiguous over all layers; a layer's
// part of a block is one contiguous slice. Owns nothing.
struct KvView {
  void* data = nullptr;  // [num_blocks, num_layers, 2 (k, v), num_kv_heads,
                         //  block_tokens, head_dim] of dtype
  DType dtype = DType::kBF16;
  int32_t num_blocks = 0;
  int32_t num_layers = 0;
  int32_t num_kv_heads = 0;
  int32_t block_tokens = 0;
  int32_t head_dim = 0;

  // Elements of one kv_head's [block_tokens, head_dim] tile.
  int64_t head_elements() const { return int64_t{block_tokens} * head_dim; }
  int64_t layer_elements() const { return 2 * num_kv_heads * head_elements(); }
  int64_t block_elements() const { return num_layers * layer_elements(); }
  int64_t block_bytes() const { return block_elements() * DTypeBytes(dtype); }
  // Element offset of the tile [block_tokens, head_dim]; kv: 0 = K, 1 = V.
  int64_t TileOffset(int32_t block, int32_t layer, int kv,
                     int32_t kv_head) const {
    return block * block_elements() + layer * layer_elements() +
           (int64_t{kv} * num_kv_heads + kv_head) * head_elements();
  }
};

}  // namespace overfill

#endif  // OVERFILL_KERNELS_TENSOR_H_
