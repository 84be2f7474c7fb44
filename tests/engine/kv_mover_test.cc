#include "engine/kv_mover.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

// Element i of the head of a token: [layer, k or v, kv_head, block, slot, i].
using Cell = std::function<float(int32_t layer, int half, int32_t head,
                                 int32_t block, int32_t slot, int32_t i)>;

// A value that no other cell has within a few thousand cells, exact in bf16.
float Mark(int32_t layer, int half, int32_t head, int32_t block, int32_t slot,
           int32_t i) {
  const uint32_t n =
      ((((layer * 2u + half) * 5 + head) * 31 + block) * 17 + slot) * 131 + i;
  std::minstd_rand random(n + 1);
  random.discard(2);
  return static_cast<float>(static_cast<int>(random() % 255) - 127) / 16;
}

class KvMoverTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    auto device = MakeDevice("cpu", {.num_threads = 2});
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
  }

  std::unique_ptr<KvStore> Store(int32_t num_layers, int32_t num_kv_heads,
                                 int32_t head_dim, int32_t num_blocks) {
    const KvLayout layout = {GetParam(), num_layers, num_kv_heads, 4, head_dim};
    auto store =
        KvStore::Create(*device_, layout, num_blocks * *KvBlockBytes(layout));
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }

  static float Read(const KvView& kv, int64_t element) {
    if (kv.dtype == DType::kF32) return static_cast<float*>(kv.data)[element];
    return FloatFromBFloat16(static_cast<uint16_t*>(kv.data)[element]);
  }
  static void Write(const KvView& kv, int64_t element, float value) {
    if (kv.dtype == DType::kF32) {
      static_cast<float*>(kv.data)[element] = value;
    } else {
      static_cast<uint16_t*>(kv.data)[element] = BFloat16FromFloat(value);
    }
  }
  static int64_t At(const KvView& kv, int32_t layer, int half, int32_t head,
                    int32_t block, int32_t slot, int32_t i) {
    return kv.TileOffset(block, layer, half, head) +
           int64_t{slot} * kv.head_dim + i;
  }
  static void FillAll(const KvView& kv, const Cell& cell) {
    ForEach(kv, [&](int32_t layer, int half, int32_t head, int32_t block,
                    int32_t slot, int32_t i) {
      Write(kv, At(kv, layer, half, head, block, slot, i),
            cell(layer, half, head, block, slot, i));
    });
  }
  template <typename Fn>
  static void ForEach(const KvView& kv, const Fn& fn) {
    for (int32_t block = 0; block < kv.num_blocks; ++block)
      for (int32_t layer = 0; layer < kv.num_layers; ++layer)
        for (int half = 0; half < 2; ++half)
          for (int32_t head = 0; head < kv.num_kv_heads; ++head)
            for (int32_t slot = 0; slot < kv.block_tokens; ++slot)
              for (int32_t i = 0; i < kv.head_dim; ++i)
                fn(layer, half, head, block, slot, i);
  }

  // Compares every cell of the destination with what the copies say. Slots
  // beyond num_tokens of a named block may hold anything.
  static int CountWrong(const KvView& kv, std::span<const BlockCopy> copies,
                        const Cell& moved, const Cell& untouched) {
    int num_wrong = 0;
    ForEach(kv, [&](int32_t layer, int half, int32_t head, int32_t block,
                    int32_t slot, int32_t i) {
      const float got = Read(kv, At(kv, layer, half, head, block, slot, i));
      for (const BlockCopy& copy : copies) {
        if (copy.destination != block) continue;
        if (slot >= copy.num_tokens) return;
        num_wrong += got != moved(layer, half, head, copy.source, slot, i);
        return;
      }
      num_wrong += got != untouched(layer, half, head, block, slot, i);
    });
    return num_wrong;
  }

  std::unique_ptr<Device> device_;
};

const Cell kUntouched = [](auto...) { return 0.5f; };

TEST_P(KvMoverTest, CopiesEveryByteOfTheNamedLayers) {
  auto source = Store(/*num_layers=*/4, 2, 80, /*num_blocks=*/6);
  auto destination = Store(/*num_layers=*/3, 2, 80, /*num_blocks=*/5);
  FillAll(source->view(), Mark);
  FillAll(destination->view(), kUntouched);
  const std::vector<int32_t> layers = {0, 2, 3};
  auto mover = BlockMover::Create(*device_, *source, *destination,
                                  {.source_layers = layers});
  ASSERT_TRUE(mover.ok()) << mover.status();
  const std::vector<BlockCopy> copies = {{5, 1, 4}, {0, 4, 4}, {2, 0, 3}};
  ASSERT_TRUE((*mover)->Move(copies, 0).ok());

  const Cell moved = [&](int32_t layer, int half, int32_t head, int32_t block,
                         int32_t slot, int32_t i) {
    return Mark(layers[layer], half, head, block, slot, i);
  };
  const KvView& kv = destination->view();
  EXPECT_EQ(CountWrong(kv, copies, moved, kUntouched), 0);
  // The comparison sees each way of going wrong.
  const Cell swapped = [&](int32_t layer, int half, int32_t head, int32_t block,
                           int32_t slot, int32_t i) {
    return Mark(layers[layer], 1 - half, head, block, slot, i);
  };
  const Cell same_number = [&](int32_t layer, int half, int32_t head,
                               int32_t block, int32_t slot, int32_t i) {
    return Mark(layer, half, head, block, slot, i);
  };
  EXPECT_GT(CountWrong(kv, copies, swapped, kUntouched), 0);
  EXPECT_GT(CountWrong(kv, copies, same_number, kUntouched), 0);
  std::vector<BlockCopy> neighbour = copies;
  neighbour[0].source = 4;
  EXPECT_GT(CountWrong(kv, neighbour, moved, kUntouched), 0);
  std::vector<BlockCopy> dropped(copies.begin(), copies.end() - 1);
  EXPECT_GT(CountWrong(kv, dropped, moved, kUntouched), 0);
}

TEST_P(KvMoverTest, ProjectsKAndVByTheirOwnMaps) {
  auto source = Store(/*num_layers=*/3, 2, 24, /*num_blocks=*/4);
  auto destination = Store(/*num_layers=*/2, 3, 16, /*num_blocks=*/4);
  FillAll(source->view(), Mark);
  FillAll(destination->view(), kUntouched);
  constexpr int64_t kIn = 2 * 24;
  constexpr int64_t kOut = 3 * 16;
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 0.2f);
  // [layer][half]: a map [kOut, kIn].
  std::vector<std::vector<float>> weights(4, std::vector<float>(kOut * kIn));
  KvMoveRules rules{.source_layers = {2, 0}};
  std::vector<std::unique_ptr<LinearWeight>> maps;
  for (size_t m = 0; m < weights.size(); ++m) {
    for (float& w : weights[m]) w = normal(random);
    const HostTensor tensor = {
        reinterpret_cast<const std::byte*>(weights[m].data()),
        DType::kF32,
        {kOut, kIn}};
    auto linear = device_->ops().MakeLinear({&tensor, 1}, {}, DType::kF32);
    ASSERT_TRUE(linear.ok()) << linear.status();
    maps.push_back(*std::move(linear));
    (m % 2 == 0 ? rules.k_maps : rules.v_maps).push_back(maps.back().get());
  }
  const std::vector<int32_t> layers = rules.source_layers;
  auto mover =
      BlockMover::Create(*device_, *source, *destination, std::move(rules));
  ASSERT_TRUE(mover.ok()) << mover.status();
  const std::vector<BlockCopy> copies = {{3, 0, 4}, {1, 2, 1}};
  const auto result = (*mover)->Move(copies, 0);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->sent_digest || result->received_digest);
  EXPECT_EQ((*mover)->DestinationDigest(copies, 0).status().code(),
            absl::StatusCode::kUnimplemented);

  const KvView& kv = destination->view();
  double worst[2] = {0, 0};  // as it should be; with K's and V's maps swapped
  for (const BlockCopy& copy : copies) {
    for (int32_t layer = 0; layer < 2; ++layer) {
      for (int half = 0; half < 2; ++half) {
        for (int32_t slot = 0; slot < copy.num_tokens; ++slot) {
          for (int64_t o = 0; o < kOut; ++o) {
            const float got = Read(kv, At(kv, layer, half, o / 16,
                                          copy.destination, slot, o % 16));
            double want[2] = {0, 0};
            for (int64_t i = 0; i < kIn; ++i) {
              const float x =
                  Mark(layers[layer], half, i / 24, copy.source, slot, i % 24);
              want[0] += double{weights[layer * 2 + half][o * kIn + i]} * x;
              want[1] += double{weights[layer * 2 + 1 - half][o * kIn + i]} * x;
            }
            for (int w = 0; w < 2; ++w) {
              worst[w] = std::max(worst[w], std::abs(got - want[w]));
            }
          }
        }
      }
    }
  }
  // Values reach 20 or so: bf16 rounds them by up to 2^-9 of that.
  EXPECT_LT(worst[0], GetParam() == DType::kF32 ? 1e-4 : 0.1);
  EXPECT_GT(worst[1], 1);
  EXPECT_EQ(Read(kv, At(kv, 0, 0, 0, /*block=*/1, 0, 0)), 0.5f);
}

TEST_P(KvMoverTest, RulesThatDoNotFitAreRefused) {
  auto source = Store(3, 2, 16, 2);
  auto destination = Store(2, 2, 16, 2);
  auto other_shape = Store(2, 4, 8, 2);
  const auto create = [&](const KvStore& to, std::vector<int32_t> layers) {
    return BlockMover::Create(*device_, *source, to,
                              {.source_layers = std::move(layers)})
        .status()
        .code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(create(*destination, {0, 2}), absl::StatusCode::kOk);
  EXPECT_EQ(create(*destination, {0}), kInvalid);
  EXPECT_EQ(create(*destination, {0, 3}), kInvalid);
  EXPECT_EQ(create(*destination, {0, -1}), kInvalid);
  EXPECT_EQ(create(*other_shape, {0, 1}), kInvalid);

  const std::vector<float> zeros(32 * 32);
  std::vector<std::unique_ptr<LinearWeight>> maps;
  const auto map = [&](int64_t out, int64_t in) {
    const HostTensor tensor = {reinterpret_cast<const std::byte*>(zeros.data()),
                               DType::kF32,
                               {out, in}};
    maps.push_back(*device_->ops().MakeLinear({&tensor, 1}, {}, DType::kF32));
    return maps.back().get();
  };
  KvMoveRules wrong_size{.source_layers = {0, 1}};
  KvMoveRules v_missing{.source_layers = {0, 1}};
  for (int i = 0; i < 2; ++i) {
    wrong_size.k_maps.push_back(map(32, 32));
    wrong_size.v_maps.push_back(map(31, 32));
    v_missing.k_maps.push_back(map(32, 32));
  }
  for (KvMoveRules* rules : {&wrong_size, &v_missing}) {
    EXPECT_EQ(
        BlockMover::Create(*device_, *source, *other_shape, std::move(*rules))
            .status()
            .code(),
        kInvalid);
  }
}

TEST_P(KvMoverTest, BlocksOutsideTheStoresAreRefusedBeforeAnyMove) {
  auto source = Store(1, 1, 16, 3);
  auto destination = Store(1, 1, 16, 2);
  FillAll(source->view(), Mark);
  FillAll(destination->view(), kUntouched);
  auto mover = BlockMover::Create(*device_, *source, *destination,
                                  {.source_layers = {0}});
  ASSERT_TRUE(mover.ok()) << mover.status();
  for (const BlockCopy& bad :
       {BlockCopy{3, 0, 1}, BlockCopy{-1, 0, 1}, BlockCopy{0, 2, 1},
        BlockCopy{0, -1, 1}, BlockCopy{0, 0, 5}, BlockCopy{0, 0, -1}}) {
    const std::vector<BlockCopy> copies = {{0, 0, 4}, bad};
    EXPECT_EQ((*mover)->Move(copies, 0).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  const std::vector<BlockCopy> good = {{0, 0, 4}};
  for (int32_t first_position : {-1, std::numeric_limits<int32_t>::max() - 3}) {
    EXPECT_EQ((*mover)->Move(good, first_position).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  const std::vector<BlockCopy> written_twice = {{0, 1, 4}, {2, 1, 4}};
  EXPECT_EQ((*mover)->Move(written_twice, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CountWrong(destination->view(), {}, Mark, kUntouched), 0);
  EXPECT_TRUE((*mover)->Move({}, 0).ok());
}

TEST_P(KvMoverTest, DigestsAreOfThePositionsWhereverTheyLie) {
  auto source = Store(/*num_layers=*/4, 2, 80, /*num_blocks=*/6);
  auto small = Store(/*num_layers=*/3, 2, 80, /*num_blocks=*/5);
  auto large = Store(/*num_layers=*/3, 2, 80, /*num_blocks=*/9);
  FillAll(source->view(), Mark);
  FillAll(small->view(), kUntouched);
  FillAll(large->view(), Mark);
  const KvMoveRules rules = {.source_layers = {0, 2, 3}};
  auto to_small = BlockMover::Create(*device_, *source, *small, rules);
  auto to_large = BlockMover::Create(*device_, *small, *large,
                                     {.source_layers = {0, 1, 2}});
  ASSERT_TRUE(to_small.ok() && to_large.ok());
  const auto out = (*to_small)->Move(
      std::vector<BlockCopy>{{5, 1, 4}, {0, 4, 4}, {2, 0, 3}}, 8);
  ASSERT_TRUE(out.ok()) << out.status();
  ASSERT_TRUE(out->sent_digest.has_value());
  EXPECT_EQ(out->sent_digest, out->received_digest);
  // On to other blocks of a store that held something else.
  const std::vector<BlockCopy> copies = {{1, 8, 4}, {4, 0, 4}, {0, 3, 3}};
  const auto on = (*to_large)->Move(copies, 8);
  ASSERT_TRUE(on.ok()) << on.status();
  EXPECT_EQ(on->sent_digest, out->received_digest);
  EXPECT_EQ(on->received_digest, out->received_digest);
  // Elsewhere in the sequence, or fewer of the slots, are something else.
  EXPECT_NE(*(*to_large)->SourceDigest(copies, 0), *on->sent_digest);
  EXPECT_NE(*(*to_large)->SourceDigest(
                std::vector<BlockCopy>{{1, 8, 4}, {4, 0, 4}, {0, 3, 2}}, 8),
            *on->sent_digest);
  EXPECT_NE(*(*to_large)->SourceDigest(
                std::vector<BlockCopy>{{4, 8, 4}, {1, 0, 4}, {0, 3, 3}}, 8),
            *on->sent_digest);

  // What changes in the used slots of the destination shows there alone.
  const KvView& kv = large->view();
  std::mt19937 random(static_cast<uint32_t>(TestSeed()));
  for (int i = 0; i < 300; ++i) {
    const BlockCopy& copy = copies[random() % 3];
    const auto slot = static_cast<int32_t>(random() % 4);
    const auto layer = static_cast<int32_t>(random() % 3);
    const auto head = static_cast<int32_t>(random() % 2);
    const int64_t element =
        At(kv, layer, static_cast<int>(random() % 2), head, copy.destination,
           slot, static_cast<int32_t>(random() % 80));
    auto* byte = static_cast<uint8_t*>(kv.data) +
                 element * DTypeBytes(kv.dtype) + random() % 2;
    *byte ^= 1 << random() % 8;
    const auto changed = (*to_large)->DestinationDigest(copies, 8);
    ASSERT_TRUE(changed.ok());
    ASSERT_EQ(*changed == *on->received_digest, slot >= copy.num_tokens);
    ASSERT_EQ(*(*to_large)->SourceDigest(copies, 8), *on->sent_digest);
    if (slot < copy.num_tokens) {
      // Back, to look at one change at a time.
      ASSERT_EQ(*(*to_large)->Move(copies, 8)->received_digest,
                *on->received_digest);
    }
  }
}

TEST_P(KvMoverTest, WithinOneStoreNoBlockIsBothReadAndWritten) {
  auto store = Store(2, 2, 16, 4);
  FillAll(store->view(), Mark);
  auto mover =
      BlockMover::Create(*device_, *store, *store, {.source_layers = {0, 1}});
  ASSERT_TRUE(mover.ok()) << mover.status();
  const std::vector<BlockCopy> fork = {{2, 0, 3}};
  const auto moved = (*mover)->Move(fork, 12);
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(moved->sent_digest, moved->received_digest);
  EXPECT_EQ(CountWrong(store->view(), fork, Mark, Mark), 0);
  // One source of two is no conflict.
  EXPECT_TRUE(
      (*mover)->Move(std::vector<BlockCopy>{{2, 0, 3}, {2, 3, 3}}, 0).ok());
  for (const std::vector<BlockCopy>& bad :
       {std::vector<BlockCopy>{{1, 1, 4}},
        std::vector<BlockCopy>{{1, 2, 4}, {2, 3, 4}}}) {
    EXPECT_EQ((*mover)->Move(bad, 0).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, KvMoverTest,
                         testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) {
                           return DTypeName(info.param);
                         });

}  // namespace
}  // namespace overfill
