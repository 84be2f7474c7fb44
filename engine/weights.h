// One model's weights in device memory, as the transformer reads them.
#ifndef OVERFILL_ENGINE_WEIGHTS_H_
#define OVERFILL_ENGINE_WEIGHTS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/model_config.h"
#include "engine/safetensors.h"
#include "engine/tokenizer/tokenizer.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace overfill {

struct LayerWeights {
  AttentionWeights attention;
  MlpWeights mlp;
};

// Immutable once it is loaded; move-only. The pointers of the views point into
// `linears` and `vectors`, which the device outlives.
struct ModelWeights {
  ModelConfig config;
  DType dtype = DType::kBF16;  // of the products: kF32, kBF16 or kInt8
  // [V, H]; the lm_head itself where the two are tied.
  const LinearWeight* embedding = nullptr;
  std::vector<LayerWeights> layers;  // [num_layers]
  HeadWeights head;

  std::vector<std::unique_ptr<LinearWeight>> linears;
  std::vector<std::unique_ptr<Buffer>> vectors;
};

// What the shapes of a config add up to; a tied head counts once.
int64_t NumParameters(const ModelConfig& config);

// [V] 1 where the id has a token: an embedding may have more rows than the
// tokenizer has ids, and those are never sampled. INVALID_ARGUMENT, beginning
// with `origin`, where the tokenizer has ids that the embedding has not.
absl::StatusOr<std::vector<uint8_t>> TokenMask(const ModelConfig& config,
                                               const Tokenizer& tokenizer,
                                               absl::string_view origin);

// Whether the checkpoint holds what the config asks for, and nothing else that
// would matter: missing tensors, other shapes or types, and tensors that the
// config has no place for (a bias that it does not announce, a further layer)
// are INVALID_ARGUMENT, naming the file and the tensor. Stored RoPE frequencies
// and a copy of a tied head are no fault.
absl::Status CheckWeights(const ModelConfig& config,
                          const Checkpoint& checkpoint);

// Checks, then converts the tensors to `dtype` (kF32, kBF16 or kInt8) in the
// device's memory, layers in parallel. `is_token` is TokenMask's, or empty: all
// ids have a token. The checkpoint is not used after the call.
absl::StatusOr<ModelWeights> LoadWeights(Device& device,
                                         const ModelConfig& config,
                                         const Checkpoint& checkpoint,
                                         DType dtype,
                                         const std::vector<uint8_t>& is_token);

// Noise in the config's shapes, a function of `seed` alone.
absl::StatusOr<ModelWeights> MakeDummyWeights(
    Device& device, const ModelConfig& config, DType dtype,
    const std::vector<uint8_t>& is_token, uint64_t seed);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_WEIGHTS_H_
