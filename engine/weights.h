// One model's weights in device memory, as the transformer reads them.
#ifndef OVERFILL_ENGINE_WEIGHTS_H_
#define OVERFILL_ENGINE_WEIGHTS_H_

#include <memory>
#include <vector>

#include "engine/model_config.h"
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
  DType dtype = DType::kBF16;  // of the products: kF32 or kBF16
  // [V, H]; the lm_head itself where the two are tied.
  const LinearWeight* embedding = nullptr;
  std::vector<LayerWeights> layers;  // [num_layers]
  HeadWeights head;

  std::vector<std::unique_ptr<LinearWeight>> linears;
  std::vector<std::unique_ptr<Buffer>> vectors;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_WEIGHTS_H_
