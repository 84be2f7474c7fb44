#include "engine/weight_plan.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace overfill {
namespace {

PlannedTensor Gain(std::string name, int64_t size) {
  return {std::move(name), {size}, TensorRole::kGain};
}

struct Projection {
  std::string name;  // without ".weight"
  int64_t out;
};

PlannedLinear Linear(const std::vector<Projection>& projections, int64_t in,
                     bool bias) {
  PlannedLinear linear;
  for (const Projection& p : projections) {
    linear.weights.push_back(
        {absl::StrCat(p.name, ".weight"), {p.out, in}, TensorRole::kMatrix});
    if (!bias) continue;
    linear.biases.push_back(
        {absl::StrCat(p.name, ".bias"), {p.out}, TensorRole::kBias});
  }
  return linear;
}

PlannedLayer PlanLayer(const ModelConfig& config, int32_t number) {
  const std::string prefix = absl::StrCat("model.layers.", number, ".");
  const std::string self = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t q_size = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_size = int64_t{config.num_kv_heads} * config.head_dim;

  PlannedLayer layer;
  layer.attention_norm = Gain(prefix + "input_layernorm.weight", hidden);
  layer.qkv = Linear({{self + "q_proj", q_size},
                      {self + "k_proj", kv_size},
                      {self + "v_proj", kv_size}},
                     hidden, config.qkv_bias);
  if (config.qk_norm) {
    layer.q_norm = Gain(self + "q_norm.weight", config.head_dim);
    layer.k_norm = Gain(self + "k_norm.weight", config.head_dim);
  }
  layer.output =
      Linear({{self + "o_proj", hidden}}, q_size, config.output_bias);
  layer.mlp_norm = Gain(prefix + "post_attention_layernorm.weight", hidden);
  layer.gate_up = Linear({{mlp + "gate_proj", inner}, {mlp + "up_proj", inner}},
                         hidden, config.mlp_bias);
  layer.down = Linear({{mlp + "down_proj", hidden}}, inner, config.mlp_bias);
  return layer;
}

}  // namespace

WeightPlan PlanWeights(const ModelConfig& config) {
  WeightPlan plan;
  const int64_t hidden = config.hidden_size;
  plan.embedding =
      Linear({{"model.embed_tokens", config.vocab_size}}, hidden, false);
  for (int32_t l = 0; l < config.num_layers; ++l) {
    plan.layers.push_back(PlanLayer(config, l));
  }
  plan.final_norm = Gain("model.norm.weight", hidden);
  if (!config.tied_embeddings) {
    plan.lm_head = Linear({{"lm_head", config.vocab_size}}, hidden, false);
  }
  return plan;
}

void ForEachTensor(const PlannedLinear& linear,
                   const std::function<void(const PlannedTensor&)>& visit) {
  for (const PlannedTensor& weight : linear.weights) visit(weight);
  for (const PlannedTensor& bias : linear.biases) visit(bias);
}

void ForEachTensor(const PlannedLayer& layer,
                   const std::function<void(const PlannedTensor&)>& visit) {
  visit(layer.attention_norm);
  ForEachTensor(layer.qkv, visit);
  if (layer.q_norm) visit(*layer.q_norm);
  if (layer.k_norm) visit(*layer.k_norm);
  ForEachTensor(layer.output, visit);
  visit(layer.mlp_norm);
  ForEachTensor(layer.gate_up, visit);
  ForEachTensor(layer.down, visit);
}

void ForEachTensor(const WeightPlan& plan,
                   const std::function<void(const PlannedTensor&)>& visit) {
  ForEachTensor(plan.embedding, visit);
  for (const PlannedLayer& layer : plan.layers) ForEachTensor(layer, visit);
  visit(plan.final_norm);
  if (plan.lm_head) ForEachTensor(*plan.lm_head, visit);
}

}  // namespace overfill
