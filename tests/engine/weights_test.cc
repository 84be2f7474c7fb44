#include "engine/weights.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/kv_store.h"
#include "engine/model_runner.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "tests/engine/checkpoint_files.h"
#include "tests/engine/status_matchers.h"

namespace overfill {
namespace {

class WeightsTest : public testing::Test {
 protected:
  void SetUp() override {
    auto device = MakeDevice("cpu", {.num_threads = 2});
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
  }

  absl::StatusOr<ModelWeights> Load(const TinyCheckpoint& checkpoint,
                                    DType dtype = DType::kF32,
                                    const std::vector<uint8_t>& mask = {}) {
    const TempDirectory directory;
    checkpoint.WriteTo(directory.path());
    auto config = LoadModelConfig(directory.path());
    if (!config.ok()) return config.status();
    auto opened = Checkpoint::OpenDirectory(directory.path());
    if (!opened.ok()) return opened.status();
    return LoadWeights(*device_, *config, *opened, dtype, mask);
  }

  // [rows, out] of `linear` applied to `x` [rows, in].
  std::vector<float> Apply(const LinearWeight& linear, std::vector<float> x,
                           int64_t rows) {
    std::vector<float> out(rows * linear.out_features());
    auto stream = device_->NewStream(StreamPriority::kLow);
    {
      StreamScope scope(*stream);
      const auto matrix = [&](std::vector<float>& values, int64_t cols) {
        return Matrix{values.data(), DType::kF32, rows, cols, cols};
      };
      device_->ops().Linear(*stream, matrix(x, linear.in_features()), linear,
                            matrix(out, linear.out_features()), false);
    }
    EXPECT_TRUE(stream->Synchronize().ok());
    return out;
  }

  // The matrix itself [in, out]: the product with the unit vectors, less the
  // bias, which is the product with zero.
  std::vector<float> Columns(const LinearWeight& linear) {
    const int64_t in = linear.in_features();
    std::vector<float> unit(in * in);
    for (int64_t i = 0; i < in; ++i) unit[i * in + i] = 1;
    std::vector<float> columns = Apply(linear, std::move(unit), in);
    const std::vector<float> bias = Bias(linear);
    for (size_t i = 0; i < columns.size(); ++i) {
      columns[i] -= bias[i % bias.size()];
    }
    return columns;
  }
  std::vector<float> Bias(const LinearWeight& linear) {
    return Apply(linear, std::vector<float>(linear.in_features()), 1);
  }

  // Whether `linear` is the named weights, stacked, with their biases.
  void ExpectStacked(const LinearWeight& linear, const FileTensors& tensors,
                     const std::vector<std::string>& names, bool bias) {
    const std::vector<float> columns = Columns(linear);
    const std::vector<float> got_bias = Bias(linear);
    const int64_t in = linear.in_features();
    const int64_t out = linear.out_features();
    int64_t row = 0;
    for (const std::string& name : names) {
      SCOPED_TRACE(name);
      const FileTensor& weight = tensors.at(name + ".weight");
      const std::vector<float> want = ValuesOf(weight);
      ASSERT_EQ(weight.shape[1], in);
      double worst = 0;
      for (int64_t r = 0; r < weight.shape[0]; ++r) {
        for (int64_t c = 0; c < in; ++c) {
          worst = std::max<double>(
              worst, std::abs(columns[c * out + row + r] - want[r * in + c]));
        }
      }
      EXPECT_LT(worst, 1e-6);
      std::vector<float> want_bias(weight.shape[0]);
      if (bias) want_bias = ValuesOf(tensors.at(name + ".bias"));
      for (int64_t r = 0; r < weight.shape[0]; ++r) {
        ASSERT_EQ(got_bias[row + r], want_bias[r]);
      }
      row += weight.shape[0];
    }
    EXPECT_EQ(row, out);
  }

  static void ExpectVector(const float* got, const FileTensor& want) {
    const std::vector<float> values = ValuesOf(want);
    ASSERT_NE(got, nullptr);
    EXPECT_TRUE(std::equal(values.begin(), values.end(), got));
  }

  void ExpectLoaded(const ModelWeights& weights, const TinyCheckpoint& from) {
    const FileTensors& tensors = from.tensors;
    const ModelConfig& config = weights.config;
    ASSERT_EQ(weights.layers.size(), static_cast<size_t>(config.num_layers));
    ExpectStacked(*weights.embedding, tensors, {"model.embed_tokens"}, false);
    for (int32_t l = 0; l < config.num_layers; ++l) {
      const std::string layer = absl::StrCat("model.layers.", l, ".");
      const std::string self = layer + "self_attn.";
      const std::string mlp = layer + "mlp.";
      const AttentionWeights& attention = weights.layers[l].attention;
      const MlpWeights& inner = weights.layers[l].mlp;
      ExpectVector(attention.norm_gain,
                   tensors.at(layer + "input_layernorm.weight"));
      ExpectStacked(*attention.qkv, tensors,
                    {self + "q_proj", self + "k_proj", self + "v_proj"},
                    config.qkv_bias);
      if (config.qk_norm) {
        ExpectVector(attention.q_norm_gain, tensors.at(self + "q_norm.weight"));
        ExpectVector(attention.k_norm_gain, tensors.at(self + "k_norm.weight"));
      } else {
        EXPECT_EQ(attention.q_norm_gain, nullptr);
        EXPECT_EQ(attention.k_norm_gain, nullptr);
      }
      ExpectStacked(*attention.output, tensors, {self + "o_proj"},
                    config.output_bias);
      ExpectVector(inner.norm_gain,
                   tensors.at(layer + "post_attention_layernorm.weight"));
      ExpectStacked(*inner.gate_up, tensors,
                    {mlp + "gate_proj", mlp + "up_proj"}, config.mlp_bias);
      ExpectStacked(*inner.down, tensors, {mlp + "down_proj"}, config.mlp_bias);
    }
    ExpectVector(weights.head.norm_gain, tensors.at("model.norm.weight"));
    if (config.tied_embeddings) {
      EXPECT_EQ(weights.head.lm_head, weights.embedding);
    } else {
      ExpectStacked(*weights.head.lm_head, tensors, {"lm_head"}, false);
    }
  }

  std::unique_ptr<Device> device_;
};

TEST_F(WeightsTest, EveryTensorOfEachArchitectureFindsItsPlace) {
  for (const char* type : {"llama", "qwen2", "qwen3", "mistral"}) {
    SCOPED_TRACE(type);
    const TinyCheckpoint checkpoint = MakeTinyCheckpoint(type, 5);
    const auto weights = Load(checkpoint);
    ASSERT_TRUE(weights.ok()) << weights.status();
    ExpectLoaded(*weights, checkpoint);
    EXPECT_EQ(weights->head.is_token, nullptr);
  }
}

TEST_F(WeightsTest, BiasesTypesShardsAndTies) {
  for (const char* dtype : {"F32", "BF16", "F16"}) {
    for (const bool tied : {false, true}) {
      SCOPED_TRACE(absl::StrCat(dtype, tied ? " tied" : ""));
      TinyCheckpoint checkpoint = MakeTinyCheckpoint("llama", 5);
      checkpoint.config["attention_bias"] = checkpoint.config["mlp_bias"] =
          true;
      checkpoint.config["tie_word_embeddings"] = tied;
      checkpoint.tensors = TinyTensors(checkpoint.config, 6, dtype);
      checkpoint.num_shards = tied ? 1 : 4;
      const auto weights = Load(checkpoint);
      ASSERT_TRUE(weights.ok()) << weights.status();
      ExpectLoaded(*weights, checkpoint);
    }
  }
}

TEST_F(WeightsTest, HeadDimsAndOddWidths) {
  for (const int head_dim : {64, 80, 96, 128}) {
    SCOPED_TRACE(head_dim);
    TinyCheckpoint checkpoint = MakeTinyCheckpoint("llama", 5);
    checkpoint.config["head_dim"] = head_dim;
    checkpoint.config["num_hidden_layers"] = 1;
    if (head_dim == 128) {
      checkpoint.config["hidden_size"] = 563;
      checkpoint.config["intermediate_size"] = 901;
    }
    checkpoint.tensors = TinyTensors(checkpoint.config, 7, "BF16");
    const auto weights = Load(checkpoint);
    ASSERT_TRUE(weights.ok()) << weights.status();
    ExpectLoaded(*weights, checkpoint);
  }
}

struct Damage {
  std::string name;  // of the tensor that must be named
  std::function<void(TinyCheckpoint&)> edit;
  std::string word;
};

TEST_F(WeightsTest, EveryMissingOrReshapedTensorIsNamed) {
  const TinyCheckpoint whole = MakeTinyCheckpoint("qwen3", 5);
  for (const auto& [name, tensor] : whole.tensors) {
    TinyCheckpoint damaged = whole;
    damaged.tensors.erase(name);
    EXPECT_TRUE(IsRefusal(Load(damaged).status(),
                          {name, "is missing", "model.safetensors"}));
    damaged = whole;
    damaged.tensors[name].shape.push_back(1);
    EXPECT_TRUE(IsRefusal(Load(damaged).status(),
                          {name, "config.json asks for", "model.safetensors"}));
    damaged = whole;
    FileTensor& changed = damaged.tensors[name];
    changed.bytes.resize(changed.bytes.size() / changed.shape[0] *
                         (changed.shape[0] - 1));
    --changed.shape[0];
    EXPECT_TRUE(
        IsRefusal(Load(damaged).status(), {name, "config.json asks for"}));
  }
}

TEST_F(WeightsTest, WhatWouldBeSilentlyWrongIsRefused) {
  const std::string self = "model.layers.1.self_attn.";
  const FileTensor vector = MakeFileTensor({16}, std::vector<float>(16, 1));
  const auto add = [&](const std::string& name) {
    return [=](TinyCheckpoint& c) { c.tensors[name] = vector; };
  };
  const std::vector<Damage> damages = {
      {self + "q_proj.bias", add(self + "q_proj.bias"), "no such tensor"},
      {self + "o_proj.bias", add(self + "o_proj.bias"), "no such tensor"},
      {self + "q_norm.weight", add(self + "q_norm.weight"), "no such tensor"},
      {"model.layers.3.input_layernorm.weight",
       add("model.layers.3.input_layernorm.weight"), "no such tensor"},
      {"lm_head.bias", add("lm_head.bias"), "no such tensor"},
      {"model.norm.weight",
       [](TinyCheckpoint& c) {
         c.tensors["model.norm.weight"] = {"I32", {27}, std::string(108, 0)};
       },
       "I32"},
      {self + "k_proj.weight",
       [=](TinyCheckpoint& c) {
         FileTensor& tensor = c.tensors[self + "k_proj.weight"];
         tensor.dtype = "F8_E4M3";
         tensor.bytes.resize(tensor.bytes.size() / 4);
       },
       "F8_E4M3"},
      // Transposed.
      {self + "o_proj.weight",
       [=](TinyCheckpoint& c) {
         auto& shape = c.tensors[self + "o_proj.weight"].shape;
         std::swap(shape[0], shape[1]);
       },
       "[27, 64]"},
  };
  for (const Damage& damage : damages) {
    TinyCheckpoint checkpoint = MakeTinyCheckpoint("llama", 5);
    damage.edit(checkpoint);
    EXPECT_TRUE(IsRefusal(Load(checkpoint).status(),
                          {damage.name, damage.word, "model.safetensors"}));
  }
}

TEST_F(WeightsTest, HarmlessExtrasAreIgnored) {
  TinyCheckpoint checkpoint = MakeTinyCheckpoint("llama", 5);
  checkpoint.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] =
      MakeFileTensor({8}, std::vector<float>(8, 1));
  EXPECT_TRUE(Load(checkpoint).ok());
  // A tied head may be written out, but must be the embedding.
  checkpoint.config["tie_word_embeddings"] = true;
  checkpoint.tensors["lm_head.weight"] =
      checkpoint.tensors["model.embed_tokens.weight"];
  const auto weights = Load(checkpoint);
  ASSERT_TRUE(weights.ok()) << weights.status();
  ExpectLoaded(*weights, checkpoint);
  checkpoint.tensors["lm_head.weight"].bytes[5] ^= 1;
  EXPECT_TRUE(
      IsRefusal(Load(checkpoint).status(),
                {"lm_head.weight", "tie_word_embeddings", "embedding"}));
}

TEST_F(WeightsTest, PaddedIdsHaveNoToken) {
  TinyCheckpoint checkpoint = MakeTinyCheckpoint("llama", 5);
  auto tokenizer = Tokenizer::FromJson(checkpoint.tokenizer.dump(),
                                       checkpoint.tokenizer_config.dump(), "t");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const int32_t num_ids = (*tokenizer)->vocab_size();
  ModelConfig config = *ParseModelConfig(checkpoint.config.dump(), "c");
  ASSERT_EQ(config.vocab_size, num_ids + 5);
  const auto mask = TokenMask(config, **tokenizer, "dir");
  ASSERT_TRUE(mask.ok()) << mask.status();
  ASSERT_EQ(mask->size(), static_cast<size_t>(config.vocab_size));
  for (int32_t id = 0; id < config.vocab_size; ++id) {
    EXPECT_EQ((*mask)[id], (*tokenizer)->IsToken(id) ? 1 : 0) << id;
  }
  EXPECT_EQ(std::count(mask->end() - 5, mask->end(), 0), 5);
  const auto weights = Load(checkpoint, DType::kF32, *mask);
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_NE(weights->head.is_token, nullptr);
  EXPECT_TRUE(std::equal(mask->begin(), mask->end(), weights->head.is_token));

  config.vocab_size = num_ids - 1;
  EXPECT_TRUE(IsRefusal(
      TokenMask(config, **tokenizer, "dir").status(),
      {"dir: ", "vocab_size", "tokenizer.json", absl::StrCat(num_ids - 1)}));
}

TEST_F(WeightsTest, DummiesAreAFunctionOfTheirSeed) {
  const ModelConfig config = *ParseModelConfig(TinyConfig("qwen2").dump(), "c");
  const auto make = [&](uint64_t seed) {
    auto weights = MakeDummyWeights(*device_, config, DType::kBF16, {}, seed);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return *std::move(weights);
  };
  const ModelWeights a = make(1), b = make(1), c = make(2);
  const auto qkv = [&](const ModelWeights& weights, int layer) {
    return Columns(*weights.layers[layer].attention.qkv);
  };
  EXPECT_EQ(qkv(a, 0), qkv(b, 0));
  EXPECT_NE(qkv(a, 0), qkv(c, 0));
  EXPECT_NE(qkv(a, 0), qkv(a, 1));
  double squares = 0;
  const std::vector<float> values = qkv(a, 0);
  for (const float value : values) squares += double{value} * value;
  EXPECT_NEAR(squares / values.size() * config.hidden_size, 1, 0.1);
  EXPECT_EQ(a.head.norm_gain[0], 1);
  EXPECT_NE(a.head.lm_head, a.embedding);
}

TEST_F(WeightsTest, CountsParameters) {
  for (const char* type : {"llama", "qwen2", "qwen3", "mistral"}) {
    const TinyCheckpoint checkpoint = MakeTinyCheckpoint(type, 5);
    int64_t count = 0;
    for (const auto& [name, tensor] : checkpoint.tensors) {
      count += static_cast<int64_t>(tensor.bytes.size() / 4);
    }
    EXPECT_EQ(NumParameters(*ParseModelConfig(checkpoint.config.dump(), "c")),
              count);
  }
}

}  // namespace
}  // namespace overfill
