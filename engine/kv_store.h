// The paged KV memory of one (device, layout). Who owns which block is the
// scheduler's business; the store knows only where a block lies.
#ifndef OVERFILL_ENGINE_KV_STORE_H_
#define OVERFILL_ENGINE_KV_STORE_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/model_config.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace overfill {

// What two stores agree on when one's blocks can be copied to the other.
struct KvLayout {
  DType dtype = DType::kBF16;
  int32_t num_layers = 0;
  int32_t num_kv_heads = 0;
  int32_t block_tokens = 0;
  int32_t head_dim = 0;
  bool operator==(const KvLayout&) const = default;
};

// What KV is kept in beside weights of this type.
DType KvDTypeOf(DType weights);

// The layout of a model that keeps its own KV, all layers.
KvLayout KvLayoutOf(const ModelConfig& config, DType dtype,
                    int32_t block_tokens);

// K and V of one token, and of one block, over all layers. INVALID_ARGUMENT
// for a size below one, a dtype that KV is not kept in (f16), or a block of
// more than 2^36 bytes.
absl::StatusOr<int64_t> KvTokenBytes(const KvLayout& layout);
absl::StatusOr<int64_t> KvBlockBytes(const KvLayout& layout);

// Immutable after construction but for the memory that the view shows; safe
// for any thread.
class KvStore {
 public:
  // As many blocks as `capacity_bytes` holds. INVALID_ARGUMENT when that is
  // none, RESOURCE_EXHAUSTED when the device has not that much memory. The
  // device outlives the store.
  static absl::StatusOr<std::unique_ptr<KvStore>> Create(
      Device& device, const KvLayout& layout, int64_t capacity_bytes);

  const KvView& view() const { return view_; }
  const KvLayout& layout() const { return layout_; }
  int32_t num_blocks() const { return view_.num_blocks; }
  int64_t block_bytes() const { return view_.block_bytes(); }
  int64_t token_bytes() const { return block_bytes() / layout_.block_tokens; }

 private:
  KvStore(const KvLayout& layout, std::unique_ptr<Buffer> buffer,
          int32_t num_blocks);

  const KvLayout layout_;
  const std::unique_ptr<Buffer> buffer_;
  const KvView view_;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_KV_STORE_H_
