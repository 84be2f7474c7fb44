// A runner of a tiny random model, and what it says of the test's tokens.
#ifndef OVERFILL_TESTS_ENGINE_MODEL_RUNNER_FIXTURE_H_
#define OVERFILL_TESTS_ENGINE_MODEL_RUNNER_FIXTURE_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "engine/kv_store.h"
#include "engine/model_runner.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "tests/engine/tiny_model.h"

namespace overfill {

inline constexpr int32_t kBlockTokens = 4;
// One for each sequence of the largest batch: no two write into one block.
inline constexpr int32_t kNumBlocks = 128;
inline constexpr StepLimits kLimits = {
    .max_rows = 256, .max_sequences = 128, .max_sequence_tokens = 100};
// Sums in another order only; logits are near 1.
inline constexpr float kTolerance = 2e-5f;

using Logits = std::vector<float>;

inline SamplingParams Greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}

class ModelRunnerTest : public testing::Test {
 protected:
  ModelRunnerTest()
      : device_(*MakeDevice("cpu", {.num_threads = 2})),
        model_(*device_, /*num_layers=*/3, /*seed=*/11),
        store_(Store(model_.weights().config.num_layers)),
        runner_(*ModelRunner::Create(*device_, model_.weights(), *store_,
                                     Options())) {
    Poison(*store_);
    std::mt19937 random(5);
    for (int32_t& id : tokens_) id = random() % TinyModel::kPoisonedToken;
    std::iota(blocks_.begin(), blocks_.end(), 0);
    std::shuffle(blocks_.begin(), blocks_.end(), random);
  }

  std::unique_ptr<KvStore> Store(int32_t num_layers) {
    KvLayout layout =
        KvLayoutOf(model_.weights().config, DType::kF32, kBlockTokens);
    layout.num_layers = num_layers;
    return *KvStore::Create(*device_, layout,
                            kNumBlocks * *KvBlockBytes(layout));
  }

  // All bits set is a NaN: what is read before it is written shows.
  static void Poison(const KvStore& store) {
    std::memset(store.view().data, 0xff,
                store.num_blocks() * store.block_bytes());
  }

  ModelRunnerOptions Options() {
    ModelRunnerOptions options;
    options.limits = kLimits;
    options.logits_hook = [this](int32_t sequence, std::span<const float> row) {
      logits_.resize(std::max<size_t>(logits_.size(), sequence + 1));
      logits_[sequence].assign(row.begin(), row.end());
    };
    return options;
  }

  // `num_rows` of the test's tokens from `start`, in the blocks from the
  // `first_block`th of the shuffled list.
  SequenceStep Rows(int32_t start, int32_t num_rows, int32_t first_block) {
    const int32_t num_blocks =
        (start + num_rows + kBlockTokens - 1) / kBlockTokens;
    return {
        .token_ids = std::span<const int32_t>(tokens_).subspan(start, num_rows),
        .start_position = start,
        .block_table =
            std::span<const int32_t>(blocks_).subspan(first_block, num_blocks),
        .draws = greedy_draws_};
  }

  // The logits after each sequence's last row.
  std::vector<Logits> Run(std::vector<SequenceStep> sequences) {
    logits_.assign(sequences.size(), {});
    auto result = runner_->Run({.sequences = std::move(sequences)});
    EXPECT_TRUE(result.ok()) << result.status();
    last_result_ = *std::move(result);
    return logits_;
  }

  static float Difference(const Logits& a, const Logits& b) {
    if (a.size() != b.size() || a.empty()) return INFINITY;
    float worst = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      const float difference = std::abs(a[i] - b[i]);
      if (!(difference <= worst)) worst = difference;  // a NaN stays
    }
    return worst;
  }

  static int32_t ArgMax(const Logits& logits) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) -
                                logits.begin());
  }

  const std::unique_ptr<Device> device_;
  TinyModel model_;
  std::unique_ptr<KvStore> store_;
  std::vector<Logits> logits_;
  StepResult last_result_;
  std::unique_ptr<ModelRunner> runner_;
  std::vector<int32_t> tokens_ = std::vector<int32_t>(100);
  std::vector<int32_t> blocks_ = std::vector<int32_t>(kNumBlocks);
  const SamplingParams greedy_params_ = Greedy();
  const SamplingState greedy_{&greedy_params_, {}, 0};
  const std::array<const SamplingState*, 1> greedy_draws_ = {&greedy_};
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_ENGINE_MODEL_RUNNER_FIXTURE_H_
