// Tiny pairs on the CPU, and the engines that run them.
#ifndef OVERFILL_TESTS_ENGINE_PAIR_ENGINE_FIXTURE_H_
#define OVERFILL_TESTS_ENGINE_PAIR_ENGINE_FIXTURE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/pair.h"
#include "engine/pair_engine.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "tests/engine/checkpoint_files.h"

namespace overfill {

class PairEngineTest : public testing::Test {
 protected:
  void SetUp() override {
    auto device = MakeDevice("cpu", {.num_threads = 2});
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    full_ = MakeTinyCheckpoint("llama", 1);
    pruned_ = full_;
    pruned_.config["hidden_size"] = 19;
    pruned_.config["max_position_embeddings"] = 200;
  }

  // kv_map: its text, or empty.
  std::unique_ptr<Pair> LoadPair(const std::string& kv_map) {
    PairOptions options;
    options.prefill_model_dir = directory_ / "full";
    options.decode_model_dir = directory_ / "pruned";
    options.load_format = LoadFormat::kDummy;
    options.prefill_weights = options.decode_weights = DType::kF32;
    full_.WriteTo(options.prefill_model_dir);
    pruned_.WriteTo(options.decode_model_dir);
    if (!kv_map.empty()) {
      options.kv_map_file = directory_ / "map.json";
      WriteFile(options.kv_map_file, kv_map);
    }
    auto pair = Pair::Load(*device_, options);
    EXPECT_TRUE(pair.ok()) << pair.status();
    return pair.ok() ? *std::move(pair) : nullptr;
  }

  std::unique_ptr<PairEngine> MustCreate(const Pair& pair,
                                         const PairEngineOptions& options) {
    auto engine = PairEngine::Create(*device_, pair, options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }

  // The token that follows `ids`, which begin at `start`.
  static int32_t Next(StepRunner* runner, const std::vector<int32_t>& ids,
                      int32_t start, const std::vector<int32_t>& table) {
    SamplingParams params;
    params.temperature = 0;
    const SamplingState sampling(&params, {}, 0);
    const SamplingState* const draw = &sampling;
    StepBatch batch;
    batch.sequences.push_back({.token_ids = ids,
                               .start_position = start,
                               .block_table = table,
                               .draws = std::span(&draw, 1)});
    const auto result = runner->Run(batch);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return -1;
    EXPECT_TRUE(result->tokens[0].status.ok());
    return result->tokens[0].token_id;
  }

  TempDirectory directory_;
  std::unique_ptr<Device> device_;
  TinyCheckpoint full_, pruned_;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_ENGINE_PAIR_ENGINE_FIXTURE_H_
