// Moving KV between stores.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "kernels/cpu/checks.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/linear.h"

namespace overfill {
namespace {

// Rows of a projection at once.
constexpr int64_t kProjectionRows = 256;

void CheckLayers(const KvView& source, const KvView& destination,
                 std::span<const int32_t> source_layers) {
  OVERFILL_CHECK_EQ(static_cast<int64_t>(source_layers.size()),
                    int64_t{destination.num_layers});
  for (int32_t layer : source_layers) {
    OVERFILL_CHECK(layer >= 0 && layer < source.num_layers)
        << "layer " << layer;
  }
  OVERFILL_CHECK_EQ(source.block_tokens, destination.block_tokens);
}

absl::Status CheckCopies(const char* op, const KvView& source,
                         const KvView& destination,
                         std::span<const BlockCopy> blocks) {
  for (const BlockCopy& copy : blocks) {
    if (copy.source < 0 || copy.source >= source.num_blocks ||
        copy.destination < 0 || copy.destination >= destination.num_blocks ||
        copy.num_tokens < 0 || copy.num_tokens > source.block_tokens) {
      return absl::InternalError(absl::StrCat(op, ": ", copy.num_tokens,
                                              " tokens of block ", copy.source,
                                              " to block ", copy.destination));
    }
  }
  return absl::OkStatus();
}

// One layer's K or V of `copy` as rows [num_tokens, heads * head_dim] f32.
void GatherTokens(const KvView& kv, int32_t block, int32_t layer, int which,
                  int32_t num_tokens, float* rows) {
  const int64_t row_elements = int64_t{kv.num_kv_heads} * kv.head_dim;
  for (int32_t head = 0; head < kv.num_kv_heads; ++head) {
    const int64_t tile = kv.TileOffset(block, layer, which, head);
    for (int32_t token = 0; token < num_tokens; ++token) {
      const int64_t from = tile + int64_t{token} * kv.head_dim;
      float* to = rows + token * row_elements + head * kv.head_dim;
      if (kv.dtype == DType::kF32) {
        std::memcpy(to, static_cast<const float*>(kv.data) + from,
                    kv.head_dim * sizeof(float));
      } else {
        WidenBF16(static_cast<const uint16_t*>(kv.data) + from, kv.head_dim,
                  to);
      }
    }
  }
}

void ScatterTokens(const float* rows, const KvView& kv, int32_t block,
                   int32_t layer, int which, int32_t num_tokens) {
  const int64_t row_elements = int64_t{kv.num_kv_heads} * kv.head_dim;
  for (int32_t head = 0; head < kv.num_kv_heads; ++head) {
    const int64_t tile = kv.TileOffset(block, layer, which, head);
    for (int32_t token = 0; token < num_tokens; ++token) {
      const float* from = rows + token * row_elements + head * kv.head_dim;
      const int64_t to = tile + int64_t{token} * kv.head_dim;
      if (kv.dtype == DType::kF32) {
        std::memcpy(static_cast<float*>(kv.data) + to, from,
                    kv.head_dim * sizeof(float));
      } else {
        RoundToBF16(from, kv.head_dim, static_cast<uint16_t*>(kv.data) + to);
      }
    }
  }
}

Matrix DenseMatrix(float* data, int64_t rows, int64_t cols) {
  return {data, DType::kF32, rows, cols, cols};
}

}  // namespace

void CpuOps::CopyBlocks(Stream& stream, const KvView& source,
                        const KvView& destination,
                        std::span<const int32_t> source_layers,
                        std::span<const BlockCopy> blocks) {
  CpuStream& cpu = AsCpuStream(stream);
  CheckLayers(source, destination, source_layers);
  OVERFILL_CHECK(source.dtype == destination.dtype);
  OVERFILL_CHECK_EQ(source.num_kv_heads, destination.num_kv_heads);
  OVERFILL_CHECK_EQ(source.head_dim, destination.head_dim);
  if (!cpu.ok()) return;
  if (absl::Status status =
          CheckCopies("CopyBlocks", source, destination, blocks);
      !status.ok()) {
    return cpu.Fail(std::move(status));
  }
  const int64_t element_bytes = DTypeBytes(source.dtype);
  const auto copy_elements = [&](int64_t from, int64_t to, int64_t count) {
    std::memcpy(static_cast<char*>(destination.data) + to * element_bytes,
                static_cast<const char*>(source.data) + from * element_bytes,
                count * element_bytes);
  };
  const auto copy_layer = [&](const BlockCopy& copy, int32_t layer) {
    const int32_t from_layer = source_layers[layer];
    if (copy.num_tokens == source.block_tokens) {
      copy_elements(source.TileOffset(copy.source, from_layer, 0, 0),
                    destination.TileOffset(copy.destination, layer, 0, 0),
                    source.layer_elements());
      return;
    }
    for (int which = 0; which < 2; ++which) {
      for (int32_t head = 0; head < source.num_kv_heads; ++head) {
        copy_elements(
            source.TileOffset(copy.source, from_layer, which, head),
            destination.TileOffset(copy.destination, layer, which, head),
            int64_t{copy.num_tokens} * source.head_dim);
      }
    }
  };
  const int64_t num_layers = destination.num_layers;
  cpu.ParallelFor(static_cast<int64_t>(blocks.size()) * num_layers, 4,
                  [&](int64_t begin, int64_t end, int /*thread*/) {
                    for (int64_t i = begin; i < end; ++i) {
                      copy_layer(blocks[i / num_layers],
                                 static_cast<int32_t>(i % num_layers));
                    }
                  });
}

void CpuOps::ProjectBlocks(Stream& stream, const KvView& source,
                           const KvView& destination,
                           std::span<const int32_t> source_layers,
                           std::span<const LinearWeight* const> k_maps,
                           std::span<const LinearWeight* const> v_maps,
                           std::span<const BlockCopy> blocks) {
  CpuStream& cpu = AsCpuStream(stream);
  CheckLayers(source, destination, source_layers);
  OVERFILL_CHECK_EQ(k_maps.size(), source_layers.size());
  OVERFILL_CHECK_EQ(v_maps.size(), source_layers.size());
  const int64_t in = int64_t{source.num_kv_heads} * source.head_dim;
  const int64_t out = int64_t{destination.num_kv_heads} * destination.head_dim;
  if (!cpu.ok()) return;
  if (absl::Status status =
          CheckCopies("ProjectBlocks", source, destination, blocks);
      !status.ok()) {
    return cpu.Fail(std::move(status));
  }
  const int64_t blocks_at_once =
      std::max<int64_t>(1, kProjectionRows / source.block_tokens);
  const int64_t max_rows = blocks_at_once * source.block_tokens;
  float* input =
      cpu.Scratch<float>(ScratchUse::kProjectionInput, max_rows * in);
  float* output =
      cpu.Scratch<float>(ScratchUse::kProjectionOutput, max_rows * out);
  for (size_t first = 0; first < blocks.size(); first += blocks_at_once) {
    const auto part = blocks.subspan(
        first, std::min<size_t>(blocks_at_once, blocks.size() - first));
    for (int32_t layer = 0; layer < destination.num_layers; ++layer) {
      for (int which = 0; which < 2; ++which) {
        const LinearWeight& map = *(which == 0 ? k_maps : v_maps)[layer];
        OVERFILL_CHECK_EQ(map.in_features(), in);
        OVERFILL_CHECK_EQ(map.out_features(), out);
        int64_t rows = 0;
        for (const BlockCopy& copy : part) {
          GatherTokens(source, copy.source, source_layers[layer], which,
                       copy.num_tokens, input + rows * in);
          rows += copy.num_tokens;
        }
        if (rows == 0) continue;
        Linear(stream, DenseMatrix(input, rows, in), map,
               DenseMatrix(output, rows, out), /*accumulate=*/false);
        rows = 0;
        for (const BlockCopy& copy : part) {
          ScatterTokens(output + rows * out, destination, copy.destination,
                        layer, which, copy.num_tokens);
          rows += copy.num_tokens;
        }
      }
    }
  }
}

}  // namespace overfill
