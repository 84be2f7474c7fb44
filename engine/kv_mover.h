// Moves blocks of KV between two stores, or within one.
#ifndef OVERFILL_ENGINE_KV_MOVER_H_
#define OVERFILL_ENGINE_KV_MOVER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kv_store.h"
#include "engine/step.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace overfill {

// How one store's KV becomes another's. The maps belong to somebody else.
struct KvMoveRules {
  // [destination layers] the source layer that each one is made from.
  std::vector<int32_t> source_layers = {};
  // Empty: bytes are copied. Else one linear map per destination layer, from
  // all of a source token's K (or V) heads to all of a destination token's.
  std::vector<const LinearWeight*> k_maps = {};  // [Hkv' D', Hkv D]
  std::vector<const LinearWeight*> v_maps = {};  // [Hkv' D', Hkv D]
};

// One thread at a time. A block outside its store, a token count outside the
// block, a destination that is named twice, or that is also read from where
// there is one store, are INVALID_ARGUMENT before anything moves.
class BlockMover : public KvMover {
 public:
  // Device, stores and maps outlive the mover. INVALID_ARGUMENT when the rules
  // do not fit the stores.
  static absl::StatusOr<std::unique_ptr<BlockMover>> Create(
      Device& device, const KvStore& source, const KvStore& destination,
      KvMoveRules rules);

  // Digests for byte copies; none through maps.
  absl::StatusOr<KvMoveResult> Move(std::span<const BlockCopy> blocks,
                                    int32_t first_position) override;

  // What the digests of a move of these blocks would be now. UNIMPLEMENTED
  // through maps.
  absl::StatusOr<uint64_t> SourceDigest(std::span<const BlockCopy> blocks,
                                        int32_t first_position);
  absl::StatusOr<uint64_t> DestinationDigest(std::span<const BlockCopy> blocks,
                                             int32_t first_position);

 private:
  BlockMover(Device& device, const KvStore& source, const KvStore& destination,
             KvMoveRules rules);

  bool copies_bytes() const { return rules_.k_maps.empty(); }
  absl::Status CheckBlocks(std::span<const BlockCopy> blocks,
                           int32_t first_position) const;
  // Layer l of the digest is layer layers[l] of `kv`; the block of a copy is
  // `block`.
  absl::StatusOr<uint64_t> Digest(const KvView& kv,
                                  std::span<const int32_t> layers,
                                  int32_t BlockCopy::*block,
                                  std::span<const BlockCopy> blocks,
                                  int32_t first_position);
  // Queues a copy of the used slots of one layer of one block.
  void StageLayer(const KvView& kv, int32_t block, int32_t layer,
                  int32_t num_tokens, std::byte* to);

  Device& device_;
  const KvView source_;
  const KvView destination_;
  const KvMoveRules rules_;
  std::vector<int32_t> destination_layers_;  // 0, 1, ...
  std::vector<std::byte> staging_;           // what a digest is made from
  std::unique_ptr<Stream> stream_;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_KV_MOVER_H_
