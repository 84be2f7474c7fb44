#include "engine/kv_digest.h"

#include <array>
#include <cstddef>
#include <cstring>

#include "base/check.h"

namespace overfill {
namespace {

// Odd numbers without a pattern.
constexpr uint64_t kFirst = 0xd1b54a32d192ed03;
constexpr uint64_t kSecond = 0xaef17502108ef2d9;
constexpr uint64_t kVersion = 1;  // of the digest's definition

// One to one in each argument while the other is fixed: what differs in one
// word stays different whatever follows.
uint64_t Mix(uint64_t state, uint64_t word) {
  uint64_t x = (state ^ word) * kFirst;
  x ^= x >> 32;
  return x * kSecond;
}

uint64_t LoadWord(const std::byte* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

}  // namespace

uint64_t HashBytes(std::span<const std::byte> bytes, uint64_t seed) {
  // Independent lanes, so that the multiplications overlap.
  constexpr size_t kLanes = 8;
  constexpr size_t kStride = kLanes * sizeof(uint64_t);
  std::array<uint64_t, kLanes> lanes;
  for (size_t i = 0; i < kLanes; ++i) lanes[i] = seed + (i + 1) * kSecond;
  const std::byte* data = bytes.data();
  size_t left = bytes.size();
  for (; left >= kStride; left -= kStride, data += kStride) {
    for (size_t i = 0; i < kLanes; ++i) {
      lanes[i] = Mix(lanes[i], LoadWord(data + i * sizeof(uint64_t)));
    }
  }
  // The rest, filled up with zeros: the length tells them from data.
  std::array<std::byte, kStride> rest{};
  if (left > 0) std::memcpy(rest.data(), data, left);
  uint64_t hash = Mix(seed, bytes.size());
  for (size_t i = 0; i < kLanes; ++i) {
    hash =
        Mix(hash, Mix(lanes[i], LoadWord(rest.data() + i * sizeof(uint64_t))));
  }
  return hash ^ (hash >> 29);
}

KvDigest::KvDigest(const KvView& layout)
    : num_tiles_(int64_t{2} * layout.num_kv_heads),
      tile_bytes_(layout.head_elements() * DTypeBytes(layout.dtype)),
      slot_bytes_(layout.head_dim * DTypeBytes(layout.dtype)),
      value_(kVersion) {
  for (const int64_t field :
       {static_cast<int64_t>(layout.dtype), int64_t{layout.num_layers},
        int64_t{layout.num_kv_heads}, int64_t{layout.block_tokens},
        int64_t{layout.head_dim}}) {
    value_ = Mix(value_, static_cast<uint64_t>(field));
  }
}

void KvDigest::BeginBlock(int32_t position, int32_t num_tokens) {
  used_bytes_ = num_tokens * slot_bytes_;
  OVERFILL_CHECK(num_tokens >= 0 && used_bytes_ <= tile_bytes_)
      << num_tokens << " tokens of a block";
  value_ = Mix(value_, static_cast<uint64_t>(position));
  value_ = Mix(value_, static_cast<uint64_t>(num_tokens));
}

void KvDigest::AddLayer(std::span<const std::byte> layer) {
  OVERFILL_CHECK_EQ(static_cast<int64_t>(layer.size()),
                    num_tiles_ * tile_bytes_);
  for (int64_t tile = 0; tile < num_tiles_; ++tile) {
    value_ = HashBytes(layer.subspan(tile * tile_bytes_, used_bytes_), value_);
  }
}

}  // namespace overfill
