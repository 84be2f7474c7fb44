// Moves blocks of KV between two stores of one device.
#ifndef OVERFILL_ENGINE_KV_MOVER_H_
#define OVERFILL_ENGINE_KV_MOVER_H_

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

// Move may be called by one thread at a time. A block outside its store, or a
// token count outside the block, is INVALID_ARGUMENT before anything moves.
class BlockMover : public KvMover {
 public:
  // Device, stores and maps outlive the mover. INVALID_ARGUMENT when the rules
  // do not fit the stores.
  static absl::StatusOr<std::unique_ptr<BlockMover>> Create(
      Device& device, const KvStore& source, const KvStore& destination,
      KvMoveRules rules);

  absl::Status Move(std::span<const BlockCopy> blocks) override;

 private:
  BlockMover(Device& device, const KvStore& source, const KvStore& destination,
             KvMoveRules rules);

  Device& device_;
  const KvView source_;
  const KvView destination_;
  const KvMoveRules rules_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_KV_MOVER_H_
