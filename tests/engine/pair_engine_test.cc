#include "engine/pair_engine.h"

#include <limits>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/pair_engine_fixture.h"
#include "tests/engine/status_matchers.h"

namespace overfill {
namespace {

TEST_F(PairEngineTest, AnIdentityPairSharesOneStore) {
  const auto pair = LoadPair("");
  ASSERT_NE(pair, nullptr);
  const auto engine = MustCreate(*pair, {.max_sequence_tokens = 100,
                                         .prefill_chunk_tokens = 32,
                                         .max_decode_batch = 3});
  ASSERT_NE(engine, nullptr);
  EXPECT_TRUE(engine->shares_store());
  EXPECT_EQ(engine->mover(), nullptr);
  EXPECT_EQ(&engine->prefill_store(), &engine->decode_store());
  EXPECT_EQ(engine->max_sequence_tokens(), 100);
  EXPECT_EQ(engine->prefill_store().layout().dtype, DType::kF32);
  // Room for three sequences of 100 tokens, in blocks of 16.
  EXPECT_EQ(engine->prefill_store().num_blocks(), 3 * 7);
  for (const StepRunner* runner : {engine->prefill(), engine->decode()}) {
    EXPECT_EQ(runner->limits().max_rows, 35);
    EXPECT_EQ(runner->limits().max_sequences, 3);
    EXPECT_EQ(runner->limits().max_sequence_tokens, 100);
  }
}

TEST_F(PairEngineTest, DecodeReadsTheFullModelsLayers) {
  pruned_.config = full_.config;
  pruned_.config["num_hidden_layers"] = 2;
  const auto pair = LoadPair(R"({"kind": "layers", "layers": [0, 2]})");
  ASSERT_NE(pair, nullptr);
  const auto engine = MustCreate(*pair, {.max_decode_batch = 2});
  ASSERT_NE(engine, nullptr);
  EXPECT_TRUE(engine->shares_store());
  EXPECT_EQ(engine->prefill_store().layout().num_layers, 3);
  const std::vector<int32_t> prompt = {5, 9, 300, 41, 7};
  const std::vector<int32_t> table = {3};
  const int32_t first = Next(engine->prefill(), prompt, 0, table);
  // The decode step writes layers 0 and 2 of its slot, and no other.
  const KvView& kv = engine->prefill_store().view();
  const auto slot = [&](int32_t layer) {
    return static_cast<const float*>(kv.data) + kv.TileOffset(3, layer, 0, 0) +
           5 * kv.head_dim;
  };
  for (const int32_t layer : {0, 1, 2}) EXPECT_EQ(*slot(layer), 0);
  Next(engine->decode(), {first}, 5, table);
  EXPECT_NE(*slot(0), 0);
  EXPECT_EQ(*slot(1), 0);
  EXPECT_NE(*slot(2), 0);
}

TEST_F(PairEngineTest, TheFullModelInBothPlacesGoesOnAsOne) {
  pruned_ = full_;
  const auto pair = LoadPair("");
  ASSERT_NE(pair, nullptr);
  const auto engine = MustCreate(*pair, {.max_decode_batch = 2});
  ASSERT_NE(engine, nullptr);
  const std::vector<int32_t> prompt = {5, 9, 300, 41, 7, 100, 101, 102};
  int32_t one = Next(engine->prefill(), prompt, 0, {1, 4});
  int32_t two = Next(engine->prefill(), prompt, 0, {2, 3});
  for (int32_t position = 8; position < 30; ++position) {
    ASSERT_EQ(one, two) << position;
    one = Next(engine->prefill(), {one}, position, {1, 4});
    two = Next(engine->decode(), {two}, position, {2, 3});
  }
}

TEST_F(PairEngineTest, AProjectionHasTwoStoresOfAsManyTokens) {
  pruned_.config["num_key_value_heads"] = 1;
  pruned_.config["head_dim"] = 24;
  pruned_.config["num_hidden_layers"] = 2;
  const auto pair = LoadPair(
      R"({"kind": "projection", "layers": [0, 2], "file": "m.safetensors"})");
  ASSERT_NE(pair, nullptr);
  const auto engine = MustCreate(*pair, {.kv_cache_bytes = 1 << 20});
  ASSERT_NE(engine, nullptr);
  EXPECT_FALSE(engine->shares_store());
  const KvStore& from = engine->prefill_store();
  const KvStore& to = engine->decode_store();
  EXPECT_EQ(to.layout().num_layers, 2);
  EXPECT_EQ(to.layout().num_kv_heads, 1);
  EXPECT_EQ(to.layout().head_dim, 24);
  EXPECT_EQ(from.num_blocks(), to.num_blocks());
  const int64_t used =
      from.num_blocks() * (from.block_bytes() + to.block_bytes());
  EXPECT_LE(used, 1 << 20);
  EXPECT_GT(used + from.block_bytes() + to.block_bytes(), 1 << 20);

  ASSERT_NE(engine->mover(), nullptr);
  const int32_t first = Next(engine->prefill(), {5, 9, 300}, 0, {2});
  const std::vector<BlockCopy> copies = {{2, 5, 3}};
  ASSERT_TRUE(engine->mover()->Move(copies, 0).ok());
  const auto* moved = static_cast<const float*>(to.view().data) +
                      to.view().TileOffset(5, 1, 1, 0);
  EXPECT_NE(*moved, 0);
  EXPECT_GE(Next(engine->decode(), {first}, 3, {5}), 0);
}

TEST_F(PairEngineTest, SequencesFollowThePairAndTheCache) {
  const auto pair = LoadPair("");
  ASSERT_NE(pair, nullptr);
  // The smaller of both contexts.
  EXPECT_EQ(MustCreate(*pair, {.max_decode_batch = 1})->max_sequence_tokens(),
            200);
  const int64_t block_bytes =
      MustCreate(*pair, {.max_decode_batch = 1})->prefill_store().block_bytes();
  // What the cache holds, where that is less.
  const auto small = MustCreate(*pair, {.kv_cache_bytes = 3 * block_bytes + 1});
  EXPECT_EQ(small->prefill_store().num_blocks(), 3);
  EXPECT_EQ(small->max_sequence_tokens(), 48);
  EXPECT_TRUE(IsRefusal(PairEngine::Create(*device_, *pair,
                                           {.kv_cache_bytes = 3 * block_bytes,
                                            .max_sequence_tokens = 49})
                            .status(),
                        {"max_sequence_tokens 49", "kv_cache_bytes"}));
}

TEST_F(PairEngineTest, TheDefaultCacheLeavesHalfOfTheMemory) {
  full_.config["max_position_embeddings"] = 1 << 27;
  pruned_.config["max_position_embeddings"] = 1 << 27;
  const auto pair = LoadPair("");
  ASSERT_NE(pair, nullptr);
  // Terabytes are asked for.
  const auto engine = MustCreate(*pair, {.max_decode_batch = 64});
  ASSERT_NE(engine, nullptr);
  const KvStore& store = engine->prefill_store();
  EXPECT_LE(store.num_blocks() * store.block_bytes(),
            device_->info().memory_bytes / 2);
  EXPECT_EQ(engine->max_sequence_tokens(), store.num_blocks() * 16);
}

TEST_F(PairEngineTest, OptionsOutOfRangeAreRefusedByName) {
  const auto pair = LoadPair("");
  ASSERT_NE(pair, nullptr);
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  const auto refused = [&](const char* name, PairEngineOptions options) {
    EXPECT_TRUE(IsRefusal(PairEngine::Create(*device_, *pair, options).status(),
                          {name}));
  };
  refused("kv_cache_bytes", {.kv_cache_bytes = -1});
  refused("kv_cache_bytes", {.kv_cache_bytes = 1});
  refused("swap_bytes", {.swap_bytes = -2});
  refused("swap_bytes", {.swap_bytes = 1});
  refused("block_tokens", {.block_tokens = 0});
  refused("block_tokens", {.block_tokens = kMax});
  refused("max_sequence_tokens", {.max_sequence_tokens = -1});
  refused("max_sequence_tokens", {.max_sequence_tokens = 201});
  refused("max_sequence_tokens", {.max_sequence_tokens = kMax});
  refused("prefill_chunk_tokens", {.prefill_chunk_tokens = 0});
  refused("prefill_chunk_tokens", {.prefill_chunk_tokens = kMax});
  refused("max_decode_batch", {.max_decode_batch = 0});
  refused("max_decode_batch", {.max_decode_batch = kMax});
}

}  // namespace
}  // namespace overfill
