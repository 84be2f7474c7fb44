// The shape of a model, from a Hugging Face config.json.
#ifndef OVERFILL_ENGINE_MODEL_CONFIG_H_
#define OVERFILL_ENGINE_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/tensor.h"

namespace overfill {

// llama3 RoPE scaling: low frequencies are divided by `factor`, high ones
// kept, those between interpolated (Llama 3.1, config key "rope_type":
// "llama3").
struct Llama3RopeScaling {
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int64_t original_max_positions = 8192;
  bool operator==(const Llama3RopeScaling&) const = default;
};

struct RopeConfig {
  double theta = 0;
  std::optional<Llama3RopeScaling> llama3;  // absent: plain RoPE
  bool operator==(const RopeConfig&) const = default;
};

enum class Architecture { kLlama, kQwen2, kQwen3, kMistral };
const char* ArchitectureName(Architecture architecture);

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  int32_t num_layers = 0;
  int32_t hidden_size = 0;        // H; need not be num_heads * head_dim
  int32_t intermediate_size = 0;  // I
  int32_t num_heads = 0;          // Hq
  int32_t num_kv_heads = 0;       // Hkv
  int32_t head_dim = 0;           // D; stated, else hidden_size / num_heads
  int32_t vocab_size = 0;         // V, rows of the embedding
  int32_t max_positions = 0;      // context limit, in tokens
  float norm_eps = 0;
  RopeConfig rope;
  // Of the checkpoint, as config.json states it; f32 where it does not. The
  // tensors of the files have their own.
  DType dtype = DType::kBF16;
  bool tied_embeddings = false;
  bool qkv_bias = false;         // Qwen2; Llama, Qwen3 with attention_bias
  bool output_bias = false;      // Llama, Qwen3 with attention_bias
  bool mlp_bias = false;         // Llama with mlp_bias
  bool qk_norm = false;          // Qwen3
  std::vector<int32_t> eos_ids;  // may be empty
  std::optional<int32_t> bos_id;
};

// Parses the text of a config.json. Everything that would be silently wrong is
// refused by name: an unknown architecture, an absent rope theta, a rope type
// other than default or llama3, hidden_act other than silu, partial rotary, an
// active sliding window, sizes that do not fit together. Messages begin with
// `origin`.
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json,
                                             absl::string_view origin);
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);

// f_i of each rotation pair, i < head_dim / 2, llama3 scaling applied; computed
// in double.
std::vector<float> InverseFrequencies(const RopeConfig& rope, int32_t head_dim);

// The request defaults that a checkpoint states in generation_config.json.
struct GenerationConfig {
  std::optional<bool> do_sample;  // false means greedy
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int32_t> top_k;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::vector<int32_t> eos_ids;  // a number or a list in the file
};

absl::StatusOr<GenerationConfig> ParseGenerationConfig(
    absl::string_view json, absl::string_view origin);
// An absent file is an empty config. Members that the server does not know, and
// that would change answers, are named in a warning.
absl::StatusOr<GenerationConfig> LoadGenerationConfig(
    const std::string& model_dir);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_MODEL_CONFIG_H_
