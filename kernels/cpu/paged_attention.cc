// The attention ops: rotation and KV writes, and the split of a ragged batch
// into tiles for AttendTile.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/checked_math.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/checks.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/elementwise.h"

namespace overfill {
namespace {

// One KV head's share of a tile of rows, or of a range of its positions.
struct TileTask {
  int32_t sequence;
  int32_t first_row;  // row of the step
  int32_t num_rows;
  int32_t kv_begin;
  int32_t kv_end;
  int32_t part;          // its first one's number, 0.. within its row tile
  int32_t num_partials;  // of the row tile; 0: writes the output itself
  // First partial of its row tile, in parts of one KV head's queries.
  int64_t first_partial;
};

// How PagedAttention is cut: tasks of row tiles and ranges of KV, each for
// every KV head.
struct TilePlan {
  TileTask* tasks = nullptr;
  int64_t num_tasks = 0;
  int64_t num_partials = 0;
  int64_t partial_stride = 0;  // floats of one
  int32_t part_tokens = 0;     // AttentionTile's
};

// A range of positions is worth its own task from this length on.
constexpr int32_t kMinTaskTokens = 256;
constexpr int64_t kTasksPerThread = 4;
// Where results must not depend on how a step is cut, parts lie at multiples of
// this position. Elsewhere a task is one part.
constexpr int32_t kFixedPartTokens = 256;
static_assert(kFixedPartTokens % kTileTokens == 0);
constexpr int32_t kWholeTask = std::numeric_limits<int32_t>::max();
// A step that would need more memory for its partials is not cut.
constexpr int64_t kMaxPartialFloats = 16 << 20;

int32_t RowsPerTile(const AttentionShape& shape) {
  const int32_t group = shape.num_heads / shape.num_kv_heads;
  return std::max(1, kTileQueries / group);
}

class TilePlanner {
 public:
  TilePlanner(CpuStream& stream, const AttentionShape& shape,
              const BatchView& batch, bool fixed_parts)
      : stream_(stream),
        batch_(batch),
        num_kv_heads_(shape.num_kv_heads),
        rows_per_tile_(RowsPerTile(shape)),
        fixed_parts_(fixed_parts) {
    int32_t tile_rows = 0;
    for (int32_t s = 0; s < batch.num_sequences; ++s) {
      const int32_t num_rows = batch.row_begin[s + 1] - batch.row_begin[s];
      num_tiles_ += CeilDiv(num_rows, rows_per_tile_);
      tile_rows = std::max(tile_rows, std::min(num_rows, rows_per_tile_));
    }
    const int64_t tile_queries =
        int64_t{tile_rows} * (shape.num_heads / shape.num_kv_heads);
    plan_.partial_stride = tile_queries * (kPartialHeader + shape.head_dim);
    plan_.part_tokens = fixed_parts ? kFixedPartTokens : kWholeTask;
  }

  TilePlan Plan() {
    if (num_tiles_ == 0) return plan_;
    plan_.tasks = stream_.Scratch<TileTask>(
        ScratchUse::kAttentionTiles,
        num_tiles_ * TasksPerTile(batch_.max_kv_tokens));
    for (int32_t s = 0; s < batch_.num_sequences; ++s) {
      const int32_t begin = batch_.row_begin[s];
      const int32_t end = batch_.row_begin[s + 1];
      if (begin == end) continue;
      // Last rows first: they have the most positions, and short tasks at the
      // end even out the threads.
      int32_t row = begin + (end - begin - 1) / rows_per_tile_ * rows_per_tile_;
      for (; row >= begin; row -= rows_per_tile_) {
        AddTile(s, row, std::min(rows_per_tile_, end - row));
      }
    }
    return plan_;
  }

 private:
  // Tasks that a row tile is cut into so that all threads have work.
  int32_t TasksPerTile(int32_t kv_tokens) const {
    const int threads = stream_.num_threads();
    if (threads == 1) return 1;
    const int64_t wanted =
        CeilDiv(kTasksPerThread * threads, num_tiles_ * num_kv_heads_);
    const int64_t possible = std::max(1, kv_tokens / kMinTaskTokens);
    const int64_t most_partials =
        fixed_parts_ ? CeilDiv(batch_.max_kv_tokens, kFixedPartTokens) : wanted;
    if (most_partials * num_tiles_ * num_kv_heads_ >
        kMaxPartialFloats / plan_.partial_stride) {
      return 1;
    }
    return static_cast<int32_t>(std::min(wanted, possible));
  }

  void AddTile(int32_t sequence, int32_t row, int32_t num_rows) {
    const int32_t kv_tokens = batch_.positions[row + num_rows - 1] + 1;
    const int64_t task_tokens =
        RoundUp(CeilDiv(kv_tokens, TasksPerTile(kv_tokens)),
                fixed_parts_ ? kFixedPartTokens : kTileTokens);
    const int64_t part_tokens = fixed_parts_ ? kFixedPartTokens : task_tokens;
    const int32_t num_partials =
        task_tokens >= kv_tokens
            ? 0
            : static_cast<int32_t>(CeilDiv(kv_tokens, part_tokens));
    for (int64_t begin = 0; begin < kv_tokens; begin += task_tokens) {
      plan_.tasks[plan_.num_tasks++] = {
          sequence,
          row,
          num_rows,
          static_cast<int32_t>(begin),
          static_cast<int32_t>(
              std::min<int64_t>(begin + task_tokens, kv_tokens)),
          static_cast<int32_t>(begin / part_tokens),
          num_partials,
          plan_.num_partials};
    }
    plan_.num_partials += num_partials;
  }

  CpuStream& stream_;
  const BatchView& batch_;
  const int32_t num_kv_heads_;
  const int32_t rows_per_tile_;
  const bool fixed_parts_;
  int64_t num_tiles_ = 0;
  TilePlan plan_;
};

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
  const TilePlan plan =
      TilePlanner(cpu, shape, batch, /*fixed_parts=*/batch_invariant_).Plan();
  const int64_t work_floats = AttentionWorkFloats(shape.head_dim);
  float* work = cpu.Scratch<float>(ScratchUse::kAttentionWork,
                                   work_floats * cpu.num_threads());
  const int64_t partial_floats = kPartialHeader + head_dim;
  float* partials = cpu.Scratch<float>(
      ScratchUse::kAttentionPartials,
      plan.num_partials * shape.num_kv_heads * plan.partial_stride);
  // The row tile's first one.
  const auto partials_of = [&](const TileTask& task, int32_t kv_head) {
    return partials + (task.first_partial * shape.num_kv_heads +
                       int64_t{kv_head} * task.num_partials) *
                          plan.partial_stride;
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
    tile.part_tokens = plan.part_tokens;
    tile.work = work + thread * work_floats;
    tile.out = out.f32() + task.first_row * out.stride + first_head * head_dim;
    tile.out_stride = out.stride;
    if (task.num_partials > 0) {
      tile.partials =
          partials_of(task, kv_head) + task.part * plan.partial_stride;
      tile.part_stride = plan.partial_stride;
    }
    if (!batch_invariant_ && tile.num_rows == 1 && group <= kMaxRowQueries &&
        head_dim % 16 == 0) {
      AttendRow(tile);
    } else {
      AttendTile(tile);
    }
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
    const float* first = partials_of(task, kv_head);
    for (int32_t query = 0; query < task.num_rows * group; ++query) {
      float* to = out.f32() + (task.first_row + query / group) * out.stride +
                  (int64_t{kv_head} * group + query % group) * head_dim;
      MergePartials(first + query * partial_floats, plan.partial_stride,
                    task.num_partials, shape.head_dim, to);
    }
  };
  cpu.ParallelFor(plan.num_tasks * shape.num_kv_heads, 16,
                  [&](int64_t begin, int64_t end, int /*thread*/) {
                    for (int64_t i = begin; i < end; ++i) {
                      const TileTask& task = plan.tasks[i / shape.num_kv_heads];
                      if (task.num_partials == 0 || task.part != 0) continue;
                      merge(task, static_cast<int32_t>(i % shape.num_kv_heads));
                    }
                  });
}

}  // namespace overfill
