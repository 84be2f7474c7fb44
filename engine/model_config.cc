#include "engine/model_config.h"

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "engine/rope_config.h"
#include "engine/safetensors.h"
#include "engine/token_ids.h"

namespace overfill {
namespace {

constexpr uint64_t kMaxFileBytes = 16 << 20;

// Larger than any model of these families; small enough that products of two
// sizes fit in int64_t with much room.
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 256;
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxPositions = 1 << 28;
// The window of a Mistral config that does not speak of one.
constexpr int64_t kMistralDefaultWindow = 4096;

struct ArchitectureEntry {
  Architecture architecture;
  const char* name;
  const char* model_type;
};
constexpr ArchitectureEntry kArchitectures[] = {
    {Architecture::kLlama, "LlamaForCausalLM", "llama"},
    {Architecture::kQwen2, "Qwen2ForCausalLM", "qwen2"},
    {Architecture::kQwen3, "Qwen3ForCausalLM", "qwen3"},
    {Architecture::kMistral, "MistralForCausalLM", "mistral"},
};

// What would change the model's arithmetic, or the meaning of its tensors, in
// a way that the transformer does not know. Harmless when null, false, 0 or
// empty.
constexpr const char* kUnsupported[] = {
    "quantization_config",
    "compression_config",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_intermediate_size",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "attention_chunk_size",
    "no_rope_layers",
    "use_qk_norm",
    "cross_attention_layers",
    "vision_config",
    "text_config",
};

absl::Status Invalid(absl::string_view origin, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(origin, ": ", what));
}

bool SaysNothing(const Json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  return value.is_null() || value.empty();
}

// One config.json being read.
class ConfigReader {
 public:
  ConfigReader(const Json& raw, absl::string_view origin)
      : raw_(raw), origin_(origin) {}

  absl::StatusOr<ModelConfig> Read() {
    RETURN_IF_ERROR(ReadArchitecture());
    RETURN_IF_ERROR(RefuseUnsupported());
    RETURN_IF_ERROR(ReadSizes());
    RETURN_IF_ERROR(ReadHeads());
    RETURN_IF_ERROR(ReadFlags());
    RETURN_IF_ERROR(RefuseSlidingWindow());
    RETURN_IF_ERROR(ReadDType());
    ASSIGN_OR_RETURN(config_.rope, ParseRopeConfig(raw_, origin_));
    RETURN_IF_ERROR(ReadTokenIds());
    return config_;
  }

 private:
  absl::Status Error(absl::string_view what) { return Invalid(origin_, what); }

  absl::Status ReadArchitecture() {
    const Json* names = FindJson(raw_, "architectures");
    if (names == nullptr) return Error("architectures is absent");
    if (!names->is_array() || names->size() != 1 ||
        !names->front().is_string()) {
      return Error("architectures must be a list of one name");
    }
    const std::string name = names->front().get<std::string>();
    ASSIGN_OR_RETURN(const auto type, JsonString(raw_, "model_type", origin_));
    for (const ArchitectureEntry& entry : kArchitectures) {
      if (name != entry.name) continue;
      if (type && *type != entry.model_type) {
        return Error(absl::StrCat("model_type ", QuoteTensorName(*type),
                                  " does not fit ", "the architecture ", name));
      }
      config_.architecture = entry.architecture;
      return absl::OkStatus();
    }
    return Error(absl::StrCat("architecture ", QuoteTensorName(name),
                              " is not supported ",
                              "(LlamaForCausalLM, Qwen2ForCausalLM, "
                              "Qwen3ForCausalLM, MistralForCausalLM)"));
  }

  absl::Status RefuseUnsupported() {
    for (const char* key : kUnsupported) {
      const Json* value = FindJson(raw_, key);
      if (value == nullptr || SaysNothing(*value)) continue;
      return Error(absl::StrCat(key, " is not supported"));
    }
    for (const char* key : {"hidden_act", "hidden_activation"}) {
      ASSIGN_OR_RETURN(const auto act, JsonString(raw_, key, origin_));
      if (!act || *act == "silu") continue;
      return Error(absl::StrCat(key, " ", QuoteTensorName(*act),
                                " is not supported, only silu is"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int32_t> Size(const char* key, int64_t max) {
    ASSIGN_OR_RETURN(const auto value, JsonInt(raw_, key, 1, max, origin_));
    if (!value) return Error(absl::StrCat(key, " is absent"));
    return static_cast<int32_t>(*value);
  }

  absl::Status ReadSizes() {
    ASSIGN_OR_RETURN(config_.num_layers, Size("num_hidden_layers", kMaxLayers));
    ASSIGN_OR_RETURN(config_.hidden_size, Size("hidden_size", kMaxWidth));
    ASSIGN_OR_RETURN(config_.intermediate_size,
                     Size("intermediate_size", kMaxWidth));
    ASSIGN_OR_RETURN(config_.vocab_size, Size("vocab_size", kMaxVocab));
    ASSIGN_OR_RETURN(config_.max_positions,
                     Size("max_position_embeddings", kMaxPositions));
    ASSIGN_OR_RETURN(const auto eps, JsonNumber(raw_, "rms_norm_eps", origin_));
    if (!eps) return Error("rms_norm_eps is absent");
    config_.norm_eps = static_cast<float>(*eps);
    if (config_.norm_eps <= 0 || *eps > 1) {  // a float may turn it into 0
      return Error(absl::StrCat("rms_norm_eps must be above 0 and at most 1, ",
                                "is ", *eps));
    }
    return absl::OkStatus();
  }

  absl::Status ReadHeads() {
    ASSIGN_OR_RETURN(config_.num_heads, Size("num_attention_heads", kMaxHeads));
    // Only Llama has always meant "as many" by saying nothing.
    config_.num_kv_heads = config_.num_heads;
    if (config_.architecture != Architecture::kLlama ||
        FindJson(raw_, "num_key_value_heads") != nullptr) {
      ASSIGN_OR_RETURN(config_.num_kv_heads,
                       Size("num_key_value_heads", kMaxHeads));
    }
    if (config_.num_heads % config_.num_kv_heads != 0) {
      return Error(absl::StrCat("num_attention_heads ", config_.num_heads,
                                " is not a multiple of num_key_value_heads ",
                                config_.num_kv_heads));
    }
    return ReadHeadDim();
  }

  absl::Status ReadHeadDim() {
    ASSIGN_OR_RETURN(const auto stated,
                     JsonInt(raw_, "head_dim", 1, kMaxHeadDim, origin_));
    if (!stated && config_.architecture == Architecture::kQwen3) {
      return Error("head_dim is absent, and Qwen3 does not derive it");
    }
    if (!stated && config_.hidden_size % config_.num_heads != 0) {
      return Error(absl::StrCat(
          "head_dim is absent, and hidden_size ", config_.hidden_size,
          " is not a multiple of num_attention_heads ", config_.num_heads));
    }
    const int64_t head_dim =
        stated ? *stated : config_.hidden_size / config_.num_heads;
    if (head_dim % 8 != 0 || head_dim > kMaxHeadDim) {
      return Error(absl::StrCat("head_dim ", head_dim, " is not a multiple of ",
                                "8 of at most ", kMaxHeadDim));
    }
    config_.head_dim = static_cast<int32_t>(head_dim);
    return absl::OkStatus();
  }

  absl::StatusOr<bool> Flag(const char* key) {
    ASSIGN_OR_RETURN(const auto value, JsonBool(raw_, key, origin_));
    return value.value_or(false);
  }

  absl::Status ReadFlags() {
    ASSIGN_OR_RETURN(config_.tied_embeddings, Flag("tie_word_embeddings"));
    ASSIGN_OR_RETURN(const bool attention_bias, Flag("attention_bias"));
    ASSIGN_OR_RETURN(const bool mlp_bias, Flag("mlp_bias"));
    switch (config_.architecture) {
      case Architecture::kLlama:
        config_.mlp_bias = mlp_bias;
        [[fallthrough]];
      case Architecture::kQwen3:
        config_.qkv_bias = config_.output_bias = attention_bias;
        break;
      case Architecture::kQwen2:
        config_.qkv_bias = true;  // whatever attention_bias says
        break;
      case Architecture::kMistral:
        if (attention_bias) return Error("attention_bias: Mistral has none");
        break;
    }
    if (mlp_bias && !config_.mlp_bias) {
      return Error("mlp_bias: only Llama has one");
    }
    config_.qk_norm = config_.architecture == Architecture::kQwen3;
    return absl::OkStatus();
  }

  absl::Status RefuseSlidingWindow() {
    RETURN_IF_ERROR(RefuseSlidingLayers());
    ASSIGN_OR_RETURN(const auto use,
                     JsonBool(raw_, "use_sliding_window", origin_));
    const bool is_qwen = config_.architecture == Architecture::kQwen2 ||
                         config_.architecture == Architecture::kQwen3;
    // A switch of Qwen's alone: Mistral's window is there or is null.
    if (is_qwen && !use.value_or(false)) return absl::OkStatus();
    const bool is_stated = raw_.contains("sliding_window");
    if (is_qwen && !is_stated) {
      return Error("use_sliding_window: sliding windows are not supported");
    }
    ASSIGN_OR_RETURN(const auto window,
                     JsonInt(raw_, "sliding_window", 1,
                             std::numeric_limits<int64_t>::max(), origin_));
    // One that is as wide as the context hides nothing.
    if (window && *window < config_.max_positions) {
      return Error(absl::StrCat("sliding_window ", *window,
                                " is not supported: it is less than "
                                "max_position_embeddings ",
                                config_.max_positions));
    }
    if (config_.architecture == Architecture::kMistral && !is_stated &&
        config_.max_positions > kMistralDefaultWindow) {
      return Error(absl::StrCat("sliding_window is absent, which means ",
                                kMistralDefaultWindow,
                                " for Mistral; null would turn it off"));
    }
    return absl::OkStatus();
  }

  absl::Status RefuseSlidingLayers() {
    const Json* types = FindJson(raw_, "layer_types");
    if (types == nullptr) return absl::OkStatus();
    if (!types->is_array() ||
        types->size() != static_cast<size_t>(config_.num_layers)) {
      return Error("layer_types must be a list of num_hidden_layers names");
    }
    for (const Json& type : *types) {
      if (type == "full_attention") continue;
      return Error(absl::StrCat("layer_types: ",
                                type.is_string()
                                    ? QuoteTensorName(type.get<std::string>())
                                    : "what is no name",
                                " is not supported, only full_attention is"));
    }
    return absl::OkStatus();
  }

  absl::Status ReadDType() {
    ASSIGN_OR_RETURN(const auto newer, JsonString(raw_, "dtype", origin_));
    ASSIGN_OR_RETURN(const auto older,
                     JsonString(raw_, "torch_dtype", origin_));
    if (newer && older && *newer != *older) {
      return Error(absl::StrCat("dtype ", QuoteTensorName(*newer),
                                " and torch_dtype ", QuoteTensorName(*older),
                                " differ"));
    }
    const std::string name = newer ? *newer : older.value_or("float32");
    if (name == "float32") {
      config_.dtype = DType::kF32;
    } else if (name == "bfloat16") {
      config_.dtype = DType::kBF16;
    } else if (name == "float16") {
      config_.dtype = DType::kF16;
    } else {
      return Error(absl::StrCat(newer ? "dtype" : "torch_dtype", " ",
                                QuoteTensorName(name),
                                " is not supported (float32, float16, "
                                "bfloat16)"));
    }
    return absl::OkStatus();
  }

  absl::Status ReadTokenIds() {
    ASSIGN_OR_RETURN(
        config_.eos_ids,
        ParseTokenIds(raw_, "eos_token_id", config_.vocab_size, origin_));
    ASSIGN_OR_RETURN(const auto bos, JsonInt(raw_, "bos_token_id", 0,
                                             config_.vocab_size - 1, origin_));
    if (bos) config_.bos_id = static_cast<int32_t>(*bos);
    return absl::OkStatus();
  }

  const Json& raw_;
  const absl::string_view origin_;
  ModelConfig config_;
};

}  // namespace

const char* ArchitectureName(Architecture architecture) {
  for (const ArchitectureEntry& entry : kArchitectures) {
    if (entry.architecture == architecture) return entry.name;
  }
  return "unknown";
}

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json,
                                             absl::string_view origin) {
  ASSIGN_OR_RETURN(const Json raw, ParseJsonObject(json, origin));
  return ConfigReader(raw, origin).Read();
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/config.json");
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  return ParseModelConfig(text, path);
}

}  // namespace overfill
