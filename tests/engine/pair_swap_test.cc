// The swap space of a pair's KV stores, and copies within a store.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/kv_store.h"
#include "engine/pair_engine.h"
#include "gtest/gtest.h"
#include "tests/engine/pair_engine_fixture.h"
#include "tests/engine/status_matchers.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

constexpr char kProjection[] =
    R"({"kind": "projection", "layers": [0, 2], "file": "m.safetensors"})";

class PairSwapTest : public PairEngineTest {
 protected:
  // Stores of different layouts.
  std::unique_ptr<Pair> LoadProjection() {
    pruned_.config["num_key_value_heads"] = 1;
    pruned_.config["head_dim"] = 24;
    pruned_.config["num_hidden_layers"] = 2;
    return LoadPair(kProjection);
  }

  static char* At(const KvStore& store, int32_t block) {
    return static_cast<char*>(store.view().data) + block * store.block_bytes();
  }
  static std::string Bytes(const KvStore& store, int32_t block) {
    return std::string(At(store, block), store.block_bytes());
  }
  static int64_t StoreBytes(const KvStore& store) {
    return store.num_blocks() * store.block_bytes();
  }
  void FillWithNoise(const KvStore& store) {
    char* const data = At(store, 0);
    std::generate(data, data + StoreBytes(store),
                  [this] { return static_cast<char>(random_()); });
  }
  // `count` distinct blocks of `store`.
  std::vector<int32_t> SomeBlocks(const KvStore& store, size_t count) {
    std::vector<int32_t> blocks(store.num_blocks());
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random_);
    blocks.resize(count);
    return blocks;
  }
  // Moves whole blocks, but `last_tokens` of the last one.
  static absl::Status Move(KvMover* mover, const std::vector<int32_t>& from,
                           const std::vector<int32_t>& to,
                           int32_t last_tokens = 16) {
    std::vector<BlockCopy> copies;
    for (size_t i = 0; i < from.size(); ++i) {
      copies.push_back({from[i], to[i], 16});
    }
    copies.back().num_tokens = last_tokens;
    return mover->Move(copies, /*first_position=*/0).status();
  }

  std::mt19937_64 random_{TestSeed()};
};

TEST_F(PairSwapTest, ABlockComesBackElsewhereAsItWentOut) {
  const auto pair = LoadProjection();
  ASSERT_NE(pair, nullptr);
  const auto engine =
      MustCreate(*pair, {.kv_cache_bytes = 1 << 20, .swap_bytes = 1 << 19});
  ASSERT_NE(engine, nullptr);
  ASSERT_EQ(engine->num_stores(), 2);
  for (int number = 0; number < 2; ++number) {
    const KvStore& store = engine->store(number);
    const KvStore* const swap = engine->swap_store(number);
    ASSERT_NE(swap, nullptr);
    EXPECT_EQ(swap->layout(), store.layout());
    FillWithNoise(store);
    FillWithNoise(*swap);
    constexpr size_t kCount = 5;
    ASSERT_GE(engine->swap_blocks(number), static_cast<int32_t>(kCount));
    const std::vector<int32_t> all = SomeBlocks(store, 2 * kCount);
    const std::vector<int32_t> before(all.begin(), all.begin() + kCount);
    const std::vector<int32_t> after(all.begin() + kCount, all.end());
    const std::vector<int32_t> outside = SomeBlocks(*swap, kCount);
    std::vector<std::string> bytes;
    for (int32_t block : before) bytes.push_back(Bytes(store, block));

    ASSERT_TRUE(Move(engine->swap_out(number), before, outside).ok());
    for (int32_t block : before) {
      std::memset(At(store, block), 0x5a, store.block_bytes());
    }
    const std::string untouched(At(store, 0), StoreBytes(store));
    ASSERT_TRUE(Move(engine->swap_in(number), outside, after).ok());
    for (size_t i = 0; i < kCount; ++i) {
      EXPECT_EQ(Bytes(*swap, outside[i]), bytes[i]);
      EXPECT_EQ(Bytes(store, after[i]), bytes[i]);
    }
    // And nothing else has changed.
    for (int32_t block = 0; block < store.num_blocks(); ++block) {
      if (std::count(after.begin(), after.end(), block) > 0) continue;
      EXPECT_EQ(
          Bytes(store, block),
          untouched.substr(block * store.block_bytes(), store.block_bytes()));
    }
  }
}

TEST_F(PairSwapTest, AnAnswerGoesOnFromSwappedBlocks) {
  const auto pair = LoadPair("");
  ASSERT_NE(pair, nullptr);
  const auto engine = MustCreate(*pair, {.max_decode_batch = 4});
  ASSERT_NE(engine, nullptr);
  std::vector<int32_t> prompt(37);
  for (int32_t& id : prompt) id = static_cast<int32_t>(random_() % 300);
  std::vector<int32_t> table = {1, 4, 2};
  const int32_t first = Next(engine->prefill(), prompt, 0, table);
  std::vector<int32_t> apart = {7, 3, 9};
  ASSERT_EQ(Next(engine->prefill(), prompt, 0, apart), first);
  int32_t token = first;
  int32_t other = first;
  for (int32_t position = 37; position < 48; ++position) {
    token = Next(engine->decode(), {token}, position, table);
    // Out and in again before each token, always to other blocks.
    const int32_t last_tokens = position - 32;
    const std::vector<int32_t> outside = {2, 0, 1};
    ASSERT_TRUE(Move(engine->swap_out(0), apart, outside, last_tokens).ok());
    for (int32_t block : apart) {
      std::memset(At(engine->store(0), block), 0xff,
                  engine->store(0).block_bytes());
    }
    const std::vector<int32_t> next = position % 2 == 0
                                          ? std::vector<int32_t>{7, 3, 9}
                                          : std::vector<int32_t>{5, 8, 6};
    ASSERT_TRUE(Move(engine->swap_in(0), outside, next, last_tokens).ok());
    apart = next;
    other = Next(engine->decode(), {other}, position, apart);
    ASSERT_EQ(token, other) << position;
  }
}

TEST_F(PairSwapTest, AForkCopiesWithinItsStore) {
  const auto pair = LoadProjection();
  ASSERT_NE(pair, nullptr);
  const auto engine = MustCreate(*pair, {.kv_cache_bytes = 1 << 20});
  ASSERT_NE(engine, nullptr);
  for (int number = 0; number < 2; ++number) {
    const KvStore& store = engine->store(number);
    FillWithNoise(store);
    const std::vector<int32_t> blocks = SomeBlocks(store, 4);
    const std::vector<std::string> bytes = {Bytes(store, blocks[0]),
                                            Bytes(store, blocks[1])};
    ASSERT_TRUE(Move(engine->fork_mover(number), {blocks[0], blocks[1]},
                     {blocks[2], blocks[3]})
                    .ok());
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(Bytes(store, blocks[i]), bytes[i]);
      EXPECT_EQ(Bytes(store, blocks[i + 2]), bytes[i]);
    }
    // A partial block: the slots that it uses, in each layer and head.
    constexpr int32_t kTokens = 5;
    const std::string old = Bytes(store, blocks[3]);
    ASSERT_TRUE(
        Move(engine->fork_mover(number), {blocks[0]}, {blocks[3]}, kTokens)
            .ok());
    const std::string now = Bytes(store, blocks[3]);
    const auto tile_bytes =
        static_cast<size_t>(store.block_bytes()) /
        (2 * store.layout().num_layers * store.layout().num_kv_heads);
    for (size_t i = 0; i < now.size(); ++i) {
      const bool is_used = i % tile_bytes < tile_bytes / 16 * kTokens;
      ASSERT_EQ(now[i], is_used ? bytes[0][i] : old[i]) << i;
    }
    EXPECT_EQ(Move(engine->fork_mover(number), {blocks[0]}, {blocks[0]}).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(PairSwapTest, AForkedSequenceGoesOnAsItsOriginal) {
  const auto pair = LoadPair("");
  ASSERT_NE(pair, nullptr);
  const auto engine = MustCreate(*pair, {.max_decode_batch = 4});
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->num_stores(), 1);
  EXPECT_EQ(engine->fork_mover(1), nullptr);
  std::vector<int32_t> prompt(21);
  for (int32_t& id : prompt) id = static_cast<int32_t>(random_() % 300);
  const int32_t first = Next(engine->prefill(), prompt, 0, {4, 2});
  // The full block is shared, the partial one is the fork's own.
  ASSERT_TRUE(Move(engine->fork_mover(0), {2}, {9}, 5).ok());
  // The two draw different tokens; the fork must not see the other's.
  Next(engine->decode(), {(first + 1) % 300}, 21, {4, 2});
  const int32_t forked = Next(engine->decode(), {first}, 21, {4, 9});
  Next(engine->prefill(), prompt, 0, {6, 7});
  EXPECT_EQ(forked, Next(engine->decode(), {first}, 21, {6, 7}));
}

TEST_F(PairSwapTest, ItsBytesAreSharedBetweenTheStores) {
  const auto pair = LoadProjection();
  ASSERT_NE(pair, nullptr);
  for (const int64_t swap_bytes : {100'000, 300'000, 1 << 21}) {
    const auto engine = MustCreate(
        *pair, {.kv_cache_bytes = 1 << 20, .swap_bytes = swap_bytes});
    ASSERT_NE(engine, nullptr);
    EXPECT_EQ(engine->swap_blocks(0), engine->swap_blocks(1));
    int64_t used = 0;
    int64_t more = 0;
    for (int number = 0; number < 2; ++number) {
      EXPECT_EQ(engine->swap_store(number)->num_blocks(),
                engine->swap_blocks(number));
      used += StoreBytes(*engine->swap_store(number));
      more += engine->store(number).block_bytes();
    }
    EXPECT_LE(used, swap_bytes);
    EXPECT_GT(used + more, swap_bytes);
  }
}

TEST_F(PairSwapTest, ItFollowsTheStoresUnlessStated) {
  const auto pair = LoadPair("");
  ASSERT_NE(pair, nullptr);
  const auto automatic = MustCreate(*pair, {.kv_cache_bytes = 1 << 20});
  ASSERT_NE(automatic, nullptr);
  EXPECT_EQ(automatic->swap_blocks(0), automatic->store(0).num_blocks());
  EXPECT_EQ(automatic->swap_blocks(1), 0);
  EXPECT_EQ(automatic->swap_out(1), nullptr);

  const auto none =
      MustCreate(*pair, {.kv_cache_bytes = 1 << 20, .swap_bytes = 0});
  ASSERT_NE(none, nullptr);
  EXPECT_EQ(none->swap_blocks(0), 0);
  EXPECT_EQ(none->swap_store(0), nullptr);
  EXPECT_EQ(none->swap_out(0), nullptr);
  EXPECT_EQ(none->swap_in(0), nullptr);
  EXPECT_NE(none->fork_mover(0), nullptr);
}

TEST_F(PairSwapTest, ItsDefaultLeavesMemoryFree) {
  full_.config["max_position_embeddings"] = 1 << 27;
  pruned_.config["max_position_embeddings"] = 1 << 27;
  const auto pair = LoadPair("");
  ASSERT_NE(pair, nullptr);
  const int64_t memory_bytes = device_->info().memory_bytes;
  // Half of the memory goes to the stores, an eighth to the swap space.
  auto engine = MustCreate(
      *pair, {.max_sequence_tokens = 1 << 20, .max_decode_batch = 1 << 10});
  ASSERT_NE(engine, nullptr);
  const int64_t block_bytes = engine->store(0).block_bytes();
  int64_t swap_bytes = engine->swap_blocks(0) * block_bytes;
  EXPECT_LE(swap_bytes, memory_bytes / 8);
  EXPECT_GT(swap_bytes + block_bytes, memory_bytes / 8);
  engine.reset();
  // Where the stores leave little, half of that.
  const int64_t most = memory_bytes - memory_bytes / 16;
  engine =
      MustCreate(*pair, {.kv_cache_bytes = most, .max_sequence_tokens = 100});
  ASSERT_NE(engine, nullptr);
  swap_bytes = engine->swap_blocks(0) * block_bytes;
  EXPECT_GT(swap_bytes, 0);
  EXPECT_LE(swap_bytes, (memory_bytes - most) / 2);
}

TEST_F(PairSwapTest, ItsDefaultIsNoneWhereTheMemoryIsTaken) {
  const auto pair = LoadPair("");
  ASSERT_NE(pair, nullptr);
  const int64_t part = device_->info().memory_bytes / 16;
  const auto others = device_->Allocate(14 * part);
  ASSERT_TRUE(others.ok()) << others.status();
  const auto engine =
      MustCreate(*pair, {.kv_cache_bytes = part, .max_sequence_tokens = 100});
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->swap_blocks(0), 0);
  EXPECT_EQ(engine->swap_out(0), nullptr);
}

TEST_F(PairSwapTest, MoreThanTheMemoryIsRefusedByName) {
  const auto pair = LoadProjection();
  ASSERT_NE(pair, nullptr);
  for (const int64_t bytes :
       {device_->info().memory_bytes, 2 * device_->info().memory_bytes}) {
    EXPECT_TRUE(IsRefusal(
        PairEngine::Create(*device_, *pair,
                           {.kv_cache_bytes = 1 << 20, .swap_bytes = bytes})
            .status(),
        {"swap_bytes", "no memory"}, absl::StatusCode::kResourceExhausted));
  }
  // What the refused ones had taken is back.
  EXPECT_NE(MustCreate(*pair, {.kv_cache_bytes = 1 << 20}), nullptr);
}

}  // namespace
}  // namespace overfill
