#include "engine/kv_store.h"

#include <cstdint>
#include <limits>
#include <memory>
#include <set>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/device.h"

namespace overfill {
namespace {

constexpr KvLayout kLayout = {.dtype = DType::kBF16,
                              .num_layers = 3,
                              .num_kv_heads = 2,
                              .block_tokens = 4,
                              .head_dim = 80};

std::unique_ptr<Device> Cpu() {
  auto device = MakeDevice("cpu", {.num_threads = 1});
  EXPECT_TRUE(device.ok()) << device.status();
  return *std::move(device);
}

TEST(KvStore, SizesFollowTheLayout) {
  EXPECT_EQ(*KvTokenBytes(kLayout), 2 * 3 * 2 * 80 * 2);
  EXPECT_EQ(*KvBlockBytes(kLayout), 4 * *KvTokenBytes(kLayout));
  KvLayout f32 = kLayout;
  f32.dtype = DType::kF32;
  EXPECT_EQ(*KvTokenBytes(f32), 2 * *KvTokenBytes(kLayout));
}

TEST(KvStore, HoldsAsManyBlocksAsFit) {
  auto device = Cpu();
  const int64_t block = *KvBlockBytes(kLayout);
  auto store = KvStore::Create(*device, kLayout, 5 * block + block - 1);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->num_blocks(), 5);
  EXPECT_EQ((*store)->block_bytes(), block);
  EXPECT_EQ((*store)->token_bytes(), block / 4);
  EXPECT_EQ((*store)->view().block_bytes(), block);
  EXPECT_TRUE((*store)->layout() == kLayout);
}

TEST(KvStore, TilesOfAllBlocksAreApartAndInside) {
  auto device = Cpu();
  auto store = KvStore::Create(*device, kLayout, 3 * *KvBlockBytes(kLayout));
  ASSERT_TRUE(store.ok()) << store.status();
  const KvView& kv = (*store)->view();
  std::set<int64_t> offsets;
  for (int32_t block = 0; block < 3; ++block) {
    for (int32_t layer = 0; layer < 3; ++layer) {
      for (int half = 0; half < 2; ++half) {
        for (int32_t head = 0; head < 2; ++head) {
          offsets.insert(kv.TileOffset(block, layer, half, head));
        }
      }
    }
  }
  ASSERT_EQ(offsets.size(), 3u * 3 * 2 * 2);
  int64_t expected = 0;
  for (int64_t offset : offsets) {
    EXPECT_EQ(offset, expected);
    expected += kv.head_elements();
  }
  EXPECT_EQ(expected * DTypeBytes(kv.dtype), 3 * kv.block_bytes());
}

TEST(KvStore, ACacheWithoutRoomForABlockIsRefused) {
  auto device = Cpu();
  for (int64_t bytes : {int64_t{-1}, int64_t{0}, *KvBlockBytes(kLayout) - 1}) {
    auto store = KvStore::Create(*device, kLayout, bytes);
    EXPECT_EQ(store.status().code(), absl::StatusCode::kInvalidArgument)
        << bytes;
  }
}

TEST(KvStore, MoreThanTheMachineHasIsRefused) {
  auto device = Cpu();
  auto store = KvStore::Create(*device, kLayout, int64_t{1} << 60);
  EXPECT_EQ(store.status().code(), absl::StatusCode::kResourceExhausted)
      << store.status();
}

TEST(KvStore, BadLayoutsAreRefused) {
  constexpr int32_t kHuge = std::numeric_limits<int32_t>::max();
  auto with = [](auto member, auto value) {
    KvLayout layout = kLayout;
    layout.*member = value;
    return KvBlockBytes(layout).status().code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  for (int32_t bad : {0, -1, kHuge}) {
    EXPECT_EQ(with(&KvLayout::num_layers, bad), kInvalid);
    EXPECT_EQ(with(&KvLayout::num_kv_heads, bad), kInvalid);
    EXPECT_EQ(with(&KvLayout::block_tokens, bad), kInvalid);
    EXPECT_EQ(with(&KvLayout::head_dim, bad), kInvalid);
  }
  EXPECT_EQ(with(&KvLayout::dtype, DType::kF16), kInvalid);
  KvLayout overflow = {DType::kF32, kHuge, kHuge, kHuge, kHuge};
  EXPECT_EQ(KvBlockBytes(overflow).status().code(), kInvalid);
}

}  // namespace
}  // namespace overfill
