// A digest of the KV of consecutive positions, to compare what was sent with
// what has arrived. It is the same wherever the blocks lie, and signed with
// the layout and the absolute positions: equal digests mean the same numbers
// in the same places of a sequence.
//
// Strength: a change within any one aligned 64-bit word of a tile is always
// noticed; any other corruption is missed about once in 2^64. It is no defence
// against somebody who chooses the bytes.
#ifndef OVERFILL_ENGINE_KV_DIGEST_H_
#define OVERFILL_ENGINE_KV_DIGEST_H_

#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace overfill {

// Not thread-safe.
class KvDigest {
 public:
  // Of blocks with this view's dtype, layers, KV heads, head_dim and
  // block_tokens; its data and num_blocks are not looked at.
  explicit KvDigest(const KvView& layout);

  // The next block: positions [position, position + num_tokens).
  void BeginBlock(int32_t position, int32_t num_tokens);
  // Its layers, ascending, each whole: [2 (k, v), num_kv_heads, block_tokens,
  // head_dim]. Slots from num_tokens on are not read.
  void AddLayer(std::span<const std::byte> layer);

  uint64_t value() const { return value_; }

 private:
  const int64_t num_tiles_;   // of a layer
  const int64_t tile_bytes_;  // of block_tokens slots
  const int64_t slot_bytes_;
  int64_t used_bytes_ = 0;  // of each of this block's tiles
  uint64_t value_;
};

// The hash that the digest is made of: of `bytes`, chained to `seed`.
uint64_t HashBytes(std::span<const std::byte> bytes, uint64_t seed);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_KV_DIGEST_H_
