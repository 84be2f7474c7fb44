#include "engine/model_config.h"

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "base/json.h"
#include "gtest/gtest.h"
#include "tests/engine/checkpoint_files.h"
#include "tests/engine/status_matchers.h"

namespace overfill {
namespace {

using Edit = std::function<void(Json&)>;

absl::StatusOr<ModelConfig> Parse(const Json& config) {
  return ParseModelConfig(config.dump(), "some/config.json");
}

ModelConfig MustParse(const Json& config) {
  auto parsed = Parse(config);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *parsed : ModelConfig();
}

Json Llama3Scaling() {
  return {{"rope_type", "llama3"},
          {"factor", 8.0},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", 8192}};
}

TEST(ModelConfigTest, ReadsEachArchitecture) {
  const ModelConfig llama = MustParse(TinyConfig("llama"));
  EXPECT_EQ(llama.architecture, Architecture::kLlama);
  EXPECT_EQ(llama.num_layers, 3);
  EXPECT_EQ(llama.hidden_size, 27);
  EXPECT_EQ(llama.intermediate_size, 41);
  EXPECT_EQ(llama.num_heads, 4);
  EXPECT_EQ(llama.num_kv_heads, 2);
  EXPECT_EQ(llama.head_dim, 16);
  EXPECT_EQ(llama.vocab_size, 1000);
  EXPECT_EQ(llama.max_positions, 256);
  EXPECT_EQ(llama.norm_eps, 1e-5f);
  EXPECT_EQ(llama.rope, (RopeConfig{10000, {}}));
  EXPECT_EQ(llama.dtype, DType::kF32);
  EXPECT_FALSE(llama.tied_embeddings);
  EXPECT_FALSE(llama.qkv_bias || llama.output_bias || llama.mlp_bias ||
               llama.qk_norm);
  EXPECT_EQ(llama.bos_id, 1);
  EXPECT_EQ(llama.eos_ids, std::vector<int32_t>({2}));

  const ModelConfig qwen2 = MustParse(TinyConfig("qwen2"));
  EXPECT_EQ(qwen2.architecture, Architecture::kQwen2);
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.output_bias || qwen2.mlp_bias || qwen2.qk_norm);
  const ModelConfig qwen3 = MustParse(TinyConfig("qwen3"));
  EXPECT_EQ(qwen3.architecture, Architecture::kQwen3);
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias || qwen3.output_bias || qwen3.mlp_bias);
  const ModelConfig mistral = MustParse(TinyConfig("mistral"));
  EXPECT_EQ(mistral.architecture, Architecture::kMistral);
  EXPECT_FALSE(mistral.qkv_bias || mistral.output_bias || mistral.qk_norm);
  for (const Architecture a : {Architecture::kLlama, Architecture::kQwen2,
                               Architecture::kQwen3, Architecture::kMistral}) {
    EXPECT_TRUE(absl::EndsWith(ArchitectureName(a), "ForCausalLM"));
  }
}

TEST(ModelConfigTest, BothSpellingsMeanTheSame) {
  Json older = TinyConfig("llama");
  older["rope_scaling"] = Llama3Scaling();
  older["torch_dtype"] = "bfloat16";
  Json newer = TinyConfig("llama");
  newer.erase("rope_theta");
  newer.erase("torch_dtype");
  newer["rope_parameters"] = Llama3Scaling();
  newer["rope_parameters"]["rope_theta"] = 10000.0;
  newer["dtype"] = "bfloat16";
  const RopeConfig want = {10000, Llama3RopeScaling{8, 1, 4, 8192}};
  EXPECT_EQ(MustParse(older).rope, want);
  EXPECT_EQ(MustParse(newer).rope, want);
  EXPECT_EQ(MustParse(older).dtype, DType::kBF16);
  EXPECT_EQ(MustParse(newer).dtype, DType::kBF16);
  // A file may carry both, as long as they agree.
  older["rope_parameters"] = newer["rope_parameters"];
  older["dtype"] = "bfloat16";
  EXPECT_EQ(MustParse(older).rope, want);
  // The older name of the type.
  older.erase("rope_parameters");
  older["rope_scaling"].erase("rope_type");
  older["rope_scaling"]["type"] = "llama3";
  EXPECT_EQ(MustParse(older).rope, want);
}

TEST(ModelConfigTest, Variants) {
  Json config = TinyConfig("llama");
  config["attention_bias"] = config["mlp_bias"] = true;
  ModelConfig parsed = MustParse(config);
  EXPECT_TRUE(parsed.qkv_bias && parsed.output_bias && parsed.mlp_bias);
  config = TinyConfig("qwen3");
  config["attention_bias"] = true;
  parsed = MustParse(config);
  EXPECT_TRUE(parsed.qkv_bias && parsed.output_bias && !parsed.mlp_bias);

  config = TinyConfig("llama");
  config.erase("head_dim");
  config["hidden_size"] = 96;
  EXPECT_EQ(MustParse(config).head_dim, 24);
  config["head_dim"] = nullptr;
  EXPECT_EQ(MustParse(config).head_dim, 24);
  config.erase("num_key_value_heads");
  EXPECT_EQ(MustParse(config).num_kv_heads, 4);

  config["eos_token_id"] = {7, 3, 5};
  EXPECT_EQ(MustParse(config).eos_ids, std::vector<int32_t>({7, 3, 5}));
  config["eos_token_id"] = nullptr;
  config.erase("bos_token_id");
  EXPECT_TRUE(MustParse(config).eos_ids.empty());
  EXPECT_FALSE(MustParse(config).bos_id.has_value());
  config.erase("torch_dtype");
  EXPECT_EQ(MustParse(config).dtype, DType::kF32);
  config["tie_word_embeddings"] = true;
  EXPECT_TRUE(MustParse(config).tied_embeddings);
}

TEST(ModelConfigTest, PublishedPrunedWidths) {
  Json config = TinyConfig("llama");
  config.update({{"hidden_size", 1689},
                 {"intermediate_size", 4505},
                 {"num_attention_heads", 24},
                 {"num_key_value_heads", 8},
                 {"head_dim", 128}});
  EXPECT_EQ(MustParse(config).hidden_size, 1689);
  EXPECT_EQ(MustParse(config).head_dim, 128);
}

TEST(ModelConfigTest, InactiveSlidingWindowsAreFine) {
  Json qwen = TinyConfig("qwen2");
  qwen["use_sliding_window"] = false;
  qwen["sliding_window"] = 128;
  qwen["layer_types"] = Json(3, "full_attention");
  MustParse(qwen);
  qwen.erase("use_sliding_window");  // off by default
  MustParse(qwen);
  // Mistral's default window is wider than this context, as one may say.
  Json mistral = TinyConfig("mistral");
  mistral["sliding_window"] = 256;
  MustParse(mistral);
  mistral.erase("sliding_window");
  MustParse(mistral);
}

TEST(ModelConfigTest, HarmlessKeysAreFine) {
  Json config = TinyConfig("llama");
  config["pretraining_tp"] = 1;
  config["num_local_experts"] = 0;
  config["quantization_config"] = nullptr;
  config["partial_rotary_factor"] = 1.0;
  config["rope_scaling"] = {{"rope_type", "default"}};
  MustParse(config);
}

struct Refusal {
  std::string model_type;
  Edit edit;
  std::vector<std::string> words;
};

// Sets one member.
Edit Set(std::string key, Json value) {
  return [=](Json& config) { config[key] = value; };
}
Edit Erase(std::string key) {
  return [=](Json& config) { config.erase(key); };
}
// llama3 scaling with one member changed, or removed where it is null.
Edit Scaling(std::string key, Json value) {
  return [=](Json& config) {
    Json scaling = Llama3Scaling();
    scaling[key] = value;
    if (value.is_null()) scaling.erase(key);
    config["rope_scaling"] = scaling;
  };
}

void ExpectRefusals(const std::vector<Refusal>& refusals) {
  for (const Refusal& refusal : refusals) {
    Json config = TinyConfig(refusal.model_type);
    ASSERT_TRUE(Parse(config).ok());
    refusal.edit(config);
    std::vector<std::string> words = refusal.words;
    words.push_back("some/config.json: ");
    EXPECT_TRUE(IsRefusal(Parse(config).status(), words)) << config.dump();
  }
}

TEST(ModelConfigTest, RefusesWhatTheTransformerDoesNotKnow) {
  ExpectRefusals({
      {"llama",
       Set("architectures", {"MixtralForCausalLM"}),
       {"MixtralForCausalLM", "not supported"}},
      {"llama", Erase("architectures"), {"architectures is absent"}},
      {"llama", Set("architectures", Json::array()), {"architectures"}},
      {"llama", Set("architectures", "LlamaForCausalLM"), {"architectures"}},
      {"llama", Set("model_type", "gemma"), {"model_type", "gemma"}},
      {"llama", Set("hidden_act", "gelu"), {"hidden_act", "gelu"}},
      {"llama",
       Set("quantization_config", {{"bits", 4}}),
       {"quantization_config"}},
      {"qwen3", Set("num_experts", 8), {"num_experts"}},
      {"llama", Set("num_local_experts", 8), {"num_local_experts"}},
      {"llama",
       Set("final_logit_softcapping", 30.0),
       {"final_logit_softcapping"}},
      {"mistral", Set("attention_bias", true), {"attention_bias"}},
      {"mistral", Set("mlp_bias", true), {"mlp_bias"}},
      {"qwen2", Set("mlp_bias", true), {"mlp_bias"}},
      {"llama", Set("attention_bias", 1), {"attention_bias"}},
      {"llama",
       Set("torch_dtype", "float8_e4m3fn"),
       {"torch_dtype", "float8_e4m3fn"}},
      {"llama", Set("dtype", "bfloat16"), {"dtype", "torch_dtype", "differ"}},
  });
}

TEST(ModelConfigTest, RefusesRopeByName) {
  ExpectRefusals({
      {"llama", Erase("rope_theta"), {"rope_theta is absent"}},
      {"llama", Set("rope_theta", nullptr), {"rope_theta is absent"}},
      {"llama", Set("rope_theta", 0), {"rope_theta"}},
      {"llama", Set("rope_theta", -10000.0), {"rope_theta"}},
      {"llama", Set("rope_theta", "10000"), {"rope_theta"}},
      {"llama", Set("partial_rotary_factor", 0.5), {"partial_rotary_factor"}},
      {"llama",
       Set("rope_scaling", {{"rope_type", "yarn"}, {"factor", 4}}),
       {"rope_scaling", "yarn"}},
      {"llama",
       Set("rope_scaling", {{"type", "linear"}, {"factor", 2}}),
       {"rope_scaling", "linear"}},
      {"llama",
       Set("rope_scaling", {{"type", "dynamic"}, {"factor", 2}}),
       {"rope_scaling", "dynamic"}},
      {"llama", Set("rope_scaling", {{"rope_type", "longrope"}}), {"longrope"}},
      {"llama", Set("rope_scaling", {{"factor", 2}}), {"factor", "rope_type"}},
      {"llama",
       Set("rope_scaling", {{"rope_type", "default"}, {"factor", 2}}),
       {"factor"}},
      {"llama",
       Set("rope_scaling", {{"rope_type", "default"}, {"type", "yarn"}}),
       {"rope_type and type differ"}},
      {"llama", Set("rope_scaling", "llama3"), {"rope_scaling"}},
      {"llama",
       Set("rope_parameters", {{"rope_type", "default"}, {"rope_theta", 5e5}}),
       {"rope_theta", "twice"}},
      {"llama",
       Set("rope_parameters",
           {{"rope_type", "default"}, {"partial_rotary_factor", 0.25}}),
       {"rope_parameters", "partial_rotary_factor"}},
      {"llama",
       Set("rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}),
       {"rope_parameters", "per kind of layer"}},
      {"llama", Scaling("factor", nullptr), {"factor is absent"}},
      {"llama", Scaling("factor", 0.5), {"factor"}},
      {"llama", Scaling("low_freq_factor", nullptr), {"low_freq_factor"}},
      {"llama", Scaling("low_freq_factor", 4.0), {"high_freq_factor"}},
      {"llama", Scaling("high_freq_factor", nullptr), {"high_freq_factor"}},
      {"llama",
       Scaling("original_max_position_embeddings", nullptr),
       {"original_max_position_embeddings"}},
      {"llama",
       Scaling("original_max_position_embeddings", 0),
       {"original_max_position_embeddings"}},
      {"llama",
       [](Json& config) {
         config["rope_scaling"] = Llama3Scaling();
         config["rope_parameters"] = Llama3Scaling();
         config["rope_parameters"]["factor"] = 32.0;
       },
       {"rope_scaling and rope_parameters differ"}},
  });
}

TEST(ModelConfigTest, RefusesActiveSlidingWindows) {
  ExpectRefusals({
      {"mistral", Set("sliding_window", 255), {"sliding_window 255", "256"}},
      {"mistral", Set("sliding_window", 0), {"sliding_window"}},
      {"mistral", Set("sliding_window", "4096"), {"sliding_window"}},
      {"mistral",
       [](Json& config) {
         config["use_sliding_window"] = false;  // means nothing there
         config["sliding_window"] = 128;
       },
       {"sliding_window"}},
      {"mistral",
       [](Json& config) {
         config.erase("sliding_window");
         config["max_position_embeddings"] = 32768;
       },
       {"sliding_window is absent", "4096"}},
      {"qwen2",
       [](Json& config) {
         config["use_sliding_window"] = true;
         config["sliding_window"] = 128;
       },
       {"sliding_window"}},
      {"qwen3", Set("use_sliding_window", true), {"use_sliding_window"}},
      {"llama", Set("sliding_window", 128), {"sliding_window"}},
      {"qwen3",
       Set("layer_types",
           {"full_attention", "sliding_attention", "full_attention"}),
       {"layer_types", "sliding_attention"}},
      {"qwen3", Set("layer_types", {"full_attention"}), {"layer_types"}},
  });
}

TEST(ModelConfigTest, RefusesSizesThatDoNotFit) {
  for (const char* key :
       {"num_hidden_layers", "hidden_size", "intermediate_size",
        "num_attention_heads", "vocab_size", "max_position_embeddings",
        "rms_norm_eps"}) {
    ExpectRefusals({{"llama", Erase(key), {key, "is absent"}},
                    {"llama", Set(key, 0), {key}},
                    {"llama", Set(key, -1), {key}},
                    {"llama", Set(key, "12"), {key}},
                    {"llama", Set(key, uint64_t{1} << 63), {key}}});
  }
  ExpectRefusals({
      {"llama", Set("rms_norm_eps", 1e-50), {"rms_norm_eps"}},
      {"llama", Set("rms_norm_eps", 2), {"rms_norm_eps"}},
      {"llama", Set("num_hidden_layers", 2.5), {"num_hidden_layers"}},
      {"llama", Set("num_hidden_layers", 100000), {"num_hidden_layers"}},
      {"llama",
       Set("num_key_value_heads", 3),
       {"num_attention_heads", "num_key_value_heads"}},
      {"llama", Set("num_key_value_heads", 8), {"num_key_value_heads"}},
      {"mistral",
       Erase("num_key_value_heads"),
       {"num_key_value_heads is absent"}},
      {"llama", Set("head_dim", 15), {"head_dim"}},
      {"llama", Set("head_dim", 12), {"head_dim"}},
      {"llama", Set("head_dim", 264), {"head_dim"}},
      {"llama", Set("head_dim", 0), {"head_dim"}},
      {"llama", Erase("head_dim"), {"head_dim", "hidden_size"}},
      {"qwen3", Erase("head_dim"), {"head_dim"}},
      {"llama", Set("eos_token_id", 1000), {"eos_token_id", "1000"}},
      {"llama", Set("eos_token_id", -1), {"eos_token_id"}},
      {"llama", Set("eos_token_id", {2, "3"}), {"eos_token_id"}},
      {"llama", Set("eos_token_id", Json(2000, 1)), {"eos_token_id"}},
      {"llama", Set("bos_token_id", 1000), {"bos_token_id"}},
      {"llama", Set("tie_word_embeddings", "yes"), {"tie_word_embeddings"}},
  });
}

TEST(ModelConfigTest, MessagesAreOneShortLineWhateverTheFileSays) {
  const std::string hostile = "a\nb\x1b[0m" + std::string(100000, 'c');
  for (const Edit& edit : std::vector<Edit>{
           Set("architectures", {hostile}), Set("model_type", hostile),
           Set("hidden_act", hostile), Set("torch_dtype", hostile),
           Set("dtype", hostile), Set("layer_types", {hostile, "", ""}),
           Set("rope_scaling", {{"type", hostile}})}) {
    Json config = TinyConfig("llama");
    edit(config);
    const absl::Status status = Parse(config).status();
    EXPECT_TRUE(IsRefusal(status, {"some/config.json: ", "a\\nb\\x1b[0mccc"}));
    EXPECT_LT(status.message().size(), 600u);
  }
}

TEST(ModelConfigTest, RefusesWhatIsNoConfig) {
  for (const char* text : {"", "{", "[]", "null", "{} {}", "\xff"}) {
    EXPECT_TRUE(IsRefusal(ParseModelConfig(text, "some/config.json").status(),
                          {"some/config.json"}));
  }
  const TempDirectory directory;
  EXPECT_TRUE(IsRefusal(LoadModelConfig(directory.path()).status(),
                        {directory / "config.json"},
                        absl::StatusCode::kNotFound));
  WriteFile(directory / "config.json", TinyConfig("llama").dump());
  EXPECT_TRUE(LoadModelConfig(directory.path()).ok());
}

}  // namespace
}  // namespace overfill
