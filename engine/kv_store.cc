#include "engine/kv_store.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/checked_math.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

constexpr int64_t kMaxBlockBytes = int64_t{1} << 36;

absl::StatusOr<int64_t> LayoutBytes(const KvLayout& layout, int64_t tokens) {
  if (layout.num_layers < 1 || layout.num_kv_heads < 1 ||
      layout.block_tokens < 1 || layout.head_dim < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "KV layout: ", layout.num_layers, " layers, ", layout.num_kv_heads,
        " KV heads, ", layout.block_tokens, " tokens per block, head_dim ",
        layout.head_dim, ": each must be at least 1"));
  }
  if (layout.dtype != DType::kF32 && layout.dtype != DType::kBF16) {
    return absl::InvalidArgumentError(absl::StrCat("KV layout: dtype ",
                                                   DTypeName(layout.dtype),
                                                   " is neither f32 nor bf16"));
  }
  const std::array<int64_t, 6> factors = {
      2,      layout.num_layers, layout.num_kv_heads,
      tokens, layout.head_dim,   DTypeBytes(layout.dtype)};
  const auto bytes = CheckedProduct(factors);
  if (!bytes || *bytes > static_cast<uint64_t>(kMaxBlockBytes)) {
    return absl::InvalidArgumentError("KV layout: a block is over 2^36 bytes");
  }
  return static_cast<int64_t>(*bytes);
}

KvView MakeView(const KvLayout& layout, void* data, int32_t num_blocks) {
  return {.data = data,
          .dtype = layout.dtype,
          .num_blocks = num_blocks,
          .num_layers = layout.num_layers,
          .num_kv_heads = layout.num_kv_heads,
          .block_tokens = layout.block_tokens,
          .head_dim = layout.head_dim};
}

}  // namespace

DType KvDTypeOf(DType weights) {
  return weights == DType::kF32 ? DType::kF32 : DType::kBF16;
}

KvLayout KvLayoutOf(const ModelConfig& config, DType dtype,
                    int32_t block_tokens) {
  return {.dtype = dtype,
          .num_layers = config.num_layers,
          .num_kv_heads = config.num_kv_heads,
          .block_tokens = block_tokens,
          .head_dim = config.head_dim};
}

absl::StatusOr<int64_t> KvTokenBytes(const KvLayout& layout) {
  return LayoutBytes(layout, 1);
}

absl::StatusOr<int64_t> KvBlockBytes(const KvLayout& layout) {
  return LayoutBytes(layout, layout.block_tokens);
}

absl::StatusOr<std::unique_ptr<KvStore>> KvStore::Create(
    Device& device, const KvLayout& layout, int64_t capacity_bytes) {
  ASSIGN_OR_RETURN(const int64_t block_bytes, KvBlockBytes(layout));
  if (capacity_bytes < block_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "KV cache: ", capacity_bytes, " bytes do not hold one block of ",
        block_bytes, " bytes (", layout.block_tokens, " tokens)"));
  }
  const int64_t num_blocks = std::min<int64_t>(
      capacity_bytes / block_bytes, std::numeric_limits<int32_t>::max());
  ASSIGN_OR_RETURN(auto buffer, device.Allocate(num_blocks * block_bytes));
  return std::unique_ptr<KvStore>(
      new KvStore(layout, std::move(buffer), static_cast<int32_t>(num_blocks)));
}

KvStore::KvStore(const KvLayout& layout, std::unique_ptr<Buffer> buffer,
                 int32_t num_blocks)
    : layout_(layout),
      buffer_(std::move(buffer)),
      view_(MakeView(layout, buffer_->data(), num_blocks)) {}

}  // namespace overfill
