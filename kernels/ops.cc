#include "kernels/ops.h"

namespace overfill {

void Ops::NormQkvRopeWrite(Stream& stream, const AttentionShape& shape,
                           const AttentionWeights& weights,
                           const BatchView& batch, Matrix cos_sin,
                           const KvView& kv, int32_t kv_layer, Matrix x,
                           const StepScratch& scratch) {
  const Matrix normed = scratch.normed.Rows(x.rows);
  const Matrix qkv = scratch.qkv.Rows(x.rows);
  RmsNorm(stream, x, weights.norm_gain, shape.norm_eps, normed);
  Linear(stream, normed, *weights.qkv, qkv, /*accumulate=*/false);
  QkNormRopeWrite(stream, shape, weights, batch, cos_sin, kv, kv_layer, qkv);
}

void Ops::OutputResidual(Stream& stream, const AttentionWeights& weights,
                         Matrix attention, Matrix x) {
  Linear(stream, attention, *weights.output, x, /*accumulate=*/true);
}

void Ops::NormMlpResidual(Stream& stream, const MlpWeights& weights,
                          float norm_eps, Matrix x,
                          const StepScratch& scratch) {
  const Matrix normed = scratch.normed.Rows(x.rows);
  const Matrix gate_up = scratch.gate_up.Rows(x.rows);
  const Matrix gated = scratch.gated.Rows(x.rows);
  RmsNorm(stream, x, weights.norm_gain, norm_eps, normed);
  Linear(stream, normed, *weights.gate_up, gate_up, /*accumulate=*/false);
  SiluMul(stream, gate_up, gated);
  Linear(stream, gated, *weights.down, x, /*accumulate=*/true);
}

void Ops::NormHeadSample(Stream& stream, const HeadWeights& weights,
                         float norm_eps, Matrix x, const SampleBatch& batch,
                         const StepScratch& scratch, float* raw_logits,
                         SampleResult* results) {
  if (batch.num_rows == 0) return;
  const Matrix gathered = scratch.gathered.Rows(batch.num_rows);
  const Matrix logits = scratch.logits.Rows(batch.num_rows);
  GatherRows(stream, x, batch.rows, gathered);
  RmsNorm(stream, gathered, weights.norm_gain, norm_eps, gathered);
  Linear(stream, gathered, *weights.lm_head, logits, /*accumulate=*/false);
  if (raw_logits != nullptr) CopyRows(stream, logits, raw_logits);
  Sample(stream, logits, weights.is_token, batch, results);
}

}  // namespace overfill
