// The operations that a transformer step is written in.
//
// Primitives are pure virtual: each backend has its own form of each. The
// composites below them have a default that is made of primitives, and that
// default is their reference; a backend overrides those that it can fuse.
//
// Common rules. Letters: T rows of the step, S sequences, H hidden width,
// I intermediate width, V vocabulary, D head_dim, Hq query heads, Hkv KV heads,
// P = D / 2 rotation pairs. All pointers are device memory of the stream's
// device unless a name says host. Widths are the true ones: padding never
// enters a sum or a mean. Outputs do not alias inputs unless stated. Ops run in
// stream order and report failures through the stream. Shapes that do not fit
// are our own bugs and are CHECKed.
#ifndef OVERFILL_KERNELS_OPS_H_
#define OVERFILL_KERNELS_OPS_H_

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace overfill {

// The largest number of top logprobs that one row can ask for.
inline constexpr int32_t kMaxTopLogprobs = 20;

// y = x W^T + b, in the backend's own memory layout. Immutable.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }
  int64_t bytes() const { return bytes_; }  // read by one product

 protected:
  LinearWeight(int64_t in_features, int64_t out_features, int64_t bytes)
      : in_features_(in_features), out_features_(out_features), bytes_(bytes) {}

 private:
  const int64_t in_features_;
  const int64_t out_features_;
  const int64_t bytes_;
};

// One step's ragged batch. Sequence s owns the rows [row_begin[s],
// row_begin[s + 1]); they are consecutive positions of that sequence. A row at
// position p attends to the positions 0..p of its sequence. Position p lives in
// slot p % block_tokens of block block_tables[s, p / block_tokens].
struct BatchView {
  int32_t num_rows = 0;                   // T
  int32_t num_sequences = 0;              // S
  int32_t max_sequence_rows = 0;          // most rows of one sequence
  int32_t max_kv_tokens = 0;              // highest position + 1
  int32_t max_blocks = 0;                 // row length of block_tables
  const int32_t* token_ids = nullptr;     // [T]
  const int32_t* positions = nullptr;     // [T]
  const int32_t* row_sequence = nullptr;  // [T] the row's s
  const int32_t* row_begin = nullptr;     // [S + 1]
  const int32_t* block_tables = nullptr;  // [S, max_blocks]
};

// What attention needs to know beside the weights.
struct AttentionShape {
  int32_t num_heads = 0;     // Hq
  int32_t num_kv_heads = 0;  // Hkv, divides Hq
  int32_t head_dim = 0;      // D, a multiple of 8, at most 256
  float norm_eps = 0;
};

struct AttentionWeights {
  const float* norm_gain = nullptr;      // [H]
  const LinearWeight* qkv = nullptr;     // [(Hq + 2 Hkv) D, H]: q, k, v rows
  const float* q_norm_gain = nullptr;    // [D], or null: no q/k norm
  const float* k_norm_gain = nullptr;    // [D], or null
  const LinearWeight* output = nullptr;  // [H, Hq D]
};

struct MlpWeights {
  const float* norm_gain = nullptr;       // [H]
  const LinearWeight* gate_up = nullptr;  // [2 I, H]: gate rows, then up rows
  const LinearWeight* down = nullptr;     // [H, I]
};

struct HeadWeights {
  const float* norm_gain = nullptr;       // [H]
  const LinearWeight* lm_head = nullptr;  // [V, H]
  // [V] 1 where the id has a token; others are never sampled and take no part
  // in any probability. Null: all have one.
  const uint8_t* is_token = nullptr;
};

// Work space of one step, allocated once at the largest step's size. Contents
// are undefined between composites.
struct StepScratch {
  Matrix normed;    // [T, H]
  Matrix qkv;       // [T, (Hq + 2 Hkv) D]
  Matrix gate_up;   // [T, 2 I]
  Matrix gated;     // [T, I]
  Matrix gathered;  // [sample rows, H]
  Matrix logits;    // [sample rows, V] f32
};

// A change to one token's logit in one row. At most one entry per (row, id).
struct TokenAdjustment {
  int32_t token_id = 0;
  float bias = 0;            // added first
  int32_t output_count = 0;  // times in the output so far
  uint8_t seen = 0;          // in the prompt or the output
  uint8_t banned = 0;        // never sampled in this row
};

// One row to sample. The processed logits are, in this order: raw + bias; seen
// ids are divided (positive) or multiplied (negative) by repetition_penalty;
// minus frequency_penalty * output_count; minus presence_penalty where
// output_count > 0; banned ids drop out; divided by temperature. Then the mask:
// top_k best; of those the smallest set that holds top_p of their probability
// (the best of them first); of those at least min_p times the best one's
// probability. Ties at a cut are kept in order of token id, lower ids first.
// The choice is the largest (processed logit + Gumbel noise) inside the mask,
// the noise being a function of (seed, sample_index, token_index, token id)
// alone, as kernels/philox.h states it; with temperature 0 there is no noise,
// no mask, and the lowest id wins a tie.
struct SampleParams {
  float temperature = 0;
  float top_p = 1;
  float min_p = 0;
  int32_t top_k = 0;  // 0: all
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  int32_t num_logprobs = -1;  // -1: none; n: the chosen one and the top n
  uint64_t seed = 0;
  uint32_t sample_index = 0;
  uint32_t token_index = 0;
  int32_t adjustments_begin = 0;  // range in SampleBatch::adjustments
  int32_t adjustments_end = 0;
};

struct SampleBatch {
  int32_t num_rows = 0;                          // R
  const int32_t* rows = nullptr;                 // [R] row of the step
  const SampleParams* params = nullptr;          // [R]
  const TokenAdjustment* adjustments = nullptr;  // CSR by params
};

enum class SampleOutcome : int32_t {
  kOk = 0,
  kNonFinite = 1,    // a logit of a real token was NaN or infinite
  kNoCandidate = 2,  // every token was banned
};

// One sampled row; logprobs are log-softmax of the raw logits over the ids
// that have a token.
struct SampleResult {
  int32_t token_id = -1;
  SampleOutcome outcome = SampleOutcome::kOk;
  float logprob = 0;    // set when num_logprobs >= 0
  int32_t num_top = 0;  // entries of top_ids, best first
  int32_t top_ids[kMaxTopLogprobs];
  float top_logprobs[kMaxTopLogprobs];
};

// One block to move between stores.
struct BlockCopy {
  int32_t source = 0;
  int32_t destination = 0;
  int32_t num_tokens = 0;  // slots in use; the rest need not be copied
};

class Ops {
 public:
  virtual ~Ops() = default;

  // ---- Weights. Called while loading, by several threads at once.

  // Stacks `weights` [out_i, in] along the output side and stores them as
  // `dtype` (kF32, kBF16 or kInt8). int8 is symmetric, with a scale for each
  // group of 64 inputs of an output; its products take their input to 15 bits
  // in the same way. `biases` is empty or holds one [out_i] per weight.
  // The host memory is not used after the call.
  virtual absl::StatusOr<std::unique_ptr<LinearWeight>> MakeLinear(
      std::span<const HostTensor> weights, std::span<const HostTensor> biases,
      DType dtype) = 0;
  // A vector as f32 in device memory.
  virtual absl::StatusOr<std::unique_ptr<Buffer>> MakeVector(
      const HostTensor& values) = 0;

  // ---- Primitives.

  // out[t] = row token_ids[t] of table [V, H]. Where input and output
  // embedding are tied, the table is the lm_head itself.
  virtual void Embedding(Stream& stream, const LinearWeight& table,
                         const BatchView& batch, Matrix out) = 0;  // [T, H]
  // out = x / sqrt(mean(x^2) + eps) * gain over x.cols. out may be x.
  virtual void RmsNorm(Stream& stream, Matrix x, const float* gain, float eps,
                       Matrix out) = 0;
  // out = x W^T + b, or out += x W^T + b.
  virtual void Linear(Stream& stream, Matrix x, const LinearWeight& weight,
                      Matrix out, bool accumulate) = 0;
  // cos_sin[t] = (cos(p f_0), sin(p f_0), cos(p f_1), ...) for the row's
  // position p. inverse_frequencies [P] f32; cos_sin [T, 2 P] f32.
  virtual void RopeAngles(Stream& stream, const BatchView& batch,
                          const float* inverse_frequencies, Matrix cos_sin) = 0;
  // Per row of qkv: normalizes each q and k head where gains are given,
  // rotates q and k (pair i is elements i and i + P of a head), writes k and v
  // to `kv` at the row's slot of `kv_layer`, and leaves q in place.
  virtual void QkNormRopeWrite(Stream& stream, const AttentionShape& shape,
                               const AttentionWeights& weights,
                               const BatchView& batch, Matrix cos_sin,
                               const KvView& kv, int32_t kv_layer,
                               Matrix qkv) = 0;
  // out[t, h] = softmax(q . K^T / sqrt(D)) V over the positions 0..p of the
  // row's sequence, read through its block table. Prefill chunks and decode
  // rows are the same call. q is the first Hq D columns of qkv.
  virtual void PagedAttention(Stream& stream, const AttentionShape& shape,
                              const BatchView& batch, const KvView& kv,
                              int32_t kv_layer, Matrix qkv,
                              Matrix out) = 0;  // [T, Hq D]
  // gated = silu(gate_up[:, :I]) * gate_up[:, I:].
  virtual void SiluMul(Stream& stream, Matrix gate_up, Matrix gated) = 0;
  // out[i] = x[rows[i]].
  virtual void GatherRows(Stream& stream, Matrix x, const int32_t* rows,
                          Matrix out) = 0;
  // out [x.rows, x.cols] dense = x, both f32.
  virtual void CopyRows(Stream& stream, Matrix x, float* out) = 0;
  // Samples each row of logits [R, V] f32, which may be overwritten.
  virtual void Sample(Stream& stream, Matrix logits, const uint8_t* is_token,
                      const SampleBatch& batch, SampleResult* results) = 0;

  // ---- Moving KV. Host-side lists.

  // Layer l of each destination block = layer source_layers[l] of its source
  // block. The stores agree in all but num_blocks and num_layers.
  virtual void CopyBlocks(Stream& stream, const KvView& source,
                          const KvView& destination,
                          std::span<const int32_t> source_layers,
                          std::span<const BlockCopy> blocks) = 0;
  // The same through linear maps, with their biases where they have some: per
  // token, the destination's layer-l K [Hkv' D'] = k_maps[l] of the source's
  // layer source_layers[l] K [Hkv D], V alike.
  virtual void ProjectBlocks(Stream& stream, const KvView& source,
                             const KvView& destination,
                             std::span<const int32_t> source_layers,
                             std::span<const LinearWeight* const> k_maps,
                             std::span<const LinearWeight* const> v_maps,
                             std::span<const BlockCopy> blocks) = 0;

  // ---- Composites.

  // qkv = projections of norm(x); q and k normed and rotated; k, v stored.
  virtual void NormQkvRopeWrite(Stream& stream, const AttentionShape& shape,
                                const AttentionWeights& weights,
                                const BatchView& batch, Matrix cos_sin,
                                const KvView& kv, int32_t kv_layer, Matrix x,
                                const StepScratch& scratch);
  // x += attention W_o^T.
  virtual void OutputResidual(Stream& stream, const AttentionWeights& weights,
                              Matrix attention, Matrix x);
  // x += down(silu(gate(norm(x))) * up(norm(x))).
  virtual void NormMlpResidual(Stream& stream, const MlpWeights& weights,
                               float norm_eps, Matrix x,
                               const StepScratch& scratch);
  // logits of the sampled rows only, then Sample. `raw_logits`, where not
  // null, receives the raw logits [R, V] f32 (device memory) before Sample.
  virtual void NormHeadSample(Stream& stream, const HeadWeights& weights,
                              float norm_eps, Matrix x,
                              const SampleBatch& batch,
                              const StepScratch& scratch, float* raw_logits,
                              SampleResult* results);
};

}  // namespace overfill

#endif  // OVERFILL_KERNELS_OPS_H_
