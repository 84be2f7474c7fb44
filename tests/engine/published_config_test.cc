// The config.json of well-known models, with all that such files hold, in the
// spelling of transformers 4 and in that of transformers 5.
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "engine/model_config.h"
#include "gtest/gtest.h"
#include "tests/engine/status_matchers.h"

namespace overfill {
namespace {

// What all of the files below say besides.
Json WithCommonKeys(Json config) {
  config.update({{"attention_dropout", 0.0},
                 {"hidden_act", "silu"},
                 {"initializer_range", 0.02},
                 {"transformers_version", "4.43.0"},
                 {"use_cache", true}});
  return config;
}

Json Llama31() {
  return WithCommonKeys({{"architectures", {"LlamaForCausalLM"}},
                         {"attention_bias", false},
                         {"bos_token_id", 128000},
                         {"eos_token_id", {128001, 128008, 128009}},
                         {"hidden_size", 4096},
                         {"intermediate_size", 14336},
                         {"max_position_embeddings", 131072},
                         {"mlp_bias", false},
                         {"model_type", "llama"},
                         {"num_attention_heads", 32},
                         {"num_hidden_layers", 32},
                         {"num_key_value_heads", 8},
                         {"pretraining_tp", 1},
                         {"rms_norm_eps", 1e-5},
                         {"rope_scaling",
                          {{"factor", 8.0},
                           {"low_freq_factor", 1.0},
                           {"high_freq_factor", 4.0},
                           {"original_max_position_embeddings", 8192},
                           {"rope_type", "llama3"}}},
                         {"rope_theta", 500000.0},
                         {"tie_word_embeddings", false},
                         {"torch_dtype", "bfloat16"},
                         {"vocab_size", 128256}});
}

Json Llama32() {
  Json config = Llama31();
  config.update({{"eos_token_id", 128001},
                 {"head_dim", 128},
                 {"hidden_size", 3072},
                 {"intermediate_size", 8192},
                 {"num_attention_heads", 24},
                 {"num_hidden_layers", 28},
                 {"tie_word_embeddings", true}});
  config["rope_scaling"]["factor"] = 32.0;
  return config;
}

Json Llama2() {
  return WithCommonKeys({{"architectures", {"LlamaForCausalLM"}},
                         {"bos_token_id", 1},
                         {"eos_token_id", 2},
                         {"hidden_size", 4096},
                         {"intermediate_size", 11008},
                         {"max_position_embeddings", 4096},
                         {"model_type", "llama"},
                         {"num_attention_heads", 32},
                         {"num_hidden_layers", 32},
                         {"num_key_value_heads", 32},
                         {"pad_token_id", 0},
                         {"pretraining_tp", 1},
                         {"rms_norm_eps", 1e-5},
                         {"rope_scaling", nullptr},
                         {"tie_word_embeddings", false},
                         {"torch_dtype", "float16"},
                         {"vocab_size", 32000}});
}

Json Qwen25() {
  return WithCommonKeys({{"architectures", {"Qwen2ForCausalLM"}},
                         {"bos_token_id", 151643},
                         {"eos_token_id", 151645},
                         {"hidden_size", 3584},
                         {"intermediate_size", 18944},
                         {"max_position_embeddings", 32768},
                         {"max_window_layers", 28},
                         {"model_type", "qwen2"},
                         {"num_attention_heads", 28},
                         {"num_hidden_layers", 28},
                         {"num_key_value_heads", 4},
                         {"rms_norm_eps", 1e-6},
                         {"rope_theta", 1000000.0},
                         {"sliding_window", 131072},
                         {"tie_word_embeddings", false},
                         {"torch_dtype", "bfloat16"},
                         {"use_mrope", false},
                         {"use_sliding_window", false},
                         {"vocab_size", 152064}});
}

Json Qwen3() {
  return WithCommonKeys({{"architectures", {"Qwen3ForCausalLM"}},
                         {"attention_bias", false},
                         {"bos_token_id", 151643},
                         {"eos_token_id", 151645},
                         {"head_dim", 128},
                         {"hidden_size", 1024},
                         {"intermediate_size", 3072},
                         {"max_position_embeddings", 40960},
                         {"max_window_layers", 28},
                         {"model_type", "qwen3"},
                         {"num_attention_heads", 16},
                         {"num_hidden_layers", 28},
                         {"num_key_value_heads", 8},
                         {"rms_norm_eps", 1e-6},
                         {"rope_scaling", nullptr},
                         {"rope_theta", 1000000},
                         {"sliding_window", nullptr},
                         {"tie_word_embeddings", true},
                         {"torch_dtype", "bfloat16"},
                         {"use_sliding_window", false},
                         {"vocab_size", 151936}});
}

Json Mistral(Json sliding_window) {
  return WithCommonKeys({{"architectures", {"MistralForCausalLM"}},
                         {"bos_token_id", 1},
                         {"eos_token_id", 2},
                         {"head_dim", nullptr},
                         {"hidden_size", 4096},
                         {"intermediate_size", 14336},
                         {"max_position_embeddings", 32768},
                         {"model_type", "mistral"},
                         {"num_attention_heads", 32},
                         {"num_hidden_layers", 32},
                         {"num_key_value_heads", 8},
                         {"rms_norm_eps", 1e-5},
                         {"rope_theta", 1000000.0},
                         {"sliding_window", std::move(sliding_window)},
                         {"tie_word_embeddings", false},
                         {"torch_dtype", "bfloat16"},
                         {"vocab_size", 32768}});
}

Json MistralNemo() {
  Json config = Mistral(nullptr);
  config.update({{"head_dim", 128},
                 {"hidden_size", 5120},
                 {"max_position_embeddings", 1024000},
                 {"num_hidden_layers", 40},
                 {"vocab_size", 131072}});
  return config;
}

// As transformers 5 would write the same model.
Json Respelled(Json config) {
  const bool is_qwen = config["model_type"].get<std::string>()[0] == 'q';
  Json rope = {{"rope_type", "default"}};
  if (config.contains("rope_scaling") && !config["rope_scaling"].is_null()) {
    rope = config["rope_scaling"];
  }
  rope["rope_theta"] = config.at("rope_theta");
  config["rope_parameters"] = rope;
  config["dtype"] = config.at("torch_dtype");
  for (const char* key : {"rope_scaling", "rope_theta", "torch_dtype"}) {
    config.erase(key);
  }
  config["pad_token_id"] = nullptr;
  if (is_qwen) {
    config["sliding_window"] = nullptr;
    config["layer_types"] = std::vector<std::string>(
        config.at("num_hidden_layers").get<size_t>(), "full_attention");
  }
  config["transformers_version"] = "5.0.0";
  return config;
}

struct Published {
  const char* name;
  Json config;
  int32_t head_dim;
  double theta;
  std::optional<Llama3RopeScaling> llama3;
  bool tied;
  std::vector<int32_t> eos_ids;
};

TEST(PublishedConfigTest, BothSpellingsAreRead) {
  const std::vector<Published> models = {
      {"Llama 3.1 8B",
       Llama31(),
       128,
       500000,
       Llama3RopeScaling{8, 1, 4, 8192},
       false,
       {128001, 128008, 128009}},
      {"Llama 3.2 3B",
       Llama32(),
       128,
       500000,
       Llama3RopeScaling{32, 1, 4, 8192},
       true,
       {128001}},
      {"Qwen2.5 7B", Qwen25(), 128, 1e6, {}, false, {151645}},
      {"Qwen3 0.6B", Qwen3(), 128, 1e6, {}, true, {151645}},
      {"Mistral 7B v0.3", Mistral(nullptr), 128, 1e6, {}, false, {2}},
      {"Mistral Nemo", MistralNemo(), 128, 1e6, {}, false, {2}},
  };
  for (const Published& model : models) {
    for (const Json& config : {model.config, Respelled(model.config)}) {
      SCOPED_TRACE(model.name + std::string(": ") + config.dump());
      const auto parsed = ParseModelConfig(config.dump(), "config.json");
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      EXPECT_EQ(config.at("architectures")[0],
                ArchitectureName(parsed->architecture));
      EXPECT_EQ(parsed->head_dim, model.head_dim);
      EXPECT_EQ(parsed->rope, (RopeConfig{model.theta, model.llama3}));
      EXPECT_EQ(parsed->tied_embeddings, model.tied);
      EXPECT_EQ(parsed->eos_ids, model.eos_ids);
      EXPECT_EQ(parsed->dtype, DType::kBF16);
      EXPECT_EQ(parsed->num_layers, config.at("num_hidden_layers"));
      EXPECT_EQ(parsed->hidden_size, config.at("hidden_size"));
      EXPECT_EQ(parsed->num_kv_heads, config.at("num_key_value_heads"));
      EXPECT_EQ(parsed->max_positions, config.at("max_position_embeddings"));
      EXPECT_EQ(parsed->vocab_size, config.at("vocab_size"));
    }
  }
}

TEST(PublishedConfigTest, AbsentThetaAndActiveWindowsAreRefused) {
  const auto parse = [](const Json& config) {
    return ParseModelConfig(config.dump(), "config.json").status();
  };
  // The first files of Llama 2 leave theta to the reader.
  EXPECT_TRUE(IsRefusal(parse(Llama2()), {"rope_theta is absent"}));
  Json stated = Llama2();
  stated["rope_theta"] = 10000.0;
  EXPECT_TRUE(parse(stated).ok()) << parse(stated);
  EXPECT_TRUE(parse(Respelled(stated)).ok()) << parse(Respelled(stated));
  // Mistral 7B v0.1.
  for (const Json& config : {Mistral(4096), Respelled(Mistral(4096))}) {
    EXPECT_TRUE(IsRefusal(parse(config), {"sliding_window 4096", "32768"}));
  }
  Json mixed = Respelled(Qwen3());
  mixed["layer_types"][27] = "sliding_attention";
  EXPECT_TRUE(IsRefusal(parse(mixed), {"layer_types", "sliding_attention"}));
  Json yarn = Respelled(Qwen25());
  yarn["rope_parameters"].update({{"rope_type", "yarn"}, {"factor", 4.0}});
  EXPECT_TRUE(IsRefusal(parse(yarn), {"rope_parameters", "yarn"}));
}

}  // namespace
}  // namespace overfill
