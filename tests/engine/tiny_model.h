// A model of a few random weights, made in memory.
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

struct TinyModelShape {
  int32_t hidden_size = 27;
  int32_t intermediate_size = 41;
  int32_t num_heads = 4;
  int32_t num_kv_heads = 2;
  int32_t head_dim = 16;
  int32_t max_positions = 256;
  DType dtype = DType::kF32;
  bool qk_norm = false;
};

class TinyModel {
 public:
  static constexpr int32_t kVocab = 50;
  // Its embedding row is NaN.
  static constexpr int32_t kPoisonedToken = 49;

  TinyModel(Device& device, int32_t num_layers, uint32_t seed,
            const TinyModelShape& shape = {})
      : ops_(device.ops()), random_(seed) {
    ModelConfig& config = weights_.config;
    config.num_layers = num_layers;
    config.hidden_size = shape.hidden_size;
    config.intermediate_size = shape.intermediate_size;
    config.num_heads = shape.num_heads;
    config.num_kv_heads = shape.num_kv_heads;
    config.head_dim = shape.head_dim;
    config.vocab_size = kVocab;
    config.max_positions = shape.max_positions;
    config.norm_eps = 1e-5f;
    config.rope.theta = 10000;
    config.dtype = shape.dtype;
    weights_.dtype = shape.dtype;
    const int64_t hidden = config.hidden_size;
    const int64_t inner = config.intermediate_size;
    const int64_t q_size = int64_t{config.num_heads} * config.head_dim;
    const int64_t kv_size = int64_t{config.num_kv_heads} * config.head_dim;
    for (int32_t l = 0; l < num_layers; ++l) {
      LayerWeights layer;
      layer.attention = {.norm_gain = Ones(hidden),
                         .qkv = Linear(q_size + 2 * kv_size, hidden),
                         .output = Linear(hidden, q_size)};
      if (shape.qk_norm) {
        layer.attention.q_norm_gain = Ones(config.head_dim);
        layer.attention.k_norm_gain = Ones(config.head_dim);
      }
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
    auto linear = ops_.MakeLinear({&tensor, 1}, {}, weights_.dtype);
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
