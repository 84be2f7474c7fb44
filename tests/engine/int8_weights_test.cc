// How far int8 weights move what a model says: the shipped pair's logits, and
// the tokens that are drawn from them.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "engine/kv_store.h"
#include "engine/model_runner.h"
#include "engine/pair.h"
#include "gtest/gtest.h"
#include "kernels/device.h"

namespace overfill {
namespace {

constexpr int32_t kBlockTokens = 16;
constexpr int32_t kMaxTokens = 256;
// A weight's step is 1/127 of its group's largest, which is two to three times
// the group's root mean square; its error, evenly spread over a step, is about
// 0.6 % of that. Each product adds as much again to what it is given. On this
// pair inputs of 8 bits instead of 15 would exceed the bound.
constexpr double kMostRelativeError = 0.1;

// One model of the pair that answers with its logits.
class Reader {
 public:
  Reader(Device& device, const ModelWeights& weights) {
    const KvLayout layout =
        KvLayoutOf(weights.config, KvDTypeOf(weights.dtype), kBlockTokens);
    store_ = *KvStore::Create(
        device, layout, kMaxTokens / kBlockTokens * *KvBlockBytes(layout));
    ModelRunnerOptions options;
    options.limits = {.max_rows = kMaxTokens,
                      .max_sequences = 1,
                      .max_sequence_tokens = kMaxTokens};
    options.logits_hook = [this](int32_t, std::span<const float> row) {
      logits_.assign(row.begin(), row.end());
    };
    runner_ = *ModelRunner::Create(device, weights, *store_, options);
    std::iota(blocks_.begin(), blocks_.end(), 0);
    params_.temperature = 0;
  }

  // The logits after `tokens`, of which those before `begin` were read.
  std::vector<float> Read(std::span<const int32_t> tokens, int32_t begin) {
    const SamplingState state(&params_, {}, 0);
    const SamplingState* const draw = &state;
    const SequenceStep step{.token_ids = tokens.subspan(begin),
                            .start_position = begin,
                            .block_table = blocks_,
                            .draws = {&draw, 1}};
    const auto result = runner_->Run({.sequences = {step}});
    OVERFILL_CHECK_OK(result.status());
    return logits_;
  }

 private:
  SamplingParams params_;
  std::unique_ptr<KvStore> store_;
  std::unique_ptr<ModelRunner> runner_;
  std::vector<int32_t> blocks_ =
      std::vector<int32_t>(kMaxTokens / kBlockTokens);
  std::vector<float> logits_;
};

// Of the difference to the spread of the logits around their mean: what all
// logits have in common says nothing.
double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  const double mean = std::accumulate(a.begin(), a.end(), 0.0) / a.size();
  double error = 0, spread = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += std::pow(double{b[i]} - a[i], 2);
    spread += std::pow(a[i] - mean, 2);
  }
  return std::sqrt(error / spread);
}

int32_t Best(const std::vector<float>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) -
                              logits.begin());
}

TEST(Int8Weights, LogitsOfTheShippedPairStayNearThoseOfBF16) {
  auto device = MakeDevice("cpu", {.num_threads = 2});
  ASSERT_TRUE(device.ok()) << device.status();
  PairOptions options;
  options.prefill_model_dir = "models/demo/full";
  options.decode_model_dir = "models/demo/decode";
  const auto bf16 = Pair::Load(**device, options);
  ASSERT_TRUE(bf16.ok()) << bf16.status();
  options.prefill_weights = options.decode_weights = DType::kInt8;
  const auto int8 = Pair::Load(**device, options);
  ASSERT_TRUE(int8.ok()) << int8.status();
  const std::vector<std::string> prompts = {
      "Alice keeps her key in the blue box.",
      "The train to Paris leaves at nine, the one to Rome at ten."};
  for (const bool is_full : {true, false}) {
    const auto weights = [&](const Pair& pair) -> const ModelWeights& {
      return (is_full ? pair.full() : pair.pruned()).weights;
    };
    Reader exact(**device, weights(**bf16));
    Reader rounded(**device, weights(**int8));
    double worst = 0;
    int32_t num_steps = 0, num_same = 0;
    for (const std::string& prompt : prompts) {
      auto tokens = *(*bf16)->tokenizer().Encode(prompt, {});
      int32_t begin = 0;
      for (int i = 0; i < 40; ++i) {
        const auto want = exact.Read(tokens, begin);
        const auto got = rounded.Read(tokens, begin);
        worst = std::max(worst, RelativeError(want, got));
        num_same += Best(want) == Best(got);
        ++num_steps;
        begin = static_cast<int32_t>(tokens.size());
        tokens.push_back(Best(want));
      }
    }
    EXPECT_GT(worst, 0);
    EXPECT_LT(worst, kMostRelativeError);
    EXPECT_GE(num_same, num_steps * 95 / 100);
    RecordProperty(is_full ? "full_error" : "pruned_error",
                   absl::StrCat(worst));
    std::cout << (is_full ? "full" : "pruned") << ": relative error " << worst
              << ", same choice " << num_same << " of " << num_steps << "\n";
  }
}

}  // namespace
}  // namespace overfill
