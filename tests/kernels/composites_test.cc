// The composites against their own definition in primitives. Where a backend
// keeps the default the two agree to the bit; where it fuses, to rounding.
#include <cmath>

#include "tests/kernels/backend_test.h"

namespace overfill {
namespace {

// A layer of odd sizes, and a step of three sequences over it.
class CompositesTest : public BackendTest {
 protected:
  static constexpr int32_t kHidden = 70;
  static constexpr int32_t kIntermediate = 193;
  static constexpr int32_t kHeads = 6;
  static constexpr int32_t kKvHeads = 2;
  static constexpr int32_t kHeadDim = 24;
  static constexpr int32_t kVocabSize = 301;
  static constexpr int32_t kQkvWidth = (kHeads + 2 * kKvHeads) * kHeadDim;
  static constexpr int32_t kRows = 12;  // 9 + 1 + 2
  static constexpr int32_t kBlockTokens = 4;
  static constexpr int32_t kNumBlocks = 8;

  // Weights are drawn at 1 / sqrt(in).
  std::unique_ptr<LinearWeight> MakeWeight(int64_t out, int64_t in) {
    const OwnedTensor tensor(
        {out, in}, DType::kBF16,
        Normals(out * in, true, 1 / std::sqrt(static_cast<float>(in))));
    const std::vector<HostTensor> weights = {tensor.view};
    auto weight = ops().MakeLinear(weights, {}, DType::kBF16);
    OVERFILL_CHECK_OK(weight.status());
    return *std::move(weight);
  }

  // Rounding of activations to bf16 at different places is all that a fused
  // form may differ by.
  static void ExpectClose(const std::vector<float>& a,
                          const std::vector<float>& b) {
    ASSERT_EQ(a.size(), b.size());
    float largest = 0;
    for (float value : b) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_NEAR(a[i], b[i], 4 * kRoundoffBF16 * largest) << "element " << i;
    }
  }

  StepScratch MakeScratch() {
    const auto add = [&](int64_t cols) {
      scratch_memory_.push_back(MakeMatrix(kRows, cols));
      return scratch_memory_.back().view;
    };
    return {add(kHidden),       add(kQkvWidth), add(2 * kIntermediate),
            add(kIntermediate), add(kHidden),   add(kVocabSize)};
  }

  std::vector<DeviceMatrix> scratch_memory_;
};

TEST_P(CompositesTest, NormQkvRopeWrite) {
  const auto qkv_weight = MakeWeight(kQkvWidth, kHidden);
  const auto gain = Upload(Normals(kHidden));
  const auto q_gain = Upload(Normals(kHeadDim));
  const auto k_gain = Upload(Normals(kHeadDim));
  AttentionWeights weights;
  weights.norm_gain = gain.data();
  weights.qkv = qkv_weight.get();
  weights.q_norm_gain = q_gain.data();
  weights.k_norm_gain = k_gain.data();
  const AttentionShape shape = {kHeads, kKvHeads, kHeadDim, 1e-5f};

  const auto positions =
      Upload(std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 2, 3});
  const auto row_sequence =
      Upload(std::vector<int32_t>{0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 2});
  const auto row_begin = Upload(std::vector<int32_t>{0, 9, 10, 12});
  const auto tables =
      Upload(std::vector<int32_t>{7, 1, 4, 2, 0, -1, 5, -1, -1});
  BatchView batch;
  batch.num_rows = kRows;
  batch.num_sequences = 3;
  batch.max_sequence_rows = 9;
  batch.max_kv_tokens = 9;
  batch.max_blocks = 3;
  batch.positions = positions.data();
  batch.row_sequence = row_sequence.data();
  batch.row_begin = row_begin.data();
  batch.block_tables = tables.data();

  const DeviceMatrix cos_sin = MakeMatrix(kRows, kHeadDim);
  const auto frequencies = Upload(Normals(kHeadDim / 2));
  ops().RopeAngles(*stream_, batch, frequencies.data(), cos_sin.view);
  const DeviceMatrix x = MakeMatrix(kRows, kHidden, Normals(kRows * kHidden));
  const StepScratch scratch = MakeScratch();
  const StepScratch other = MakeScratch();
  KvView kv = {nullptr,  DType::kF32,  kNumBlocks, 2,
               kKvHeads, kBlockTokens, kHeadDim};
  const auto store =
      Upload(std::vector<float>(kv.block_elements() * kNumBlocks, 0.0f));
  const auto other_store =
      Upload(std::vector<float>(kv.block_elements() * kNumBlocks, 0.0f));
  {
    StreamScope scope(*stream_);
    kv.data = store.data();
    ops().NormQkvRopeWrite(*stream_, shape, weights, batch, cos_sin.view, kv, 1,
                           x.view, scratch);
    kv.data = other_store.data();
    ops().Ops::NormQkvRopeWrite(*stream_, shape, weights, batch, cos_sin.view,
                                kv, 1, x.view, other);
  }
  ExpectClose(store.Read(), other_store.Read());
  const auto q_of = [&](const DeviceMatrix& qkv) {
    const std::vector<float> all = qkv.Read();
    std::vector<float> q;
    for (int32_t row = 0; row < kRows; ++row) {
      q.insert(q.end(), all.begin() + row * kQkvWidth,
               all.begin() + row * kQkvWidth + kHeads * kHeadDim);
    }
    return q;
  };
  ExpectClose(q_of(scratch_memory_[1]), q_of(scratch_memory_[7]));
}

TEST_P(CompositesTest, ResidualBlocks) {
  const auto output = MakeWeight(kHidden, kHeads * kHeadDim);
  const auto gate_up = MakeWeight(2 * kIntermediate, kHidden);
  const auto down = MakeWeight(kHidden, kIntermediate);
  const auto gain = Upload(Normals(kHidden));
  AttentionWeights attention_weights;
  attention_weights.output = output.get();
  MlpWeights mlp_weights;
  mlp_weights.norm_gain = gain.data();
  mlp_weights.gate_up = gate_up.get();
  mlp_weights.down = down.get();
  const DeviceMatrix attention =
      MakeMatrix(kRows, kHeads * kHeadDim, Normals(kRows * kHeads * kHeadDim));
  const std::vector<float> start = Normals(kRows * kHidden);
  const DeviceMatrix x = MakeMatrix(kRows, kHidden, start);
  const DeviceMatrix y = MakeMatrix(kRows, kHidden, start);
  const StepScratch scratch = MakeScratch();
  {
    StreamScope scope(*stream_);
    ops().OutputResidual(*stream_, attention_weights, attention.view, x.view);
    ops().NormMlpResidual(*stream_, mlp_weights, 1e-5f, x.view, scratch);
    ops().Ops::OutputResidual(*stream_, attention_weights, attention.view,
                              y.view);
    ops().Ops::NormMlpResidual(*stream_, mlp_weights, 1e-5f, y.view, scratch);
  }
  ExpectClose(x.Read(), y.Read());
  EXPECT_NE(x.Read(), start);
}

TEST_P(CompositesTest, NormHeadSample) {
  const auto lm_head = MakeWeight(kVocabSize, kHidden);
  const auto gain = Upload(Normals(kHidden));
  std::vector<uint8_t> is_token(kVocabSize, 1);
  std::fill(is_token.begin() + 290, is_token.end(), 0);
  const auto device_is_token = Upload(is_token);
  HeadWeights weights;
  weights.norm_gain = gain.data();
  weights.lm_head = lm_head.get();
  weights.is_token = device_is_token.data();
  const DeviceMatrix x = MakeMatrix(kRows, kHidden, Normals(kRows * kHidden));
  const std::vector<int32_t> rows = {8, 9, 11};
  const auto device_rows = Upload(rows);
  std::vector<SampleParams> params(3);
  params[1].num_logprobs = 4;
  params[2].temperature = 1;
  params[2].seed = random_();
  const auto device_params = Upload(params);
  SampleBatch batch;
  batch.num_rows = 3;
  batch.rows = device_rows.data();
  batch.params = device_params.data();
  const StepScratch scratch = MakeScratch();
  const auto raw = Upload(std::vector<float>(3 * kVocabSize, -1e9f));
  const auto other_raw = Upload(std::vector<float>(3 * kVocabSize, -2e9f));
  const auto results = Upload(std::vector<SampleResult>(3));
  const auto other_results = Upload(std::vector<SampleResult>(3));
  {
    StreamScope scope(*stream_);
    ops().NormHeadSample(*stream_, weights, 1e-5f, x.view, batch, scratch,
                         raw.data(), results.data());
    ops().Ops::NormHeadSample(*stream_, weights, 1e-5f, x.view, batch, scratch,
                              other_raw.data(), other_results.data());
  }
  ExpectClose(raw.Read(), other_raw.Read());
  const auto a = results.Read();
  const auto b = other_results.Read();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(a[i].token_id, b[i].token_id);
    EXPECT_LT(a[i].token_id, 290);
    EXPECT_EQ(a[i].num_top, i == 1 ? 4 : 0);
  }
  // The raw logits are those of the chosen rows.
  const std::vector<float> logits = raw.Read();
  float best = -1e30f;
  int32_t best_id = -1;
  for (int32_t id = 0; id < 290; ++id) {
    if (logits[id] > best) {
      best = logits[id];
      best_id = id;
    }
  }
  EXPECT_EQ(a[0].token_id, best_id);
}

OVERFILL_INSTANTIATE_BACKENDS(CompositesTest);

}  // namespace
}  // namespace overfill
