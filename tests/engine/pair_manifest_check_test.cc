#include "engine/pair_manifest_check.h"

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/sha256.h"
#include "engine/pair.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "tests/engine/checkpoint_files.h"
#include "tests/engine/status_matchers.h"

namespace overfill {
namespace {

const std::string kDigest(64, 'a');

// The manifest of two checkpoints as they lie in their directories, each file
// hashed by itself.
class ManifestOfPairTest : public testing::Test {
 protected:
  void SetUp() override {
    auto device = MakeDevice("cpu", {.num_threads = 2});
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    full_ = MakeTinyCheckpoint("llama", 1);
    full_.num_shards = 2;
    pruned_ = full_;
    pruned_.num_shards = 1;
    pruned_.config["hidden_size"] = 19;
    pruned_.config["intermediate_size"] = 23;
    Write();
  }

  void Write() {
    pruned_.tensors = TinyTensors(pruned_.config, 2);
    full_.WriteTo(options().prefill_model_dir);
    pruned_.WriteTo(options().decode_model_dir);
    manifest_ = {{"format", "overfill-pair"},
                 {"version", 1},
                 {"kv_map", "identity"},
                 {"layer_map", {0, 1, 2}},
                 {"full", Describe(full_, options().prefill_model_dir)},
                 {"decode", Describe(pruned_, options().decode_model_dir)}};
  }

  PairOptions options() const {
    PairOptions options;
    options.prefill_model_dir = directory_ / "full";
    options.decode_model_dir = directory_ / "decode";
    return options;
  }
  std::string path() const { return directory_ / "decode/overfill.json"; }

  static Json Describe(const TinyCheckpoint& model, const std::string& where) {
    std::vector<std::string> names = {"config.json", "tokenizer.json"};
    for (const auto& entry : std::filesystem::directory_iterator(where)) {
      const std::string name = entry.path().filename();
      if (absl::StrContains(name, "safetensors")) names.push_back(name);
    }
    Json files;
    for (const std::string& name : names) {
      Sha256 hash;
      hash.Update(*ReadFile(absl::StrCat(where, "/", name), 1 << 24));
      files[name] = HexString(hash.Finish());
    }
    return {{"name", "it"},
            {"hidden_size", model.config.at("hidden_size")},
            {"intermediate_size", model.config.at("intermediate_size")},
            {"num_hidden_layers", model.config.at("num_hidden_layers")},
            {"files", files}};
  }

  absl::StatusOr<std::unique_ptr<Pair>> Load() { return Load(options()); }
  absl::StatusOr<std::unique_ptr<Pair>> Load(const PairOptions& options) {
    WriteFile(path(), manifest_.dump());
    return Pair::Load(*device_, options);
  }

  TempDirectory directory_;
  std::unique_ptr<Device> device_;
  TinyCheckpoint full_, pruned_;
  Json manifest_;
};

TEST_F(ManifestOfPairTest, ThePairItDescribesIsLoaded) {
  auto without = Pair::Load(*device_, options());
  ASSERT_TRUE(without.ok()) << without.status();
  const auto with = Load();
  ASSERT_TRUE(with.ok()) << with.status();
  // It says what the pair is, and is no part of it.
  EXPECT_EQ((*with)->digest(), (*without)->digest());
}

TEST_F(ManifestOfPairTest, OnlyAPairOfTwoModelsLacksOne) {
  const auto lacks = [&](const PairOptions& options) {
    const auto pair = Pair::Load(*device_, options);
    EXPECT_TRUE(pair.ok()) << pair.status();
    return (*pair)->lacks_manifest();
  };
  PairOptions pair = options();
  PairOptions twice = pair;
  twice.decode_model_dir = twice.prefill_model_dir;
  EXPECT_TRUE(lacks(pair));
  EXPECT_FALSE(lacks(twice));
  WriteFile(path(), manifest_.dump());
  EXPECT_FALSE(lacks(pair));
}

TEST_F(ManifestOfPairTest, EveryChangedFileIsNamed) {
  for (const char* half : {"full", "decode"}) {
    const Json files = manifest_[half]["files"];
    EXPECT_EQ(files.size(), half == std::string("full") ? 5u : 3u);
    for (const auto& [name, digest] : files.items()) {
      const std::string field = absl::StrCat(half, ".files.", name);
      Json& stated = manifest_[half]["files"][name];
      std::string other = digest.get<std::string>();
      other.back() = other.back() == '0' ? '1' : '0';
      stated = other;
      EXPECT_TRUE(
          IsRefusal(Load().status(),
                    {absl::StrCat(path(), ": ", field, ": the ", half,
                                  " model at ", directory_ / half,
                                  " is another one than the pair was made")}));
      stated = digest;
    }
  }
  // The last byte of the last tensor counts, which no other check looks at.
  const std::string weights = directory_ / "decode/model.safetensors";
  std::string content = *ReadFile(weights, 1 << 24);
  content.back() ^= 1;
  WriteFile(weights, content);
  EXPECT_TRUE(
      IsRefusal(Load().status(), {"decode.files.model.safetensors: the "}));
}

TEST_F(ManifestOfPairTest, FilesThatAreNotThereAreNamed) {
  Json& files = manifest_["full"]["files"];
  files["merges.txt"] = kDigest;
  EXPECT_TRUE(IsRefusal(
      Load().status(),
      {absl::StrCat(path(), ": full.files.merges.txt: "), "full/merges.txt"}));
  files.erase("merges.txt");
  files["model-9.safetensors"] = kDigest;
  EXPECT_TRUE(IsRefusal(Load().status(),
                        {"full.files.model-9.safetensors: ", "No such"}));
  files.erase("model-9.safetensors");
  files.erase("model-1.safetensors");
  EXPECT_TRUE(
      IsRefusal(Load().status(), {"full.files.\"model-1.safetensors\": is "
                                  "absent",
                                  directory_ / "full"}));
}

TEST_F(ManifestOfPairTest, SizesAreThoseOfTheConfigs) {
  const std::pair<const char*, const char*> sizes[] = {
      {"full", "hidden_size"},         {"full", "intermediate_size"},
      {"decode", "hidden_size"},       {"decode", "intermediate_size"},
      {"decode", "num_hidden_layers"}, {"full", "num_hidden_layers"},
  };
  const Json whole = manifest_;
  for (const auto& [half, field] : sizes) {
    manifest_ = whole;
    const int64_t size = whole[half][field].get<int64_t>();
    manifest_[half][field] = size + 1;
    // One layer more in either half, and the list still fits its own half.
    if (field == std::string("num_hidden_layers")) {
      manifest_["kv_map"] = "layers";
      if (half == std::string("decode")) {
        manifest_["full"][field] = 4;
        manifest_["layer_map"] = {0, 1, 2, 3};
      }
    }
    PairOptions pair = options();
    pair.kv_map_file = directory_ / "map.json";
    WriteFile(pair.kv_map_file, R"({"kind": "identity"})");
    EXPECT_TRUE(IsRefusal(Load(pair).status(),
                          {absl::StrCat(path(), ": "),
                           absl::StrCat(field, " is ", size + 1, ", but "),
                           absl::StrCat("/config.json has ", size)}))
        << half;
  }
}

TEST_F(ManifestOfPairTest, ItsLayersAreTheMapOfAPairWithoutOne) {
  pruned_.config["num_hidden_layers"] = 2;
  Write();
  manifest_["kv_map"] = "layers";
  manifest_["layer_map"] = {0, 2};
  PairOptions pair = options();
  const auto by_manifest = Load(pair);
  ASSERT_TRUE(by_manifest.ok()) << by_manifest.status();
  EXPECT_EQ((*by_manifest)->kv_map().kind, KvMapKind::kLayers);
  EXPECT_EQ((*by_manifest)->kv_map().source_layers,
            std::vector<int32_t>({0, 2}));

  pair.kv_map_file = directory_ / "map.json";
  WriteFile(pair.kv_map_file, R"({"kind": "layers", "layers": [0, 2]})");
  const auto by_file = Load(pair);
  ASSERT_TRUE(by_file.ok()) << by_file.status();
  EXPECT_EQ((*by_file)->digest(), (*by_manifest)->digest());

  WriteFile(pair.kv_map_file, R"({"kind": "layers", "layers": [0, 1]})");
  EXPECT_TRUE(
      IsRefusal(Load(pair).status(),
                {absl::StrCat(path(),
                              ": layer_map[1] is 2, but the kv_map in use has "
                              "1")}));
}

TEST_F(ManifestOfPairTest, TheMapInUseIsOfItsKind) {
  PairOptions pair = options();
  pair.kv_map_file = directory_ / "map.json";
  // All layers are an identity.
  WriteFile(pair.kv_map_file, R"({"kind": "layers", "layers": [0, 1, 2]})");
  auto loaded = Load(pair);
  EXPECT_TRUE(loaded.ok()) << loaded.status();

  manifest_["kv_map"] = "projection";
  EXPECT_TRUE(IsRefusal(
      Load(pair).status(),
      {"kv_map is \"projection\", but the kv_map in use is \"layers\""}));
  EXPECT_TRUE(IsRefusal(Load().status(),
                        {absl::StrCat(path(), ": kv_map is \"projection\"")}));

  FileTensors maps;
  for (int l = 0; l < 3; ++l) {
    for (const char* half : {"k", "v"}) {
      maps[absl::StrCat("layers.", l, ".", half)] =
          MakeFileTensor({32, 32}, std::vector<float>(32 * 32, 0.1f));
    }
  }
  WriteFile(directory_ / "maps.safetensors", SafetensorsFile(maps));
  WriteFile(pair.kv_map_file, R"({"kind": "projection", "layers": [0, 1, 2],
                                  "file": "maps.safetensors"})");
  loaded = Load(pair);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  manifest_["kv_map"] = "identity";
  EXPECT_TRUE(IsRefusal(
      Load(pair).status(),
      {"kv_map is \"identity\", but the kv_map in use is \"projection\""}));
}

TEST_F(ManifestOfPairTest, AModelThatIsAPairWithItselfNeedsNone) {
  manifest_["decode"]["hidden_size"] = 20;
  EXPECT_FALSE(Load().ok());
  PairOptions alone = options();
  alone.prefill_model_dir = alone.decode_model_dir + "/.";
  auto pair = Load(alone);
  EXPECT_TRUE(pair.ok()) << pair.status();
  alone.decode_weights = DType::kInt8;
  pair = Load(alone);
  EXPECT_TRUE(pair.ok()) << pair.status();
}

TEST_F(ManifestOfPairTest, OfDummiesOnlyTheShapesCount) {
  manifest_["full"]["files"]["config.json"] = kDigest;
  PairOptions dummies = options();
  dummies.load_format = LoadFormat::kDummy;
  const auto pair = Load(dummies);
  EXPECT_TRUE(pair.ok()) << pair.status();
  manifest_["full"]["hidden_size"] = 28;
  EXPECT_TRUE(
      IsRefusal(Load(dummies).status(), {path(), "full.hidden_size is 28"}));
}

TEST_F(ManifestOfPairTest, AManifestThatCannotBeReadIsRefused) {
  WriteFile(path(), "{");
  EXPECT_TRUE(IsRefusal(Pair::Load(*device_, options()).status(),
                        {path(), "not valid JSON"}));
  ASSERT_EQ(std::remove(path().c_str()), 0);
  full_.WriteTo(path());  // a directory
  EXPECT_TRUE(IsRefusal(Pair::Load(*device_, options()).status(),
                        {path(), "is not a regular file"}));
}

}  // namespace
}  // namespace overfill
