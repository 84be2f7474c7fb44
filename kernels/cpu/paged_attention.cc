// The attention ops: rotation and KV writes, and the split of a ragged batch
// into tiles for AttendTile.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/checked_math.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/checks.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/elementwise.h"

namespace overfill {
namespace {

// One KV head's part of a tile of rows, or of a part of its positions.
struct TileTask {
  int32_t sequence;
  int32_t first_row;  // row of the step
  int32_t num_rows;
  int32_t kv_begin;
  int32_t kv_end;
  int32_t part;       // 0.. within its row tile
  int32_t num_parts;  // 1: writes the output itself
  // First partial of its row tile, in parts of one KV head's queries.
  int64_t first_partial;
};

// How PagedAttention is cut: tasks of row tiles and KV parts, each for every
// KV head.
struct TilePlan {
  TileTask* tasks = nullptr;
  int64_t num_tasks = 0;
  int64_t num_partials = 0;
};

// A part of positions is worth its own task from this length on.
constexpr int32_t kMinPartTokens = 256;
constexpr int64_t kTasksPerThread = 4;

int32_t RowsPerTile(const AttentionShape& shape) {
  const int32_t group = shape.num_heads / shape.num_kv_heads;
  return std::max(1, kTileQueries / group);
}

// Parts that each row tile is cut into so that all threads have work.
int32_t PartsPerTile(int64_t num_tiles, int32_t num_kv_heads, int threads,
                     int32_t kv_tokens) {
  if (threads == 1) return 1;
  const int64_t wanted =
      CeilDiv(kTasksPerThread * threads, num_tiles * num_kv_heads);
  const int64_t possible = std::max(1, kv_tokens / kMinPartTokens);
  return static_cast<int32_t>(std::min(wanted, possible));
}

TilePlan PlanTiles(CpuStream& stream, const AttentionShape& shape,
                   const BatchView& batch) {
  const int32_t rows_per_tile = RowsPerTile(shape);
  int64_t num_tiles = 0;
  for (int32_t s = 0; s < batch.num_sequences; ++s) {
    num_tiles +=
        CeilDiv(batch.row_begin[s + 1] - batch.row_begin[s], rows_per_tile);
  }
  TilePlan plan;
  if (num_tiles == 0) return plan;
  const int32_t most_parts = PartsPerTile(
      num_tiles, shape.num_kv_heads, stream.num_threads(), batch.max_kv_tokens);
  plan.tasks = stream.Scratch<TileTask>(ScratchUse::kAttentionTiles,
                                        num_tiles * most_parts);
  for (int32_t s = 0; s < batch.num_sequences; ++s) {
    const int32_t end = batch.row_begin[s + 1];
    // Last rows first: they have the most positions, and short tasks at the
    // end even out the threads.
    int32_t row = batch.row_begin[s] + (end - batch.row_begin[s] - 1) /
                                           rows_per_tile * rows_per_tile;
    for (; row >= batch.row_begin[s] && end > batch.row_begin[s];
         row -= rows_per_tile) {
      const int32_t num_rows = std::min(rows_per_tile, end - row);
      const int32_t kv_tokens = batch.positions[row + num_rows - 1] + 1;
      const int32_t parts = PartsPerTile(num_tiles, shape.num_kv_heads,
                                         stream.num_threads(), kv_tokens);
      const int32_t part_tokens =
          static_cast<int32_t>(RoundUp(CeilDiv(kv_tokens, parts), kTileTokens));
      const int32_t num_parts =
          static_cast<int32_t>(CeilDiv(kv_tokens, part_tokens));
      for (int32_t part = 0; part < num_parts; ++part) {
        plan.tasks[plan.num_tasks++] = {
            s,
            row,
            num_rows,
            part * part_tokens,
            std::min((part + 1) * part_tokens, kv_tokens),
            part,
            num_parts,
            plan.num_partials};
      }
      if (num_parts > 1) plan.num_partials += num_parts;
    }
  }
  return plan;
}

}  // namespace

void CheckAttention(const AttentionShape& shape, const KvView& kv,
                    int32_t kv_layer) {
  OVERFILL_CHECK(shape.num_kv_heads > 0 &&
                 shape.num_heads % shape.num_kv_heads == 0);
  OVERFILL_CHECK_LE(shape.num_heads / shape.num_kv_heads, kTileQueries);
  OVERFILL_CHECK(shape.head_dim > 0 && shape.head_dim % 8 == 0 &&
                 shape.head_dim <= 256)
      << "head_dim " << shape.head_dim;
  OVERFILL_CHECK_EQ(kv.num_kv_heads, shape.num_kv_heads);
  OVERFILL_CHECK_EQ(kv.head_dim, shape.head_dim);
  OVERFILL_CHECK(kv.dtype == DType::kF32 || kv.dtype == DType::kBF16);
  OVERFILL_CHECK_GE(kv.block_tokens, 1);
  OVERFILL_CHECK(kv_layer >= 0 && kv_layer < kv.num_layers)
      << "KV layer " << kv_layer;
}

absl::Status CheckBatch(const char* op, const BatchView& batch,
                        const KvView& kv) {
  for (int32_t s = 0; s < batch.num_sequences; ++s) {
    const int32_t begin = batch.row_begin[s];
    const int32_t end = batch.row_begin[s + 1];
    if (begin == end) continue;
    if (begin < 0 || begin > end || end > batch.num_rows) {
      return absl::InternalError(
          absl::StrCat(op, ": rows ", begin, "..", end, " of sequence ", s));
    }
    const int32_t first = batch.positions[begin];
    for (int32_t row = begin; row < end; ++row) {
      if (first < 0 || batch.positions[row] != first + (row - begin) ||
          batch.row_sequence[row] != s) {
        return absl::InternalError(absl::StrCat(op, ": row ", row,
                                                " of sequence ", s,
                                                " is not the next position"));
      }
    }
    const int32_t num_blocks = batch.positions[end - 1] / kv.block_tokens + 1;
    for (int32_t i = 0; i < num_blocks; ++i) {
      if (i >= batch.max_blocks) {
        return absl::InternalError(
            absl::StrCat(op, ": sequence ", s, " is longer than its table"));
      }
      const int32_t block =
          batch.block_tables[int64_t{s} * batch.max_blocks + i];
      if (block < 0 || block >= kv.num_blocks) {
        return absl::InternalError(
            absl::StrCat(op, ": block ", block, " of ", kv.num_blocks));
      }
    }
  }
  return absl::OkStatus();
}

void CpuOps::QkNormRopeWrite(Stream& stream, const AttentionShape& shape,
                             const AttentionWeights& weights,
                             const BatchView& batch, Matrix cos_sin,
                             const KvView& kv, int32_t kv_layer, Matrix qkv) {
  CpuStream& cpu = AsCpuStream(stream);
  const int64_t head_dim = shape.head_dim;
  const int32_t num_heads = shape.num_heads + 2 * shape.num_kv_heads;
  CheckAttention(shape, kv, kv_layer);
  CheckMatrix(qkv, batch.num_rows, num_heads * head_dim);
  CheckMatrix(cos_sin, batch.num_rows, head_dim);
  if (!cpu.ok()) return;
  if (absl::Status status = CheckBatch("QkNormRopeWrite", batch, kv);
      !status.ok()) {
    return cpu.Fail(std::move(status));
  }
  const auto work = [&](int64_t row, int32_t head) {
    float* x = qkv.f32() + row * qkv.stride + head * head_dim;
    const bool is_q = head < shape.num_heads;
    const bool is_v = head >= shape.num_heads + shape.num_kv_heads;
    if (!is_v) {
      const float* gain = is_q ? weights.q_norm_gain : weights.k_norm_gain;
      if (gain != nullptr) RmsNormRow(x, gain, head_dim, shape.norm_eps, x);
      RotateHead(cos_sin.f32() + row * cos_sin.stride, head_dim / 2, x);
    }
    if (is_q) return;
    const int32_t position = batch.positions[row];
    const int32_t block =
        batch.block_tables[int64_t{batch.row_sequence[row]} * batch.max_blocks +
                           position / kv.block_tokens];
    const int32_t kv_head =
        head - shape.num_heads - (is_v ? shape.num_kv_heads : 0);
    const int64_t offset =
        kv.TileOffset(block, kv_layer, is_v ? 1 : 0, kv_head) +
        position % kv.block_tokens * head_dim;
    if (kv.dtype == DType::kF32) {
      std::memcpy(static_cast<float*>(kv.data) + offset, x,
                  head_dim * sizeof(float));
    } else {
      RoundToBF16(x, head_dim, static_cast<uint16_t*>(kv.data) + offset);
    }
  };
  constexpr int64_t kElementGrain = 8 * 1024;
  cpu.ParallelFor(batch.num_rows,
                  std::max<int64_t>(1, kElementGrain / qkv.cols),
                  [&](int64_t begin, int64_t end, int /*thread*/) {
                    for (int64_t row = begin; row < end; ++row) {
                      for (int32_t h = 0; h < num_heads; ++h) work(row, h);
                    }
                  });
}

void CpuOps::PagedAttention(Stream& stream, const AttentionShape& shape,
                            const BatchView& batch, const KvView& kv,
                            int32_t kv_layer, Matrix qkv, Matrix out) {
  CpuStream& cpu = AsCpuStream(stream);
  const int64_t head_dim = shape.head_dim;
  const int32_t group = shape.num_heads / shape.num_kv_heads;
  CheckAttention(shape, kv, kv_layer);
  CheckMatrix(out, batch.num_rows, shape.num_heads * head_dim);
  CheckMatrix(qkv, batch.num_rows,
              (shape.num_heads + 2 * shape.num_kv_heads) * head_dim);
  if (!cpu.ok()) return;
  if (absl::Status status = CheckBatch("PagedAttention", batch, kv);
      !status.ok()) {
    return cpu.Fail(std::move(status));
  }
  const TilePlan plan = PlanTiles(cpu, shape, batch);
  const int64_t work_floats = AttentionWorkFloats(shape.head_dim);
  float* work = cpu.Scratch<float>(ScratchUse::kAttentionWork,
                                   work_floats * cpu.num_threads());
  const int64_t partial_floats = kPartialHeader + head_dim;
  // One KV head's queries of one part of a tile.
  const int64_t part_stride =
      int64_t{RowsPerTile(shape)} * group * partial_floats;
  float* partials =
      cpu.Scratch<float>(ScratchUse::kAttentionPartials,
                         plan.num_partials * shape.num_kv_heads * part_stride);
  const auto partial_of = [&](const TileTask& task, int32_t kv_head) {
    return partials + (task.first_partial * shape.num_kv_heads +
                       int64_t{kv_head} * task.num_parts) *
                          part_stride;
  };

  const auto attend = [&](const TileTask& task, int32_t kv_head, int thread) {
    const int64_t first_head = int64_t{kv_head} * group;
    const int64_t element_bytes = DTypeBytes(kv.dtype);
    const auto* kv_data = static_cast<const char*>(kv.data);
    AttentionTile tile;
    tile.q = qkv.f32() + task.first_row * qkv.stride + first_head * head_dim;
    tile.q_stride = qkv.stride;
    tile.num_rows = task.num_rows;
    tile.group = group;
    tile.head_dim = shape.head_dim;
    tile.first_position = batch.positions[task.first_row];
    tile.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    tile.k = kv_data + kv.TileOffset(0, kv_layer, 0, kv_head) * element_bytes;
    tile.v = kv_data + kv.TileOffset(0, kv_layer, 1, kv_head) * element_bytes;
    tile.kv_dtype = kv.dtype;
    tile.block_stride = kv.block_elements();
    tile.block_tokens = kv.block_tokens;
    tile.block_table =
        batch.block_tables + int64_t{task.sequence} * batch.max_blocks;
    tile.kv_begin = task.kv_begin;
    tile.kv_end = task.kv_end;
    tile.work = work + thread * work_floats;
    tile.out = out.f32() + task.first_row * out.stride + first_head * head_dim;
    tile.out_stride = out.stride;
    if (task.num_parts > 1) {
      tile.partial = partial_of(task, kv_head) + task.part * part_stride;
    }
    AttendTile(tile);
  };
  cpu.ParallelFor(plan.num_tasks * shape.num_kv_heads, 1,
                  [&](int64_t begin, int64_t end, int thread) {
                    for (int64_t i = begin; i < end; ++i) {
                      attend(plan.tasks[i / shape.num_kv_heads],
                             static_cast<int32_t>(i % shape.num_kv_heads),
                             thread);
                    }
                  });
  if (plan.num_partials == 0) return;

  const auto merge = [&](const TileTask& task, int32_t kv_head) {
    const float* first = partial_of(task, kv_head);
    for (int32_t query = 0; query < task.num_rows * group; ++query) {
      float* to = out.f32() + (task.first_row + query / group) * out.stride +
                  (int64_t{kv_head} * group + query % group) * head_dim;
      MergePartials(first + query * partial_floats, part_stride, task.num_parts,
                    shape.head_dim, to);
    }
  };
  cpu.ParallelFor(plan.num_tasks * shape.num_kv_heads, 16,
                  [&](int64_t begin, int64_t end, int /*thread*/) {
                    for (int64_t i = begin; i < end; ++i) {
                      const TileTask& task = plan.tasks[i / shape.num_kv_heads];
                      if (task.num_parts == 1 || task.part != 0) continue;
                      merge(task, static_cast<int32_t>(i % shape.num_kv_heads));
                    }
                  });
}

}  // namespace overfill
