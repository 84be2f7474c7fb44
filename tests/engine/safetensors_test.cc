#include "engine/safetensors.h"

#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "gtest/gtest.h"
#include "tests/engine/checkpoint_files.h"
#include "tests/engine/status_matchers.h"

namespace overfill {
namespace {

absl::StatusOr<StoredTensors> Parse(absl::string_view file) {
  return ParseSafetensors(std::as_bytes(std::span(file.data(), file.size())),
                          "m.safetensors");
}

std::string Entry(const char* dtype, const std::string& shape, uint64_t begin,
                  uint64_t end) {
  return absl::StrCat(R"({"dtype":")", dtype, R"(","shape":)", shape,
                      R"(,"data_offsets":[)", begin, ",", end, "]}");
}

TEST(SafetensorsTest, ReadsTensors) {
  const FileTensors tensors = {
      {"a", MakeFileTensor({2, 3}, {1, 2, 3, 4, 5, 6})},
      {"b", MakeFileTensor({4}, {0.5f, -1, 2, 8}, "BF16")},
      {"c", MakeFileTensor({1, 1, 2}, {0.25f, 3}, "F16")},
      {"empty", MakeFileTensor({0, 7}, {})},
      {"scalar", MakeFileTensor({}, {9})},
      {"other", {"I64", {2}, std::string(16, 'x')}},
  };
  const std::string file = SafetensorsFile(tensors);
  const auto parsed = Parse(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->size(), tensors.size());
  for (const auto& [name, want] : tensors) {
    const StoredTensor& got = parsed->at(name);
    EXPECT_EQ(got.dtype, want.dtype);
    EXPECT_EQ(got.shape, want.shape);
    EXPECT_EQ(got.file, "m.safetensors");
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(got.bytes.data()),
                          got.bytes.size()),
              want.bytes);
  }
  EXPECT_EQ(parsed->at("a").weight_dtype(), DType::kF32);
  EXPECT_EQ(parsed->at("b").weight_dtype(), DType::kBF16);
  EXPECT_EQ(parsed->at("c").weight_dtype(), DType::kF16);
  EXPECT_EQ(parsed->at("other").weight_dtype(), std::nullopt);
}

TEST(SafetensorsTest, AHeaderMayBePadded) {
  const std::string header = R"({"a":)" + Entry("U8", "[2]", 0, 2) + "}     ";
  EXPECT_TRUE(Parse(SafetensorsFile(header, "xy")).ok());
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string file =
      SafetensorsFile(FileTensors{{"a", MakeFileTensor({2}, {1, 2})},
                                  {"b", MakeFileTensor({3}, {3, 4, 5})}});
  ASSERT_TRUE(Parse(file).ok());
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_TRUE(
        IsRefusal(Parse(file.substr(0, size)).status(), {"m.safetensors"}))
        << size;
  }
  // One that ends in the data names the tensor that is cut.
  EXPECT_TRUE(IsRefusal(Parse(file.substr(0, file.size() - 1)).status(),
                        {"\"b\"", "truncated"}));
  EXPECT_TRUE(IsRefusal(Parse(file + "x").status(), {"no tensor"}));
}

TEST(SafetensorsTest, LongHeadersAreRefusedByTheirSizeAlone) {
  std::string file = SafetensorsFile("{}", "");
  for (const uint64_t size :
       {uint64_t{kMaxSafetensorsHeaderBytes + 1}, uint64_t{1} << 63,
        ~uint64_t{0}, ~uint64_t{0} - 7}) {
    std::memcpy(file.data(), &size, sizeof(size));
    EXPECT_TRUE(IsRefusal(Parse(file).status(),
                          {"header", absl::StrCat(size), "100000000"}));
  }
  const uint64_t most = kMaxSafetensorsHeaderBytes;
  std::memcpy(file.data(), &most, sizeof(most));
  EXPECT_TRUE(IsRefusal(Parse(file).status(), {"truncated"}));
}

struct BadHeader {
  std::string header;
  std::vector<std::string> words;
};

TEST(SafetensorsTest, BadEntriesAreRefusedByName) {
  const std::string ok = Entry("F32", "[2]", 0, 8);
  const auto one = [](const std::string& entry) {
    return R"({"w":)" + entry + "}";
  };
  const std::string huge = "18446744073709551615";
  const std::vector<BadHeader> bad = {
      // Offsets, of 16 bytes of data.
      {one(Entry("F32", "[2]", 8, 0)), {"\"w\"", "backwards"}},
      {one(Entry("F32", "[2]", 0, 4)), {"\"w\"", "4 bytes", "takes 8"}},
      {one(Entry("F32", "[2]", 0, 16)), {"\"w\"", "16 bytes", "takes 8"}},
      {one(Entry("F32", "[5]", 0, 20)), {"\"w\"", "truncated"}},
      {one(Entry("F32", "[2]", 8, 16)), {"\"w\"", "gap"}},
      {one(Entry("F32", "[2]", 0, 8)), {"no tensor"}},
      {one(Entry("U8", "[7]", ~uint64_t{0} - 7, ~uint64_t{0})),
       {"\"w\"", "truncated"}},
      {R"({"v":)" + Entry("F32", "[3]", 0, 12) + R"(,"w":)" +
           Entry("F32", "[2]", 8, 16) + "}",
       {"\"w\"", "overlap", "\"v\""}},
      {R"({"v":)" + Entry("F32", "[4]", 0, 16) + R"(,"w":)" +
           Entry("F32", "[4]", 0, 16) + "}",
       {"\"w\"", "overlap"}},
      {R"({"v":)" + ok + R"(,"w":)" + Entry("F32", "[1]", 12, 16) + "}",
       {"\"w\"", "gap"}},
      // Shapes.
      {one(Entry("F32", "[-2]", 0, 8)), {"\"w\"", "shape"}},
      {one(Entry("F32", "[2.0]", 0, 8)), {"\"w\"", "shape"}},
      {one(Entry("F32", "[[2]]", 0, 8)), {"\"w\"", "shape"}},
      {one(Entry("F32", "2", 0, 8)), {"\"w\"", "shape"}},
      {one(Entry("F32", "[" + huge + "]", 0, 8)), {"\"w\"", "shape"}},
      {one(Entry("F32", "[4611686018427387904]", 0, 8)), {"\"w\"", "shape"}},
      {one(Entry("F32", "[4294967296,4294967296]", 0, 8)), {"\"w\"", "shape"}},
      {one(Entry("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2]", 0, 8)),
       {"\"w\"", "16 dimensions"}},
      // Types.
      {one(Entry("F31", "[2]", 0, 8)), {"\"w\"", "F31", "unknown"}},
      {one(Entry("f32", "[2]", 0, 8)), {"\"w\"", "f32", "unknown"}},
      {one(R"({"dtype":7,"shape":[2],"data_offsets":[0,8]})"),
       {"\"w\"", "dtype"}},
      // Members.
      {one(R"({"shape":[2],"data_offsets":[0,8]})"), {"\"w\"", "no dtype"}},
      {one(R"({"dtype":"F32","data_offsets":[0,8]})"), {"\"w\"", "no shape"}},
      {one(R"({"dtype":"F32","shape":[2]})"), {"\"w\"", "no data_offsets"}},
      {one(R"({"dtype":"F32","dtype":"F16","shape":[2]})"),
       {"\"w\"", "dtype comes twice"}},
      {one(R"({"dtype":"F32","strides":[1],"shape":[2]})"),
       {"\"w\"", "strides"}},
      {one(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})"),
       {"\"w\"", "data_offsets"}},
      {one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,16]})"),
       {"\"w\"", "data_offsets"}},
      {one(R"({"dtype":"F32","shape":[2],"data_offsets":["0","8"]})"),
       {"\"w\"", "data_offsets"}},
      {one("[]"), {"\"w\""}},
      {one("null"), {"\"w\""}},
      // Names.
      {R"({"w":)" + ok + R"(,"w":)" + Entry("F32", "[2]", 8, 16) + "}",
       {"\"w\"", "twice"}},
      {R"({"__metadata__":{},"__metadata__":{}})", {"__metadata__"}},
      {R"({"__metadata__":{"a":1}})", {"__metadata__"}},
      {R"({"__metadata__":{"a":{}}})", {"__metadata__"}},
      {R"({"a\nb":7})", {"\"a\\nb\""}},
      {R"({")" + std::string(5000, 'n') + R"(":)" + ok + "}", {"name"}},
      // No header.
      {"", {"JSON"}},
      {"[]", {"JSON object"}},
      {"7", {"JSON object"}},
      {"{", {"JSON"}},
      {one(ok) + "x", {"JSON"}},
      {std::string("{}\0 ", 4), {"zero byte"}},
      {R"({"w":)" + std::string(100000, '['), {"\"w\""}},
  };
  for (const BadHeader& b : bad) {
    const std::string file = SafetensorsFile(b.header, std::string(16, 'd'));
    std::vector<std::string> words = b.words;
    words.push_back("m.safetensors: ");
    EXPECT_TRUE(IsRefusal(Parse(file).status(), words))
        << b.header.substr(0, 300);
  }
}

class ShardedTest : public testing::Test {
 protected:
  ShardedTest() {
    checkpoint_ = MakeTinyCheckpoint("llama", 1);
    checkpoint_.num_shards = 3;
    checkpoint_.WriteTo(directory_.path());
  }
  absl::Status Open() {
    return Checkpoint::OpenDirectory(directory_.path()).status();
  }
  std::string index() const {
    return directory_ / "model.safetensors.index.json";
  }
  Json ReadIndex() const { return Json::parse(*ReadFile(index(), 1 << 20)); }

  TempDirectory directory_;
  TinyCheckpoint checkpoint_;
};

TEST_F(ShardedTest, ReadsAllShards) {
  const auto opened = Checkpoint::OpenDirectory(directory_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->files().size(), 3u);
  EXPECT_EQ(opened->tensors().size(), checkpoint_.tensors.size());
  for (const auto& [name, want] : checkpoint_.tensors) {
    const StoredTensor* got = opened->Find(name);
    ASSERT_NE(got, nullptr) << name;
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(got->bytes.data()),
                          got->bytes.size()),
              want.bytes);
  }
  EXPECT_EQ(opened->Find("no such tensor"), nullptr);
}

TEST_F(ShardedTest, AMissingShardIsNamed) {
  std::remove((directory_ / "model-1.safetensors").c_str());
  EXPECT_TRUE(IsRefusal(Open(), {directory_ / "model-1.safetensors"},
                        absl::StatusCode::kNotFound));
}

TEST_F(ShardedTest, AShardThatDoesNotHoldItsTensorIsNamed) {
  Json json = ReadIndex();
  json["weight_map"]["no.such.tensor"] = "model-2.safetensors";
  WriteFile(index(), json.dump());
  EXPECT_TRUE(
      IsRefusal(Open(), {"no.such.tensor", "model-2.safetensors", index()}));
}

TEST_F(ShardedTest, ATensorInAnotherShardIsNamed) {
  Json json = ReadIndex();
  const std::string now = json["weight_map"]["lm_head.weight"];
  json["weight_map"]["lm_head.weight"] = now == "model-0.safetensors"
                                             ? "model-1.safetensors"
                                             : "model-0.safetensors";
  WriteFile(index(), json.dump());
  EXPECT_TRUE(IsRefusal(Open(), {"lm_head.weight", now}));
}

TEST_F(ShardedTest, ATensorThatTheIndexDoesNotNameIsNamed) {
  Json json = ReadIndex();
  json["weight_map"].erase("model.norm.weight");
  WriteFile(index(), json.dump());
  EXPECT_TRUE(IsRefusal(Open(), {"model.norm.weight", index()}));
}

TEST_F(ShardedTest, ShardNamesArePlain) {
  for (const Json& shard : std::vector<Json>{
           "../model-0.safetensors", "/etc/passwd", "a/b.safetensors", "", "..",
           ".safetensors", "model.bin", std::string("a\0.safetensors", 14), 7,
           nullptr, std::string(300, 'a') + ".safetensors"}) {
    Json json = ReadIndex();
    json["weight_map"]["lm_head.weight"] = shard;
    WriteFile(index(), json.dump());
    EXPECT_TRUE(IsRefusal(Open(), {"lm_head.weight", "plain name", index()}))
        << shard;
  }
}

TEST_F(ShardedTest, WhatIsNoIndexIsRefused) {
  for (const char* text : {"", "{}", "[]", R"({"weight_map": []})",
                           R"({"weight_map": {}})", R"({"weight_map": 1})"}) {
    WriteFile(index(), text);
    EXPECT_TRUE(IsRefusal(Open(), {index()})) << text;
  }
}

TEST_F(ShardedTest, TwoCheckpointsInOneDirectoryAreRefused) {
  WriteFile(directory_ / "model.safetensors",
            SafetensorsFile(checkpoint_.tensors));
  EXPECT_TRUE(IsRefusal(
      Open(), {directory_.path(), "model.safetensors", "one is stale"}));
}

TEST_F(ShardedTest, AnIndexOfTheSingleFileIsFine) {
  WriteFile(directory_ / "model.safetensors",
            SafetensorsFile(checkpoint_.tensors));
  Json json = ReadIndex();
  for (auto& [name, shard] : json["weight_map"].items()) {
    shard = "model.safetensors";
  }
  WriteFile(index(), json.dump());
  const auto opened = Checkpoint::OpenDirectory(directory_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->files().size(), 1u);
  EXPECT_EQ(opened->tensors().size(), checkpoint_.tensors.size());
  // But for a tensor of another shard, it is neither.
  json["weight_map"]["lm_head.weight"] = "model-0.safetensors";
  WriteFile(index(), json.dump());
  EXPECT_FALSE(Open().ok());
}

TEST(CheckpointTest, AnEmptyDirectoryIsRefused) {
  const TempDirectory directory;
  EXPECT_TRUE(IsRefusal(Checkpoint::OpenDirectory(directory.path()).status(),
                        {directory.path(), "model.safetensors"},
                        absl::StatusCode::kNotFound));
  WriteFile(directory / "model.safetensors", "");
  EXPECT_TRUE(IsRefusal(Checkpoint::OpenDirectory(directory.path()).status(),
                        {directory / "model.safetensors", "truncated"}));
}

}  // namespace
}  // namespace overfill
