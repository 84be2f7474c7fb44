#include "tests/golden/plain_loader.h"

#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

constexpr uint64_t kMaxJsonBytes = 16 << 20;

absl::StatusOr<Json> ReadJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxJsonBytes));
  return ParseJsonObject(text, path);
}

absl::Status AddFile(const std::string& path, PlainTensors& tensors) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  const std::byte* data = file.bytes().data();
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, data, sizeof(header_bytes));
  const char* text = reinterpret_cast<const char*>(data) + 8;
  ASSIGN_OR_RETURN(const Json header,
                   ParseJsonObject({text, header_bytes}, path));
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const std::string dtype = entry.at("dtype");
    tensors.by_name[name] = {
        .data = data + 8 + header_bytes +
                entry.at("data_offsets").at(0).get<int64_t>(),
        .dtype = dtype == "F32"    ? DType::kF32
                 : dtype == "BF16" ? DType::kBF16
                                   : DType::kF16,
        .shape = entry.at("shape").get<std::vector<int64_t>>()};
  }
  tensors.files.push_back(std::move(file));
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ReadConfig(const std::string& directory) {
  ASSIGN_OR_RETURN(const Json raw, ReadJson(directory + "/config.json"));
  ModelConfig config;
  config.num_layers = raw.at("num_hidden_layers");
  config.hidden_size = raw.at("hidden_size");
  config.intermediate_size = raw.at("intermediate_size");
  config.num_heads = raw.at("num_attention_heads");
  config.num_kv_heads = raw.at("num_key_value_heads");
  config.head_dim =
      raw.value("head_dim", config.hidden_size / config.num_heads);
  config.vocab_size = raw.at("vocab_size");
  config.max_positions = raw.at("max_position_embeddings");
  config.norm_eps = raw.at("rms_norm_eps");
  config.tied_embeddings = raw.at("tie_word_embeddings");
  Json rope = raw.value("rope_parameters", Json());
  if (rope.is_null()) rope = raw.value("rope_scaling", Json());
  if (rope.is_null()) rope = Json::object();
  config.rope.theta = rope.contains("rope_theta")
                          ? rope.at("rope_theta").get<double>()
                          : raw.at("rope_theta").get<double>();
  if (rope.value("rope_type", "default") == std::string("llama3")) {
    config.rope.llama3 = {
        .factor = rope.at("factor"),
        .low_freq_factor = rope.at("low_freq_factor"),
        .high_freq_factor = rope.at("high_freq_factor"),
        .original_max_positions = rope.at("original_max_position_embeddings")};
  }
  return config;
}

// Turns named tensors into weights of the model.
class Builder {
 public:
  Builder(Device& device, const PlainTensors& tensors, ModelWeights& weights)
      : device_(device), tensors_(tensors.by_name), weights_(weights) {}

  // Biases are there where the checkpoint has them.
  absl::StatusOr<const LinearWeight*> Linear(
      const std::vector<std::string>& names) {
    std::vector<HostTensor> weights, biases;
    for (const std::string& name : names) {
      weights.push_back(tensors_.at(name + ".weight"));
      const auto bias = tensors_.find(name + ".bias");
      if (bias != tensors_.end()) biases.push_back(bias->second);
    }
    ASSIGN_OR_RETURN(auto linear,
                     device_.ops().MakeLinear(weights, biases, weights_.dtype));
    weights_.linears.push_back(std::move(linear));
    return weights_.linears.back().get();
  }

  // Null where the checkpoint has none.
  absl::StatusOr<const float*> Vector(const std::string& name) {
    const auto it = tensors_.find(name + ".weight");
    if (it == tensors_.end()) return nullptr;
    ASSIGN_OR_RETURN(auto vector, device_.ops().MakeVector(it->second));
    weights_.vectors.push_back(std::move(vector));
    return static_cast<const float*>(weights_.vectors.back()->data());
  }

  absl::Status Layer(int32_t number) {
    const std::string prefix = absl::StrCat("model.layers.", number, ".");
    const std::string self = prefix + "self_attn.";
    const std::string mlp = prefix + "mlp.";
    LayerWeights layer;
    ASSIGN_OR_RETURN(layer.attention.norm_gain,
                     Vector(prefix + "input_layernorm"));
    ASSIGN_OR_RETURN(
        layer.attention.qkv,
        Linear({self + "q_proj", self + "k_proj", self + "v_proj"}));
    ASSIGN_OR_RETURN(layer.attention.q_norm_gain, Vector(self + "q_norm"));
    ASSIGN_OR_RETURN(layer.attention.k_norm_gain, Vector(self + "k_norm"));
    ASSIGN_OR_RETURN(layer.attention.output, Linear({self + "o_proj"}));
    ASSIGN_OR_RETURN(layer.mlp.norm_gain,
                     Vector(prefix + "post_attention_layernorm"));
    ASSIGN_OR_RETURN(layer.mlp.gate_up,
                     Linear({mlp + "gate_proj", mlp + "up_proj"}));
    ASSIGN_OR_RETURN(layer.mlp.down, Linear({mlp + "down_proj"}));
    weights_.layers.push_back(layer);
    return absl::OkStatus();
  }

  absl::Status TokenMask(const std::string& directory) {
    ASSIGN_OR_RETURN(const Json raw, ReadJson(directory + "/tokenizer.json"));
    std::vector<uint8_t> mask(weights_.config.vocab_size);
    for (const Json& id : raw.at("model").at("vocab")) {
      mask.at(id.get<size_t>()) = 1;
    }
    for (const Json& token : raw.at("added_tokens")) {
      mask.at(token.at("id").get<size_t>()) = 1;
    }
    ASSIGN_OR_RETURN(auto buffer, device_.Allocate(mask.size()));
    auto stream = device_.NewStream(StreamPriority::kLow);
    stream->CopyToDevice(buffer->data(), mask.data(), mask.size());
    RETURN_IF_ERROR(stream->Synchronize());
    weights_.head.is_token = static_cast<const uint8_t*>(buffer->data());
    weights_.vectors.push_back(std::move(buffer));
    return absl::OkStatus();
  }

 private:
  Device& device_;
  const std::map<std::string, HostTensor>& tensors_;
  ModelWeights& weights_;
};

}  // namespace

absl::StatusOr<PlainTensors> ReadPlainTensors(const std::string& path) {
  PlainTensors tensors;
  if (absl::EndsWith(path, ".safetensors")) {
    RETURN_IF_ERROR(AddFile(path, tensors));
    return tensors;
  }
  const std::string index_path = path + "/model.safetensors.index.json";
  if (!FileExists(index_path)) {
    RETURN_IF_ERROR(AddFile(path + "/model.safetensors", tensors));
    return tensors;
  }
  ASSIGN_OR_RETURN(const Json index, ReadJson(index_path));
  std::set<std::string> shards;
  for (const Json& shard : index.at("weight_map")) shards.insert(shard);
  for (const std::string& shard : shards) {
    RETURN_IF_ERROR(AddFile(absl::StrCat(path, "/", shard), tensors));
  }
  return tensors;
}

absl::StatusOr<std::unique_ptr<ModelWeights>> LoadPlainCheckpoint(
    Device& device, const std::string& directory, DType dtype) {
  ASSIGN_OR_RETURN(const PlainTensors tensors, ReadPlainTensors(directory));
  auto weights = std::make_unique<ModelWeights>();
  ASSIGN_OR_RETURN(weights->config, ReadConfig(directory));
  weights->dtype = dtype;
  Builder builder(device, tensors, *weights);
  ASSIGN_OR_RETURN(weights->embedding, builder.Linear({"model.embed_tokens"}));
  for (int32_t l = 0; l < weights->config.num_layers; ++l) {
    RETURN_IF_ERROR(builder.Layer(l));
  }
  ASSIGN_OR_RETURN(weights->head.norm_gain, builder.Vector("model.norm"));
  if (weights->config.tied_embeddings) {
    weights->head.lm_head = weights->embedding;
  } else {
    ASSIGN_OR_RETURN(weights->head.lm_head, builder.Linear({"lm_head"}));
  }
  RETURN_IF_ERROR(builder.TokenMask(directory));
  return weights;
}

}  // namespace overfill
