#include "engine/kv_map.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "tests/engine/checkpoint_files.h"
#include "tests/engine/status_matchers.h"

namespace overfill {
namespace {

TEST(KvMapSpecTest, ReadsEachKind) {
  auto spec = ParseKvMapSpec(R"({"kind": "identity"})", "map");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->kind, KvMapKind::kIdentity);
  EXPECT_TRUE(spec->layers.empty());
  spec = ParseKvMapSpec(R"({"kind": "layers", "layers": [0, 2, 3]})", "map");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->kind, KvMapKind::kLayers);
  EXPECT_EQ(spec->layers, std::vector<int32_t>({0, 2, 3}));
  spec = ParseKvMapSpec(
      R"({"kind": "projection", "layers": [1], "file": "m.safetensors"})",
      "map");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->kind, KvMapKind::kProjection);
  EXPECT_EQ(spec->layers, std::vector<int32_t>({1}));
  EXPECT_EQ(spec->file, "m.safetensors");
}

TEST(KvMapSpecTest, RefusesByName) {
  const std::pair<const char*, const char*> bad[] = {
      {"", "JSON"},
      {"[]", "JSON object"},
      {"{}", "kind is absent"},
      {R"({"kind": 1})", "kind"},
      {R"({"kind": "mirror"})", "mirror"},
      {R"({"kind": "identity", "layers": [0]})", "layers"},
      {R"({"kind": "identity", "file": "f"})", "file"},
      {R"({"kind": "layers"})", "layers is absent"},
      {R"({"kind": "layers", "layers": []})", "layers"},
      {R"({"kind": "layers", "layers": 3})", "layers"},
      {R"({"kind": "layers", "layers": {"0": 0}})", "layers"},
      {R"({"kind": "layers", "layers": [0, 2, 2]})", "2 follows 2"},
      {R"({"kind": "layers", "layers": [1, 0]})", "0 follows 1"},
      {R"({"kind": "layers", "layers": [-1, 0]})", "layers"},
      {R"({"kind": "layers", "layers": [0.0]})", "layers"},
      {R"({"kind": "layers", "layers": ["0"]})", "layers"},
      {R"({"kind": "layers", "layers": [1024]})", "layers"},
      {R"({"kind": "layers", "layers": [4294967296]})", "layers"},
      {R"({"kind": "layers", "layers": [18446744073709551615]})", "layers"},
      {R"({"kind": "layers", "layers": [0], "file": "f"})", "file"},
      {R"({"kind": "layers", "layers": [0], "layer": 1})", "layer"},
      {R"({"kind": "projection", "layers": [0]})", "file is absent"},
      {R"({"kind": "projection", "file": "f"})", "layers is absent"},
      {R"({"kind": "projection", "layers": [0], "file": ""})", "file"},
      {R"({"kind": "projection", "layers": [0], "file": "a/b"})", "file"},
      {R"({"kind": "projection", "layers": [0], "file": "../b"})", "file"},
      {R"({"kind": "projection", "layers": [0], "file": ".."})", "file"},
      {R"({"kind": "projection", "layers": [0], "file": "a\u0000b"})", "file"},
      {R"({"kind": "projection", "layers": [0], "file": 7})", "file"},
  };
  for (const auto& [text, word] : bad) {
    EXPECT_TRUE(
        IsRefusal(ParseKvMapSpec(text, "map").status(), {"map: ", word}))
        << text;
  }
}

class KvMapTest : public testing::Test {
 protected:
  void SetUp() override {
    auto device = MakeDevice("cpu", {.num_threads = 1});
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    full_ = *ParseModelConfig(TinyConfig("llama").dump(), "full");
    pruned_ = full_;
    pruned_.num_layers = 2;
    pruned_.num_kv_heads = 1;
    pruned_.head_dim = 24;
    for (int l = 0; l < 2; ++l) {
      for (const char* half : {"k", "v"}) {
        std::vector<float> values(24 * 32);
        for (size_t i = 0; i < values.size(); ++i) values[i] = 0.01f * i + l;
        maps_[absl::StrCat("layers.", l, ".", half)] =
            MakeFileTensor({24, 32}, values);
      }
    }
    spec_ = {KvMapKind::kProjection, {0, 2}, "maps.safetensors"};
  }

  absl::StatusOr<KvMap> Load() {
    WriteFile(directory_ / "maps.safetensors", SafetensorsFile(maps_));
    return LoadKvMap(*device_, spec_, directory_.path(), full_, pruned_);
  }

  TempDirectory directory_;
  std::unique_ptr<Device> device_;
  ModelConfig full_, pruned_;
  FileTensors maps_;
  KvMapSpec spec_;
};

TEST_F(KvMapTest, LoadsAProjection) {
  const auto map = Load();
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->source_layers, std::vector<int32_t>({0, 2}));
  ASSERT_EQ(map->k_maps.size(), 2u);
  ASSERT_EQ(map->v_maps.size(), 2u);
  for (const auto* maps : {&map->k_maps, &map->v_maps}) {
    for (const auto& linear : *maps) {
      EXPECT_EQ(linear->in_features(), 32);
      EXPECT_EQ(linear->out_features(), 24);
    }
  }
  // The digest is of the content.
  EXPECT_EQ(Load()->digest, map->digest);
  maps_["layers.1.v"].bytes[7] ^= 1;
  EXPECT_NE(Load()->digest, map->digest);
  maps_["layers.1.v"].bytes[7] ^= 1;
  spec_.layers = {1, 2};
  EXPECT_NE(Load()->digest, map->digest);
}

TEST_F(KvMapTest, ABiasIsAddedWhereThereIsOne) {
  std::vector<float> bias(24);
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = 1.0f + i;
  const std::string name = "layers.1.v.bias";
  maps_[name] = MakeFileTensor({24}, bias);
  const auto map = Load();
  ASSERT_TRUE(map.ok()) << map.status();
  // Nothing but the bias is left of a row of zeros.
  const auto of_zeros = [&](const LinearWeight& linear) {
    std::vector<float> in(32, 0.0f), out(24, -1.0f);
    const auto stream = device_->NewStream(StreamPriority::kLow);
    {
      StreamScope scope(*stream);
      device_->ops().Linear(*stream, {in.data(), DType::kF32, 1, 32, 32},
                            linear, {out.data(), DType::kF32, 1, 24, 24},
                            /*accumulate=*/false);
    }
    EXPECT_TRUE(stream->Synchronize().ok());
    return out;
  };
  EXPECT_EQ(of_zeros(*map->v_maps[1]), bias);
  for (const LinearWeight* other :
       {map->k_maps[0].get(), map->v_maps[0].get(), map->k_maps[1].get()}) {
    EXPECT_EQ(of_zeros(*other), std::vector<float>(24, 0.0f));
  }
  const FileTensors whole = maps_;
  maps_[name].shape = {24, 1};
  EXPECT_TRUE(IsRefusal(Load().status(), {name, "[24, 1]", "[24]"}));
  maps_ = whole;
  maps_[name].dtype = "I32";
  EXPECT_TRUE(IsRefusal(Load().status(), {name, "I32"}));
  maps_ = whole;
  maps_["layers.2.v.bias"] = maps_[name];
  EXPECT_TRUE(IsRefusal(Load().status(), {"layers.2.v.bias"}));
}

TEST_F(KvMapTest, BadMapsAreNamed) {
  const FileTensors whole = maps_;
  for (const auto& [name, tensor] : whole) {
    maps_ = whole;
    maps_.erase(name);
    EXPECT_TRUE(IsRefusal(Load().status(),
                          {name, "is missing", directory_ / spec_.file}));
    maps_ = whole;
    std::swap(maps_[name].shape[0], maps_[name].shape[1]);
    EXPECT_TRUE(IsRefusal(Load().status(), {name, "[32, 24]", "[24, 32]"}));
    maps_ = whole;
    maps_[name].dtype = "I32";
    EXPECT_TRUE(IsRefusal(Load().status(), {name, "I32"}));
  }
  maps_ = whole;
  maps_["layers.2.k"] = maps_["layers.1.k"];
  EXPECT_TRUE(IsRefusal(Load().status(), {"layers.2.k"}));
  spec_.file = "absent.safetensors";
  EXPECT_TRUE(IsRefusal(Load().status(), {directory_ / spec_.file},
                        absl::StatusCode::kNotFound));
}

TEST_F(KvMapTest, DummiesNeedNoFile) {
  const auto map = MakeDummyKvMap(*device_, spec_, full_, pruned_, 1);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->k_maps.size(), 2u);
  EXPECT_EQ(map->v_maps[1]->out_features(), 24);
  EXPECT_NE(MakeDummyKvMap(*device_, spec_, full_, pruned_, 2)->digest,
            map->digest);
}

TEST_F(KvMapTest, LayersAndShapesMustFit) {
  const KvMapSpec identity;
  const KvMapSpec layers = {KvMapKind::kLayers, {0, 2}, ""};
  ModelConfig pruned = full_;
  EXPECT_TRUE(CheckKvMap(identity, full_, pruned).ok());
  const auto map = LoadKvMap(*device_, identity, ".", full_, pruned);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->source_layers, std::vector<int32_t>({0, 1, 2}));
  EXPECT_TRUE(map->k_maps.empty());
  EXPECT_TRUE(
      IsRefusal(CheckKvMap(layers, full_, pruned), {"layers", "kv_map"}));

  pruned.num_layers = 2;
  EXPECT_TRUE(CheckKvMap(layers, full_, pruned).ok());
  EXPECT_TRUE(
      IsRefusal(CheckKvMap(identity, full_, pruned), {"num_hidden_layers"}));
  const KvMapSpec beyond = {KvMapKind::kLayers, {0, 3}, ""};
  EXPECT_TRUE(IsRefusal(CheckKvMap(beyond, full_, pruned),
                        {"layer 3", "num_hidden_layers"}));
  pruned.num_kv_heads = 1;
  EXPECT_TRUE(
      IsRefusal(CheckKvMap(layers, full_, pruned), {"num_key_value_heads"}));
  EXPECT_TRUE(CheckKvMap(spec_, full_, pruned).ok());
  pruned.num_kv_heads = 2;
  pruned.head_dim = 24;
  EXPECT_TRUE(IsRefusal(CheckKvMap(layers, full_, pruned), {"head_dim"}));
  EXPECT_TRUE(CheckKvMap(spec_, full_, pruned).ok());
}

}  // namespace
}  // namespace overfill
