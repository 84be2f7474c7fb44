#include "engine/pair_manifest.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "gtest/gtest.h"
#include "tests/engine/status_matchers.h"

namespace overfill {
namespace {

const std::string kDigest(64, 'a');

// Of 5 -> 3 hidden and 6 -> 2 intermediate channels, 3 -> 2 layers.
Json SmallManifest() {
  const Json files = {{"config.json", kDigest},
                      {"tokenizer.json", kDigest},
                      {"model.safetensors", kDigest}};
  return {{"format", "overfill-pair"},
          {"version", 1},
          {"kv_map", "layers"},
          {"layer_map", {0, 2}},
          {"kept_hidden", {0, 3, 4}},
          {"kept_intermediate", {{0, 1}, {2, 5}}},
          {"full",
           {{"name", "big"},
            {"hidden_size", 5},
            {"intermediate_size", 6},
            {"num_hidden_layers", 3},
            {"files", files}}},
          {"decode",
           {{"name", "small"},
            {"hidden_size", 3},
            {"intermediate_size", 2},
            {"num_hidden_layers", 2},
            {"files", files}}}};
}

TEST(PairManifestTest, ReadsEveryMember) {
  Json raw = SmallManifest();
  raw["made_by"] = {{"seed", 7}};  // left alone
  const auto manifest = ParsePairManifest(raw.dump(), "d/overfill.json");
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->path, "d/overfill.json");
  EXPECT_EQ(manifest->kv_map, KvMapKind::kLayers);
  EXPECT_EQ(manifest->layer_map, std::vector<int32_t>({0, 2}));
  EXPECT_EQ(manifest->kept_hidden, std::vector<int32_t>({0, 3, 4}));
  EXPECT_EQ(manifest->kept_intermediate,
            std::vector<std::vector<int32_t>>({{0, 1}, {2, 5}}));
  EXPECT_EQ(manifest->full.name, "big");
  EXPECT_EQ(manifest->full.hidden_size, 5);
  EXPECT_EQ(manifest->full.intermediate_size, 6);
  EXPECT_EQ(manifest->full.num_layers, 3);
  EXPECT_EQ(manifest->decode.num_layers, 2);
  EXPECT_EQ(manifest->full.files.size(), 3u);
  EXPECT_EQ(manifest->decode.files.at("model.safetensors"), kDigest);

  const auto map = KvMapOfManifest(*manifest);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->kind, KvMapKind::kLayers);
  EXPECT_EQ(map->layers, std::vector<int32_t>({0, 2}));
}

TEST(PairManifestTest, WhatIsNotKnownMayBeAbsent) {
  Json raw = SmallManifest();
  raw.erase("kept_hidden");
  raw["kept_intermediate"] = nullptr;
  raw["full"].erase("name");
  raw["full"]["num_hidden_layers"] = 2;
  raw["kv_map"] = "identity";
  raw["layer_map"] = {0, 1};
  auto manifest = ParsePairManifest(raw.dump(), "m");
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_FALSE(manifest->kept_hidden.has_value());
  EXPECT_FALSE(manifest->kept_intermediate.has_value());
  const auto map = KvMapOfManifest(*manifest);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->kind, KvMapKind::kIdentity);
  EXPECT_TRUE(map->layers.empty());

  raw["kv_map"] = "projection";
  manifest = ParsePairManifest(raw.dump(), "m");
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_TRUE(IsRefusal(KvMapOfManifest(*manifest).status(),
                        {"m: kv_map is \"projection\"", "kv_map file"}));
}

TEST(PairManifestTest, RefusesByName) {
  struct Edit {
    const char* path;  // a JSON pointer
    Json value;
    const char* message;
  };
  const std::string path_digest = R"(files: "../x" is no plain)";
  const Edit edits[] = {
      {"/format", nullptr, "m: format must be"},
      {"/format", "pair", "m: format must be"},
      {"/version", nullptr, "m: version is absent"},
      {"/version", "1", "m: version must be an integer"},
      {"/version", 2, "m: version 2 is not supported"},
      {"/kv_map", nullptr, "m: kv_map must be"},
      {"/kv_map", "mirror", "m: kv_map must be"},
      {"/kv_map", 3, "m: kv_map must be"},
      {"/kv_map", "identity", "num_hidden_layers is 3 and 2"},
      {"/layer_map", nullptr, "m: layer_map is absent"},
      {"/layer_map", {{"0", 0}}, "m: layer_map must be a list"},
      {"/layer_map", Json::array(), "layer_map has 0 numbers, but decode.num_"},
      {"/layer_map", {0, 1, 2}, "layer_map has 3 numbers, but decode.num_"},
      {"/layer_map", {2, 0}, "layer_map must ascend, but 0 follows 2"},
      {"/layer_map", {0, 3}, "below 3, the full.num_hidden_layers"},
      {"/kept_hidden", "all", "m: kept_hidden must be a list"},
      {"/kept_hidden", Json::array(), "kept_hidden has 0 numbers"},
      {"/kept_hidden", {0, 1}, "kept_hidden has 2 numbers, but decode.hidden"},
      {"/kept_hidden", {0, 1, 1}, "kept_hidden must ascend, but 1 follows 1"},
      {"/kept_hidden", {0, 1, 5}, "kept_hidden must be numbers below 5"},
      {"/kept_hidden", {-1, 0, 1}, "kept_hidden must be numbers below 5"},
      {"/kept_hidden", {0, 1, 4.0}, "kept_hidden must be numbers below 5"},
      {"/kept_hidden", {0, 1, "4"}, "kept_hidden must be numbers below 5"},
      {"/kept_hidden", {0, 1, UINT64_MAX}, "kept_hidden must be numbers below"},
      {"/kept_intermediate", 1, "kept_intermediate must be 2 lists"},
      {"/kept_intermediate/1", nullptr, "kept_intermediate[1] must be a list"},
      {"/kept_intermediate/1", {1}, "kept_intermediate[1] has 1 numbers"},
      {"/kept_intermediate/1", {1, 6}, "kept_intermediate[1] must be numbers"},
      {"/kept_intermediate/2", {1, 2}, "kept_intermediate must be 2 lists"},
      {"/full", nullptr, "m: full must be an object"},
      {"/decode", "small", "m: decode must be an object"},
      {"/full/name", 1, "m: full: name must be a string"},
      {"/full/hidden_size", nullptr, "m: full: hidden_size is absent"},
      {"/full/hidden_size", 0, "m: full: hidden_size must be between"},
      {"/full/hidden_size", 1 << 21, "m: full: hidden_size must be between"},
      {"/full/hidden_size", UINT64_MAX, "m: full: hidden_size must be between"},
      {"/decode/intermediate_size", -2, "m: decode: intermediate_size must be"},
      {"/decode/num_hidden_layers", 2000, "m: decode: num_hidden_layers must"},
      {"/full/files", nullptr, "m: full: files must be an object"},
      {"/full/files", {1, 2}, "m: full: files must be an object"},
      {"/full/files/config.json", nullptr, "full: files.config.json must be"},
      {"/full/files/config.json", "ab", "full: files.config.json must be"},
      {"/full/files/a", std::string(64, 'A'), "m: full: files.a must be"},
      {"/full/files/a", std::string(64, 'g'), "m: full: files.a must be"},
      {"/full/files/", kDigest, "m: full: files: \"\" is no plain"},
      {"/full/files/.bashrc", kDigest, "m: full: files: \".bashrc\" is no"},
      {"/full/files/a~1b", kDigest, "m: full: files: \"a/b\" is no plain"},
      {"/full/files/..~1x", kDigest, path_digest.c_str()},
      {"/full/files/a\nb", kDigest, "is no plain"},
      {"/full/files/a\x1b[1m", kDigest, "is no plain"},
  };
  for (const Edit& edit : edits) {
    Json raw = SmallManifest();
    raw[Json::json_pointer(edit.path)] = edit.value;
    EXPECT_TRUE(IsRefusal(ParsePairManifest(raw.dump(), "m").status(),
                          {"m: ", edit.message}))
        << edit.path << " = " << edit.value;
  }
  for (const char* name : {"config.json", "tokenizer.json"}) {
    Json raw = SmallManifest();
    raw["decode"]["files"].erase(name);
    EXPECT_TRUE(
        IsRefusal(ParsePairManifest(raw.dump(), "m").status(),
                  {absl::StrCat("m: decode: files.", name, " is absent")}));
  }
  EXPECT_TRUE(IsRefusal(ParsePairManifest("[]", "m").status(), {"m: "}));
  EXPECT_TRUE(IsRefusal(ParsePairManifest("{", "m").status(), {"m: ", "JSON"}));
}

}  // namespace
}  // namespace overfill
