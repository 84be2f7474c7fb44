#include "tests/engine/checkpoint_files.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "kernels/tensor.h"
#include "tests/tokenizer/tokenizer_files.h"

namespace overfill {
namespace {

// f16 of a value that is normal there, cut off.
uint16_t Float16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t exponent = (bits >> 23) & 0xff;
  if (exponent < 113) return static_cast<uint16_t>((bits >> 16) & 0x8000);
  return static_cast<uint16_t>(((bits >> 16) & 0x8000) |
                               ((exponent - 112) << 10) |
                               ((bits >> 13) & 0x3ff));
}

template <typename T>
void AppendValue(T value, std::string& bytes) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  bytes.append(raw, sizeof(T));
}

}  // namespace

TempDirectory::TempDirectory() {
  const char* base = std::getenv("TMPDIR");
  path_ = absl::StrCat(base != nullptr ? base : "/tmp", "/overfillXXXXXX");
  OVERFILL_CHECK(mkdtemp(path_.data()) != nullptr) << path_;
}

TempDirectory::~TempDirectory() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

std::string TempDirectory::operator/(absl::string_view name) const {
  return absl::StrCat(path_, "/", name);
}

void WriteFile(const std::string& path, absl::string_view content) {
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  OVERFILL_CHECK(static_cast<bool>(file.flush())) << path;
}

FileTensor MakeFileTensor(const std::vector<int64_t>& shape,
                          const std::vector<float>& values,
                          const std::string& dtype) {
  FileTensor tensor{dtype, shape, ""};
  for (const float value : values) {
    if (dtype == "F32") {
      AppendValue(value, tensor.bytes);
    } else if (dtype == "BF16") {
      AppendValue(BFloat16FromFloat(value), tensor.bytes);
    } else {
      OVERFILL_CHECK_EQ(dtype, "F16");
      AppendValue(Float16FromFloat(value), tensor.bytes);
    }
  }
  return tensor;
}

std::vector<float> ValuesOf(const FileTensor& tensor) {
  const size_t width = tensor.dtype == "F32" ? 4 : 2;
  std::vector<float> values;
  for (size_t at = 0; at < tensor.bytes.size(); at += width) {
    float value = 0;
    uint16_t half = 0;
    if (tensor.dtype == "F32") {
      std::memcpy(&value, tensor.bytes.data() + at, 4);
    } else {
      std::memcpy(&half, tensor.bytes.data() + at, 2);
      value = tensor.dtype == "BF16" ? FloatFromBFloat16(half)
                                     : FloatFromFloat16(half);
    }
    values.push_back(value);
  }
  return values;
}

std::string SafetensorsFile(absl::string_view header, absl::string_view data) {
  std::string file;
  AppendValue(uint64_t{header.size()}, file);
  absl::StrAppend(&file, header, data);
  return file;
}

std::string SafetensorsFile(const FileTensors& tensors) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    data += tensor.bytes;
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {begin, data.size()}}};
  }
  return SafetensorsFile(header.dump(), data);
}

void TinyCheckpoint::WriteTo(const std::string& directory) const {
  std::filesystem::create_directories(directory);
  const auto path = [&](absl::string_view name) {
    return absl::StrCat(directory, "/", name);
  };
  WriteFile(path("config.json"), config.dump());
  WriteFile(path("generation_config.json"), generation.dump());
  WriteFile(path("tokenizer.json"), tokenizer.dump());
  WriteFile(path("tokenizer_config.json"), tokenizer_config.dump());
  if (num_shards == 1) {
    WriteFile(path("model.safetensors"), SafetensorsFile(tensors));
    return;
  }
  std::vector<FileTensors> shards(num_shards);
  Json weight_map = Json::object();
  size_t next = 0;
  for (const auto& [name, tensor] : tensors) {
    const size_t shard = next++ % shards.size();
    shards[shard][name] = tensor;
    weight_map[name] = absl::StrCat("model-", shard, ".safetensors");
  }
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    WriteFile(path(absl::StrCat("model-", shard, ".safetensors")),
              SafetensorsFile(shards[shard]));
  }
  WriteFile(path("model.safetensors.index.json"),
            Json{{"weight_map", weight_map}}.dump());
}

Json TinyConfig(absl::string_view model_type) {
  const std::string architecture = model_type == "llama"   ? "LlamaForCausalLM"
                                   : model_type == "qwen2" ? "Qwen2ForCausalLM"
                                   : model_type == "qwen3"
                                       ? "Qwen3ForCausalLM"
                                       : "MistralForCausalLM";
  Json config = {{"architectures", {architecture}},
                 {"model_type", std::string(model_type)},
                 {"hidden_act", "silu"},
                 {"num_hidden_layers", 3},
                 {"hidden_size", 27},
                 {"intermediate_size", 41},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"head_dim", 16},
                 {"vocab_size", 1000},
                 {"max_position_embeddings", 256},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 10000.0},
                 {"tie_word_embeddings", false},
                 {"torch_dtype", "float32"},
                 {"bos_token_id", 1},
                 {"eos_token_id", 2}};
  if (model_type == "mistral") config["sliding_window"] = nullptr;
  return config;
}

FileTensors TinyTensors(const Json& config, uint32_t seed,
                        const std::string& dtype) {
  std::mt19937 random(seed);
  FileTensors tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    std::normal_distribution<float> normal(
        shape.size() == 1 ? 1 : 0,
        1 / std::sqrt(static_cast<float>(shape.back())));
    size_t count = 1;
    for (const int64_t dim : shape) count *= static_cast<size_t>(dim);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    tensors[name] = MakeFileTensor(shape, values, dtype);
  };
  const std::string type = config.at("model_type");
  const int64_t hidden = config.at("hidden_size");
  const int64_t inner = config.at("intermediate_size");
  const int64_t vocab = config.at("vocab_size");
  const int64_t head_dim = config.at("head_dim");
  const int64_t q = config.at("num_attention_heads").get<int64_t>() * head_dim;
  const int64_t kv = config.at("num_key_value_heads").get<int64_t>() * head_dim;
  const bool attention_bias = config.value("attention_bias", false);
  const auto linear = [&](const std::string& name, int64_t out, int64_t in,
                          bool bias) {
    add(name + ".weight", {out, in});
    if (bias) add(name + ".bias", {out});
  };
  linear("model.embed_tokens", vocab, hidden, false);
  for (int l = 0; l < config.at("num_hidden_layers").get<int>(); ++l) {
    const std::string layer = absl::StrCat("model.layers.", l, ".");
    const bool qkv_bias = attention_bias || type == "qwen2";
    const bool mlp_bias = config.value("mlp_bias", false);
    add(layer + "input_layernorm.weight", {hidden});
    linear(layer + "self_attn.q_proj", q, hidden, qkv_bias);
    linear(layer + "self_attn.k_proj", kv, hidden, qkv_bias);
    linear(layer + "self_attn.v_proj", kv, hidden, qkv_bias);
    linear(layer + "self_attn.o_proj", hidden, q, attention_bias);
    if (type == "qwen3") {
      add(layer + "self_attn.q_norm.weight", {head_dim});
      add(layer + "self_attn.k_norm.weight", {head_dim});
    }
    add(layer + "post_attention_layernorm.weight", {hidden});
    linear(layer + "mlp.gate_proj", inner, hidden, mlp_bias);
    linear(layer + "mlp.up_proj", inner, hidden, mlp_bias);
    linear(layer + "mlp.down_proj", hidden, inner, mlp_bias);
  }
  add("model.norm.weight", {hidden});
  if (!config.at("tie_word_embeddings").get<bool>()) {
    linear("lm_head", vocab, hidden, false);
  }
  return tensors;
}

TinyCheckpoint MakeTinyCheckpoint(absl::string_view model_type, uint32_t seed) {
  TinyCheckpoint checkpoint;
  // It takes a while to train.
  static const Json* const tokenizer =
      new Json(MakeTokenizerJson(Family::kLlama3, /*seed=*/1));
  checkpoint.tokenizer = *tokenizer;
  checkpoint.tokenizer_config = MakeTokenizerConfig(Family::kLlama3);
  checkpoint.config = TinyConfig(model_type);
  int64_t max_id = 0;
  for (const Json& id : checkpoint.tokenizer.at("model").at("vocab")) {
    max_id = std::max(max_id, id.get<int64_t>());
  }
  for (const Json& token : checkpoint.tokenizer.at("added_tokens")) {
    max_id = std::max(max_id, token.at("id").get<int64_t>());
  }
  checkpoint.config["vocab_size"] = max_id + 1 + 5;
  checkpoint.tensors = TinyTensors(checkpoint.config, seed);
  return checkpoint;
}

}  // namespace overfill
