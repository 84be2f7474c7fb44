#include "engine/kv_digest.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

std::vector<std::byte> RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

TEST(HashBytes, EveryBitCounts) {
  for (size_t size = 0; size <= 200; ++size) {
    std::vector<std::byte> bytes = RandomBytes(size, TestSeed() + size);
    std::set<uint64_t> seen = {HashBytes(bytes, 1), HashBytes(bytes, 2)};
    ASSERT_EQ(seen.size(), 2u);
    for (size_t bit = 0; bit < 8 * size; ++bit) {
      const auto mask = static_cast<std::byte>(1 << bit % 8);
      bytes[bit / 8] ^= mask;
      ASSERT_TRUE(seen.insert(HashBytes(bytes, 1)).second)
          << "bit " << bit << " of " << size << " bytes";
      bytes[bit / 8] ^= mask;
    }
  }
}

TEST(HashBytes, LengthOrderAndPatternsCount) {
  // Zeros of every length, and one byte set at each place: no two alike.
  std::set<uint64_t> seen;
  int count = 0;
  for (size_t size = 0; size <= 300; ++size) {
    ++count;
    seen.insert(HashBytes(std::vector<std::byte>(size), 0));
  }
  for (size_t at = 0; at < 300; ++at) {
    ++count;
    std::vector<std::byte> bytes(300);
    bytes[at] = std::byte{0x80};  // a sign
    seen.insert(HashBytes(bytes, 0));
    // And the same sign of the next word of the lane, and half a word on.
    for (size_t more : {size_t{8}, size_t{64}}) {
      if (at + more >= 300) continue;
      ++count;
      std::vector<std::byte> two = bytes;
      two[at + more] = std::byte{0x80};
      seen.insert(HashBytes(two, 0));
      if (at < 4) continue;
      ++count;
      two[at + more - 4] = std::byte{0x80};
      seen.insert(HashBytes(two, 0));
    }
  }
  // Words that change places.
  std::vector<std::byte> bytes = RandomBytes(256, TestSeed());
  ++count;
  seen.insert(HashBytes(bytes, 0));
  for (size_t a = 0; a < 256; a += 8) {
    for (size_t b = 0; b < a; b += 8) {
      std::vector<std::byte> swapped = bytes;
      std::swap_ranges(swapped.begin() + static_cast<std::ptrdiff_t>(a),
                       swapped.begin() + static_cast<std::ptrdiff_t>(a + 8),
                       swapped.begin() + static_cast<std::ptrdiff_t>(b));
      ++count;
      seen.insert(HashBytes(swapped, 0));
    }
  }
  EXPECT_EQ(static_cast<int>(seen.size()), count);
}

// The bits of a hash of nearly equal inputs look like coins.
TEST(HashBytes, OneBitChangesHalfOfTheHash) {
  std::vector<std::byte> bytes = RandomBytes(130, TestSeed());
  const uint64_t before = HashBytes(bytes, 5);
  int64_t changed = 0;
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    const auto mask = static_cast<std::byte>(1 << bit % 8);
    bytes[bit / 8] ^= mask;
    changed += __builtin_popcountll(HashBytes(bytes, 5) ^ before);
    bytes[bit / 8] ^= mask;
  }
  const double mean =
      static_cast<double>(changed) / (8 * static_cast<double>(bytes.size()));
  EXPECT_NEAR(mean, 32, 2);
}

KvView Layout(DType dtype, int32_t layers, int32_t heads, int32_t block_tokens,
              int32_t head_dim) {
  return {.dtype = dtype,
          .num_layers = layers,
          .num_kv_heads = heads,
          .block_tokens = block_tokens,
          .head_dim = head_dim};
}

// Of one block; `bytes` are all its layers.
uint64_t DigestOf(const KvView& layout, int32_t position, int32_t num_tokens,
                  std::span<const std::byte> bytes) {
  KvDigest digest(layout);
  digest.BeginBlock(position, num_tokens);
  const int64_t layer_bytes =
      layout.layer_elements() * DTypeBytes(layout.dtype);
  for (int32_t layer = 0; layer < layout.num_layers; ++layer) {
    digest.AddLayer(bytes.subspan(layer * layer_bytes, layer_bytes));
  }
  return digest.value();
}

TEST(KvDigest, IsSignedWithLayoutAndPositions) {
  // All of 2048 bytes, full blocks.
  const std::vector<std::byte> bytes = RandomBytes(2048, TestSeed());
  const std::vector<KvView> layouts = {
      Layout(DType::kBF16, 4, 2, 4, 16), Layout(DType::kF32, 4, 2, 4, 8),
      Layout(DType::kBF16, 8, 1, 4, 16), Layout(DType::kBF16, 2, 4, 4, 16),
      Layout(DType::kBF16, 4, 1, 4, 32), Layout(DType::kBF16, 4, 2, 8, 8),
      Layout(DType::kBF16, 4, 1, 8, 16)};
  std::set<uint64_t> seen;
  for (const KvView& layout : layouts) {
    ASSERT_EQ(layout.block_bytes(), 2048);
    for (int32_t position : {0, 8, 16}) {
      seen.insert(DigestOf(layout, position, layout.block_tokens, bytes));
    }
  }
  EXPECT_EQ(seen.size(), 3 * layouts.size());
}

TEST(KvDigest, CoversTheUsedSlotsAndNoOthers) {
  const KvView layout = Layout(DType::kBF16, 2, 2, 4, 16);
  std::vector<std::byte> bytes = RandomBytes(layout.block_bytes(), TestSeed());
  const int64_t tile_bytes = layout.head_elements() * 2;
  for (int32_t num_tokens = 0; num_tokens <= 4; ++num_tokens) {
    const uint64_t digest = DigestOf(layout, 0, num_tokens, bytes);
    for (size_t i = 0; i < bytes.size(); ++i) {
      const auto slot = static_cast<int32_t>(i % tile_bytes / (16 * 2));
      bytes[i] ^= std::byte{4};
      ASSERT_EQ(DigestOf(layout, 0, num_tokens, bytes) == digest,
                slot >= num_tokens);
      bytes[i] ^= std::byte{4};
    }
    EXPECT_NE(digest, DigestOf(layout, 0, (num_tokens + 1) % 5, bytes));
  }
}

}  // namespace
}  // namespace overfill
