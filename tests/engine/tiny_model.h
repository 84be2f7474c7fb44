// A model of a few thousand random weights, made in memory.
#ifndef OVERFILL_TESTS_ENGINE_TINY_MODEL_H_
#define OVERFILL_TESTS_ENGINE_TINY_MODEL_H_

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "base/check.h"
#include "engine/weights.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace overfill {

class TinyModel {
 public:
  static constexpr int32_t kVocab = 50;
  // Its embedding row is NaN.
  static constexpr int32_t kPoisonedToken = 49;

  TinyModel(Device& device, int32_t num_layers, uint32_t seed)
      : ops_(device.ops()), random_(seed) {
    ModelConfig& config = weights_.config;
    config.num_layers = num_layers;
    config.hidden_size = 27;
    config.intermediate_size = 41;
    config.num_heads = 4;
    config.num_kv_heads = 2;
    config.head_dim = 16;
    config.vocab_size = kVocab;
    config.max_positions = 256;
    config.norm_eps = 1e-5f;
    config.rope.theta = 10000;
    config.dtype = DType::kF32;
    weights_.dtype = DType::kF32;
    const int64_t hidden = config.hidden_size;
    const int64_t inner = config.intermediate_size;
    for (int32_t l = 0; l < num_layers; ++l) {
      LayerWeights layer;
      layer.attention = {.norm_gain = Ones(hidden),
                         .qkv = Linear(8 * 16, hidden),
                         .output = Linear(hidden, 4 * 16)};
      layer.mlp = {.norm_gain = Ones(hidden),
                   .gate_up = Linear(2 * inner, hidden),
                   .down = Linear(hidden, inner)};
      weights_.layers.push_back(std::move(layer));
    }
    weights_.embedding = Linear(kVocab, hidden, kPoisonedToken);
    weights_.head = {.norm_gain = Ones(hidden),
                     .lm_head = Linear(kVocab, hidden)};
  }

  const ModelWeights& weights() const { return weights_; }

 private:
  const LinearWeight* Linear(int64_t out, int64_t in, int64_t nan_row = -1) {
    std::normal_distribution<float> normal(0, 1 / std::sqrt(float(in)));
    std::vector<float> values(out * in);
    for (float& value : values) value = normal(random_);
    if (nan_row >= 0) {
      std::fill_n(values.begin() + nan_row * in, in, std::nanf(""));
    }
    const HostTensor tensor = Tensor(values, {out, in});
    auto linear = ops_.MakeLinear({&tensor, 1}, {}, DType::kF32);
    OVERFILL_CHECK_OK(linear.status());
    linears_.push_back(*std::move(linear));
    return linears_.back().get();
  }
  const float* Ones(int64_t size) {
    const std::vector<float> values(size, 1);
    auto vector = ops_.MakeVector(Tensor(values, {size}));
    OVERFILL_CHECK_OK(vector.status());
    vectors_.push_back(*std::move(vector));
    return static_cast<const float*>(vectors_.back()->data());
  }
  static HostTensor Tensor(const std::vector<float>& values,
                           std::vector<int64_t> shape) {
    return {reinterpret_cast<const std::byte*>(values.data()), DType::kF32,
            std::move(shape)};
  }

  Ops& ops_;
  std::mt19937 random_;
  ModelWeights weights_;
  std::vector<std::unique_ptr<LinearWeight>> linears_;
  std::vector<std::unique_ptr<Buffer>> vectors_;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_ENGINE_TINY_MODEL_H_
