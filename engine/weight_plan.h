// Which tensors a checkpoint of a config has, and what the engine makes of
// them.
#ifndef OVERFILL_ENGINE_WEIGHT_PLAN_H_
#define OVERFILL_ENGINE_WEIGHT_PLAN_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/model_config.h"

namespace overfill {

enum class TensorRole { kMatrix, kGain, kBias };

struct PlannedTensor {
  std::string name;  // as in the checkpoint
  std::vector<int64_t> shape;
  TensorRole role = TensorRole::kMatrix;
};

// Stacked along the output side to one LinearWeight.
struct PlannedLinear {
  std::vector<PlannedTensor> weights;  // [out_i, in]
  std::vector<PlannedTensor> biases;   // [out_i] for each weight, or empty
};

struct PlannedLayer {
  PlannedTensor attention_norm;
  PlannedLinear qkv;
  std::optional<PlannedTensor> q_norm;
  std::optional<PlannedTensor> k_norm;
  PlannedLinear output;
  PlannedTensor mlp_norm;
  PlannedLinear gate_up;
  PlannedLinear down;
};

struct WeightPlan {
  PlannedLinear embedding;
  std::vector<PlannedLayer> layers;
  PlannedTensor final_norm;
  std::optional<PlannedLinear> lm_head;  // absent: the embedding
};

WeightPlan PlanWeights(const ModelConfig& config);

void ForEachTensor(const PlannedLinear& linear,
                   const std::function<void(const PlannedTensor&)>& visit);
void ForEachTensor(const PlannedLayer& layer,
                   const std::function<void(const PlannedTensor&)>& visit);
void ForEachTensor(const WeightPlan& plan,
                   const std::function<void(const PlannedTensor&)>& visit);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_WEIGHT_PLAN_H_
