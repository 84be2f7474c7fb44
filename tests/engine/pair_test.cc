#include "engine/pair.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/pair_check.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "tests/engine/checkpoint_files.h"
#include "tests/engine/status_matchers.h"

namespace overfill {
namespace {

TEST(CheckPairTest, EachFieldIsNamed) {
  const TinyCheckpoint files = MakeTinyCheckpoint("llama", 1);
  const auto load = [](const Json& tokenizer, const Json& config) {
    auto loaded = Tokenizer::FromJson(tokenizer.dump(), config.dump(), "t");
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return *std::move(loaded);
  };
  const auto tokenizer = load(files.tokenizer, files.tokenizer_config);
  Json changed = files.tokenizer;
  changed["model"]["merges"].erase(changed["model"]["merges"].size() - 1);
  const auto other_merges = load(changed, files.tokenizer_config);
  changed = files.tokenizer;
  changed["post_processor"] = nullptr;
  const auto other_post_processor = load(changed, files.tokenizer_config);
  changed = files.tokenizer_config;
  changed["eos_token"] = changed.at("bos_token");
  const auto other_eos = load(files.tokenizer, changed);
  changed = files.tokenizer_config;
  changed["bos_token"] = changed.at("eos_token");
  const auto other_bos = load(files.tokenizer, changed);

  PairSide side;
  side.directory = "the/full";
  side.config = *ParseModelConfig(files.config.dump(), "c");
  side.config.rope.llama3 = Llama3RopeScaling{8, 1, 4, 8192};
  side.generation.eos_ids = {2, 3};
  side.tokenizer = tokenizer.get();
  PairSide same = side;
  same.directory = "the/pruned";
  // What may differ.
  same.config.hidden_size = 19;
  same.config.intermediate_size = 23;
  same.config.norm_eps = 1e-6f;
  same.config.tied_embeddings = true;
  same.config.max_positions = 100;
  same.generation.temperature = 0.5f;
  same.generation.eos_ids = {3, 2, 3};
  EXPECT_TRUE(CheckPair(side, same, KvMapSpec()).ok());

  struct Flip {
    const char* field;
    std::function<void(PairSide&)> edit;
  };
  const std::vector<Flip> flips = {
      {"vocab_size", [](PairSide& s) { s.config.vocab_size += 8; }},
      {"tokenizer.json differs: merges",
       [&](PairSide& s) { s.tokenizer = other_merges.get(); }},
      {"tokenizer.json differs: post-processor",
       [&](PairSide& s) { s.tokenizer = other_post_processor.get(); }},
      {"bos_token_id", [](PairSide& s) { s.config.bos_id = 9; }},
      {"bos_token of the tokenizer",
       [&](PairSide& s) { s.tokenizer = other_bos.get(); }},
      {"eos_token_id", [](PairSide& s) { s.config.eos_ids = {9}; }},
      {"eos_token of the tokenizer",
       [&](PairSide& s) { s.tokenizer = other_eos.get(); }},
      {"eos_token_id of generation_config.json",
       [](PairSide& s) { s.generation.eos_ids = {2}; }},
      {"num_hidden_layers", [](PairSide& s) { s.config.num_layers = 2; }},
      {"num_key_value_heads", [](PairSide& s) { s.config.num_kv_heads = 4; }},
      {"head_dim", [](PairSide& s) { s.config.head_dim = 24; }},
      {"rope_theta", [](PairSide& s) { s.config.rope.theta = 5e5; }},
      {"rope_type", [](PairSide& s) { s.config.rope.llama3.reset(); }},
      {"RoPE factor", [](PairSide& s) { s.config.rope.llama3->factor = 32; }},
      {"RoPE low_freq_factor",
       [](PairSide& s) { s.config.rope.llama3->low_freq_factor = 2; }},
      {"RoPE high_freq_factor",
       [](PairSide& s) { s.config.rope.llama3->high_freq_factor = 5; }},
      {"RoPE original_max_position_embeddings",
       [](PairSide& s) {
         s.config.rope.llama3->original_max_positions = 4096;
       }},
      {"architecture",
       [](PairSide& s) { s.config.architecture = Architecture::kMistral; }},
      {"dtype", [](PairSide& s) { s.config.dtype = DType::kF16; }},
      {"KV dtype", [](PairSide& s) { s.kv_dtype = DType::kF32; }},
  };
  std::set<std::string> messages;
  for (const Flip& flip : flips) {
    PairSide flipped = same;
    flip.edit(flipped);
    for (const bool swap : {false, true}) {
      const absl::Status status = swap ? CheckPair(flipped, side, KvMapSpec())
                                       : CheckPair(side, flipped, KvMapSpec());
      EXPECT_TRUE(IsRefusal(status, {absl::StrCat("no pair: ", flip.field),
                                     "the/full", "the/pruned"}));
      messages.insert(std::string(status.message()));
    }
  }
  EXPECT_EQ(messages.size(), 2 * flips.size());

  // A projection may lead to other heads, but not to another position.
  const KvMapSpec projection = {KvMapKind::kProjection, {0, 1, 2}, "f"};
  PairSide projected = same;
  projected.config.num_kv_heads = 1;
  projected.config.head_dim = 24;
  EXPECT_TRUE(CheckPair(side, projected, projection).ok());
  projected.config.rope.theta = 5e5;
  EXPECT_TRUE(IsRefusal(CheckPair(side, projected, projection),
                        {"no pair: rope_theta is 10000 and 500000"}));
}

TEST(EosIdsTest, TheFirstSourceThatStatesOneCounts) {
  const TinyCheckpoint files = MakeTinyCheckpoint("llama", 1);
  const auto tokenizer = *Tokenizer::FromJson(
      files.tokenizer.dump(), files.tokenizer_config.dump(), "t");
  ASSERT_TRUE(tokenizer->eos_id().has_value());
  PairSide side;
  side.directory = "dir";
  side.config = *ParseModelConfig(files.config.dump(), "c");
  side.tokenizer = tokenizer.get();
  side.generation.eos_ids = {7, 3, 7};
  side.config.eos_ids = {9};
  EXPECT_EQ(*EosIds(side), std::vector<int32_t>({3, 7}));
  side.generation.eos_ids.clear();
  EXPECT_EQ(*EosIds(side), std::vector<int32_t>({9}));
  side.config.eos_ids.clear();
  EXPECT_EQ(*EosIds(side), std::vector<int32_t>({*tokenizer->eos_id()}));
  side.generation.eos_ids = {side.config.vocab_size};
  EXPECT_TRUE(IsRefusal(EosIds(side).status(), {"dir", "eos_token_id"}));
}

class PairTest : public testing::Test {
 protected:
  void SetUp() override {
    auto device = MakeDevice("cpu", {.num_threads = 2});
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    full_ = MakeTinyCheckpoint("llama", 1);
    full_.generation["eos_token_id"] = {4, 2};
    pruned_ = full_;
    pruned_.config["hidden_size"] = 19;
    pruned_.config["intermediate_size"] = 23;
    pruned_.tensors = TinyTensors(pruned_.config, 2);
  }

  PairOptions Options() const {
    PairOptions options;
    options.prefill_model_dir = directory_ / "full";
    options.decode_model_dir = directory_ / "pruned";
    return options;
  }
  absl::StatusOr<std::unique_ptr<Pair>> Load() { return Load(Options()); }
  absl::StatusOr<std::unique_ptr<Pair>> Load(const PairOptions& options) {
    full_.WriteTo(directory_ / "full");
    pruned_.WriteTo(directory_ / "pruned");
    return Pair::Load(*device_, options);
  }
  Sha256Digest MustDigest() {
    auto pair = Load();
    EXPECT_TRUE(pair.ok()) << pair.status();
    return pair.ok() ? (*pair)->digest() : Sha256Digest{};
  }

  TempDirectory directory_;
  std::unique_ptr<Device> device_;
  TinyCheckpoint full_, pruned_;
};

TEST_F(PairTest, LoadsBothHalves) {
  const auto loaded = Load();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Pair& pair = **loaded;
  EXPECT_EQ(pair.full().name, "full");
  EXPECT_EQ(pair.pruned().name, "pruned");
  EXPECT_EQ(pair.full().weights.config.hidden_size, 27);
  EXPECT_EQ(pair.pruned().weights.config.hidden_size, 19);
  EXPECT_EQ(pair.full().weights.dtype, DType::kBF16);
  EXPECT_LT(pair.pruned().num_parameters, pair.full().num_parameters);
  EXPECT_NE(pair.pruned().digest, pair.full().digest);
  EXPECT_NE(pair.full().weights.head.is_token, nullptr);
  EXPECT_EQ(pair.kv_map().kind, KvMapKind::kIdentity);
  EXPECT_EQ(pair.kv_map().source_layers, std::vector<int32_t>({0, 1, 2}));
  EXPECT_EQ(pair.eos_ids(), std::vector<int32_t>({2, 4}));
  EXPECT_EQ(pair.generation().do_sample, false);
  EXPECT_GT(pair.tokenizer().vocab_size(), 256);
}

TEST_F(PairTest, NamesAreTheLastComponents) {
  PairOptions options = Options();
  options.prefill_model_dir += "/./";
  options.decode_model_dir += "/../pruned//";
  const auto pair = Load(options);
  ASSERT_TRUE(pair.ok()) << pair.status();
  EXPECT_EQ((*pair)->full().name, "full");
  EXPECT_EQ((*pair)->pruned().name, "pruned");
}

TEST_F(PairTest, OneDirectoryIsOneModel) {
  PairOptions options = Options();
  options.decode_model_dir = options.prefill_model_dir + "/.";
  const auto pair = Load(options);
  ASSERT_TRUE(pair.ok()) << pair.status();
  EXPECT_EQ(&(*pair)->full(), &(*pair)->pruned());
}

TEST_F(PairTest, TheDigestIsOfTheContent) {
  std::set<Sha256Digest> digests;
  const Sha256Digest first = MustDigest();
  digests.insert(first);
  EXPECT_EQ(MustDigest(), first);
  {
    const TempDirectory elsewhere;
    full_.WriteTo(elsewhere / "f");
    pruned_.WriteTo(elsewhere / "p");
    PairOptions options;
    options.prefill_model_dir = elsewhere / "f";
    options.decode_model_dir = elsewhere / "p";
    EXPECT_EQ((*Pair::Load(*device_, options))->digest(), first);
  }
  const TinyCheckpoint full = full_, pruned = pruned_;
  std::vector<std::function<void()>> edits = {
      [&] { full_.tensors["model.norm.weight"].bytes[9] ^= 1; },
      [&] {
        pruned_.tensors["model.layers.2.mlp.up_proj.weight"].bytes[0] ^= 1;
      },
      [&] { full_.config["max_position_embeddings"] = 128; },
      [&] { pruned_.config["rms_norm_eps"] = 1e-6; },
      [&] { full_.generation["temperature"] = 0.5; },
      [&] { std::swap(full_, pruned_); },
      [&] {
        for (Json* config :
             {&full_.tokenizer_config, &pruned_.tokenizer_config})
          (*config)["eos_token"] = config->at("bos_token");
      },
      [&] {
        full_.tokenizer["post_processor"] = nullptr;
        pruned_.tokenizer["post_processor"] = nullptr;
      },
  };
  for (const auto& edit : edits) {
    full_ = full;
    pruned_ = pruned;
    edit();
    digests.insert(MustDigest());
  }
  EXPECT_EQ(digests.size(), edits.size() + 1);
}

TEST_F(PairTest, FilesThatDoNotFitAreRefusedByField) {
  struct Flip {
    std::function<void(TinyCheckpoint&)> edit;
    std::vector<std::string> words;
  };
  const auto config = [](const char* key, Json value) {
    return [=](TinyCheckpoint& c) {
      c.config[key] = value;
      c.tensors = TinyTensors(c.config, 3);
    };
  };
  const std::string both[] = {directory_ / "full", directory_ / "pruned"};
  const std::vector<Flip> flips = {
      {config("num_key_value_heads", 4), {"num_key_value_heads", both[0]}},
      {config("head_dim", 24), {"head_dim", both[1]}},
      {config("num_hidden_layers", 2), {"num_hidden_layers"}},
      {config("vocab_size", 5000), {"vocab_size"}},
      {config("rope_theta", 500000.0), {"rope_theta", "10000", "500000"}},
      {config("torch_dtype", "bfloat16"), {"dtype"}},
      {config("eos_token_id", 3), {"eos_token_id"}},
      {config("bos_token_id", 3), {"bos_token_id"}},
      {[](TinyCheckpoint& c) {
         c.config["rope_scaling"] = {{"rope_type", "llama3"},
                                     {"factor", 8},
                                     {"low_freq_factor", 1},
                                     {"high_freq_factor", 4},
                                     {"original_max_position_embeddings", 64}};
       },
       {"rope_type", "llama3"}},
      {[](TinyCheckpoint& c) {
         // Two ids trade their tokens.
         Json& vocab = c.tokenizer["model"]["vocab"];
         std::swap(vocab["a"], vocab["b"]);
       },
       {"tokenizer.json differs", "vocabulary"}},
      {[](TinyCheckpoint& c) { c.generation["eos_token_id"] = 2; },
       {"eos_token_id of generation_config.json"}},
  };
  const TinyCheckpoint full = full_, pruned = pruned_;
  for (const Flip& flip : flips) {
    full_ = full;
    pruned_ = pruned;
    flip.edit(pruned_);
    EXPECT_TRUE(IsRefusal(Load().status(), flip.words));
  }
}

TEST_F(PairTest, BadFilesAreNamed) {
  const TinyCheckpoint whole = pruned_;
  pruned_.tensors.erase("model.norm.weight");
  EXPECT_TRUE(IsRefusal(
      Load().status(),
      {directory_ / "pruned/model.safetensors", "model.norm.weight"}));
  pruned_ = whole;
  pruned_.config["hidden_act"] = "gelu";
  EXPECT_TRUE(IsRefusal(Load().status(),
                        {directory_ / "pruned/config.json", "hidden_act"}));
  pruned_ = whole;
  pruned_.config["vocab_size"] = full_.config["vocab_size"] = 300;
  EXPECT_TRUE(IsRefusal(Load().status(), {directory_ / "full", "vocab_size"}));
  full_.config["vocab_size"] = whole.config["vocab_size"];
  pruned_ = whole;
  pruned_.generation["top_p"] = 2;
  EXPECT_TRUE(IsRefusal(Load().status(),
                        {directory_ / "pruned/generation_config.json"}));
  pruned_ = whole;
  PairOptions options = Options();
  options.decode_model_dir = directory_ / "absent";
  EXPECT_TRUE(IsRefusal(Load(options).status(),
                        {directory_ / "absent/config.json"},
                        absl::StatusCode::kNotFound));
  options = Options();
  options.kv_map_file = directory_ / "map.json";
  EXPECT_TRUE(IsRefusal(Load(options).status(), {options.kv_map_file},
                        absl::StatusCode::kNotFound));
  WriteFile(options.kv_map_file, R"({"kind": "mirror"})");
  EXPECT_TRUE(
      IsRefusal(Load(options).status(), {options.kv_map_file, "mirror"}));
  options = Options();
  options.decode_weights = DType::kF16;
  EXPECT_TRUE(IsRefusal(Load(options).status(), {"weights", "f16"}));
}

TEST_F(PairTest, EachModelHasItsOwnTypeOfWeights) {
  PairOptions options = Options();
  const auto bf16 = Load(options);
  ASSERT_TRUE(bf16.ok()) << bf16.status();
  options.decode_weights = DType::kInt8;
  const auto mixed = Load(options);
  ASSERT_TRUE(mixed.ok()) << mixed.status();
  EXPECT_EQ((*mixed)->full().weights.dtype, DType::kBF16);
  EXPECT_EQ((*mixed)->pruned().weights.dtype, DType::kInt8);
  EXPECT_EQ((*mixed)->full().digest, (*bf16)->full().digest);
  // It does not answer like the other.
  EXPECT_NE((*mixed)->pruned().digest, (*bf16)->pruned().digest);
  EXPECT_NE((*mixed)->digest(), (*bf16)->digest());

  // One checkpoint in two types is two models.
  options.decode_model_dir = options.prefill_model_dir;
  const auto twice = Load(options);
  ASSERT_TRUE(twice.ok()) << twice.status();
  EXPECT_NE(&(*twice)->full(), &(*twice)->pruned());
  EXPECT_EQ((*twice)->pruned().weights.dtype, DType::kInt8);

  // KV of f32 is not what a model of int8 reads.
  options = Options();
  options.prefill_weights = DType::kF32;
  options.decode_weights = DType::kInt8;
  EXPECT_TRUE(IsRefusal(Load(options).status(), {"KV dtype", "f32", "bf16"}));
}

TEST_F(PairTest, LoadsTheOtherMaps) {
  PairOptions options = Options();
  options.kv_map_file = directory_ / "map.json";
  pruned_.config["num_hidden_layers"] = 2;
  pruned_.tensors = TinyTensors(pruned_.config, 2);
  WriteFile(options.kv_map_file, R"({"kind": "layers", "layers": [0, 2]})");
  auto pair = Load(options);
  ASSERT_TRUE(pair.ok()) << pair.status();
  EXPECT_EQ((*pair)->kv_map().source_layers, std::vector<int32_t>({0, 2}));
  const Sha256Digest first = (*pair)->digest();
  WriteFile(options.kv_map_file, R"({"kind": "layers", "layers": [1, 2]})");
  pair = Load(options);
  ASSERT_TRUE(pair.ok()) << pair.status();
  EXPECT_NE((*pair)->digest(), first);

  pruned_.config["num_key_value_heads"] = 1;
  pruned_.config["head_dim"] = 24;
  pruned_.tensors = TinyTensors(pruned_.config, 2);
  FileTensors maps;
  for (const char* name :
       {"layers.0.k", "layers.0.v", "layers.1.k", "layers.1.v"}) {
    maps[name] = MakeFileTensor({24, 32}, std::vector<float>(24 * 32, 0.1f));
  }
  WriteFile(directory_ / "maps.safetensors", SafetensorsFile(maps));
  WriteFile(options.kv_map_file, R"({"kind": "projection", "layers": [1, 2],
                                     "file": "maps.safetensors"})");
  pair = Load(options);
  ASSERT_TRUE(pair.ok()) << pair.status();
  EXPECT_EQ((*pair)->kv_map().k_maps.size(), 2u);
}

TEST_F(PairTest, DummiesNeedOnlyConfigs) {
  const TempDirectory directory;
  Json config = TinyConfig("qwen2");
  for (const char* half : {"full", "pruned"}) {
    TinyCheckpoint empty;
    empty.WriteTo(directory / half);
    for (const char* file :
         {"model.safetensors", "tokenizer.json", "tokenizer_config.json",
          "generation_config.json"}) {
      ASSERT_EQ(
          std::remove((directory / absl::StrCat(half, "/", file)).c_str()), 0);
    }
    WriteFile(directory / absl::StrCat(half, "/config.json"), config.dump());
    config["hidden_size"] = 16;
  }
  PairOptions options;
  options.prefill_model_dir = directory / "full";
  options.decode_model_dir = directory / "pruned";
  EXPECT_TRUE(IsRefusal(Pair::Load(*device_, options).status(),
                        {"tokenizer.json"}, absl::StatusCode::kNotFound));
  options.load_format = LoadFormat::kDummy;
  const auto pair = Pair::Load(*device_, options);
  ASSERT_TRUE(pair.ok()) << pair.status();
  EXPECT_EQ((*pair)->pruned().weights.config.hidden_size, 16);
  const Tokenizer& tokenizer = (*pair)->tokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 1000);
  const auto ids = tokenizer.Encode("hé <999>", {});
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(ids->size(), 9u);
  EXPECT_EQ(tokenizer.Decode(*ids, true), "hé <999>");
  EXPECT_EQ((*Pair::Load(*device_, options))->digest(), (*pair)->digest());
}

}  // namespace
}  // namespace overfill
