#include "engine/transformer.h"

#include <utility>

#include "base/check.h"
#include "base/checked_math.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

// Rows begin on a cache line and at whole vectors, whatever the odd width.
constexpr int64_t kRowAlignment = 64;

AttentionShape ShapeOf(const ModelConfig& config) {
  return {.num_heads = config.num_heads,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .norm_eps = config.norm_eps};
}

}  // namespace

void Transformer::Forward(Stream& stream, const BatchView& batch,
                          const SampleBatch& samples, const KvView& kv,
                          float* raw_logits, SampleResult* results) {
  Ops& ops = device_.ops();
  const Matrix x = x_.Rows(batch.num_rows);
  const Matrix cos_sin = cos_sin_.Rows(batch.num_rows);
  const Matrix qkv = scratch_.qkv.Rows(batch.num_rows);
  const Matrix attention = attention_.Rows(batch.num_rows);

  ops.Embedding(stream, *weights_.embedding, batch, x);
  ops.RopeAngles(stream, batch,
                 static_cast<const float*>(inverse_frequencies_->data()),
                 cos_sin);
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const LayerWeights& layer = weights_.layers[l];
    ops.NormQkvRopeWrite(stream, shape_, layer.attention, batch, cos_sin, kv,
                         kv_layers_[l], x, scratch_);
    ops.PagedAttention(stream, shape_, batch, kv, kv_layers_[l], qkv,
                       attention);
    ops.OutputResidual(stream, layer.attention, attention, x);
    ops.NormMlpResidual(stream, layer.mlp, shape_.norm_eps, x, scratch_);
    stream.Yield();
  }
  ops.NormHeadSample(stream, weights_.head, shape_.norm_eps, x, samples,
                     scratch_, raw_logits, results);
}

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(
    Device& device, const ModelWeights& weights, int32_t max_rows,
    int32_t max_sample_rows, std::vector<int32_t> kv_layers) {
  OVERFILL_CHECK_EQ(kv_layers.size(), weights.layers.size());
  OVERFILL_CHECK(max_rows > 0 && max_sample_rows > 0);
  std::unique_ptr<Transformer> result(
      new Transformer(device, weights, std::move(kv_layers)));
  RETURN_IF_ERROR(result->AllocateWorkSpace(max_rows, max_sample_rows));
  return result;
}

Transformer::Transformer(Device& device, const ModelWeights& weights,
                         std::vector<int32_t> kv_layers)
    : device_(device),
      weights_(weights),
      shape_(ShapeOf(weights.config)),
      kv_layers_(std::move(kv_layers)) {}

absl::Status Transformer::AllocateWorkSpace(int32_t max_rows,
                                            int32_t max_sample_rows) {
  const ModelConfig& config = weights_.config;
  const DType dtype = device_.ActivationType(weights_.dtype);
  const int64_t q_size = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_size = int64_t{config.num_kv_heads} * config.head_dim;
  const int64_t inner = config.intermediate_size;

  ASSIGN_OR_RETURN(x_, NewMatrix(max_rows, config.hidden_size, dtype));
  ASSIGN_OR_RETURN(cos_sin_, NewMatrix(max_rows, config.head_dim, DType::kF32));
  ASSIGN_OR_RETURN(attention_, NewMatrix(max_rows, q_size, dtype));
  ASSIGN_OR_RETURN(scratch_.normed,
                   NewMatrix(max_rows, config.hidden_size, dtype));
  ASSIGN_OR_RETURN(scratch_.qkv,
                   NewMatrix(max_rows, q_size + 2 * kv_size, dtype));
  ASSIGN_OR_RETURN(scratch_.gate_up, NewMatrix(max_rows, 2 * inner, dtype));
  ASSIGN_OR_RETURN(scratch_.gated, NewMatrix(max_rows, inner, dtype));
  ASSIGN_OR_RETURN(scratch_.gathered,
                   NewMatrix(max_sample_rows, config.hidden_size, dtype));
  ASSIGN_OR_RETURN(scratch_.logits,
                   NewMatrix(max_sample_rows, config.vocab_size, DType::kF32));

  const std::vector<float> frequencies =
      InverseFrequencies(config.rope, config.head_dim);
  ASSIGN_OR_RETURN(
      inverse_frequencies_,
      device_.ops().MakeVector(
          {.data = reinterpret_cast<const std::byte*>(frequencies.data()),
           .dtype = DType::kF32,
           .shape = {static_cast<int64_t>(frequencies.size())}}));
  return absl::OkStatus();
}

absl::StatusOr<Matrix> Transformer::NewMatrix(int64_t rows, int64_t cols,
                                              DType dtype) {
  const int64_t stride = RoundUp(cols, kRowAlignment);
  ASSIGN_OR_RETURN(auto buffer,
                   device_.Allocate(rows * stride * DTypeBytes(dtype)));
  buffers_.push_back(std::move(buffer));
  return Matrix{.data = buffers_.back()->data(),
                .dtype = dtype,
                .rows = rows,
                .cols = cols,
                .stride = stride};
}

}  // namespace overfill
