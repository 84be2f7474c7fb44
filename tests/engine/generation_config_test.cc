#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "base/json.h"
#include "engine/model_config.h"
#include "gtest/gtest.h"
#include "tests/engine/checkpoint_files.h"
#include "tests/engine/status_matchers.h"

namespace overfill {
namespace {

TEST(GenerationConfigTest, ReadsDefaults) {
  const auto config = ParseGenerationConfig(
      R"({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20,
          "min_p": 0.05, "repetition_penalty": 1.1,
          "eos_token_id": [5, 3], "transformers_version": "5.0.0"})",
      "g");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->do_sample, true);
  EXPECT_EQ(config->temperature, 0.6f);
  EXPECT_EQ(config->top_p, 0.9f);
  EXPECT_EQ(config->top_k, 20);
  EXPECT_EQ(config->min_p, 0.05f);
  EXPECT_EQ(config->repetition_penalty, 1.1f);
  EXPECT_EQ(config->eos_ids, std::vector<int32_t>({5, 3}));
  const auto empty = ParseGenerationConfig("{}", "g");
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_FALSE(empty->do_sample || empty->temperature || empty->top_p ||
               empty->top_k || empty->min_p || empty->repetition_penalty);
  EXPECT_TRUE(empty->eos_ids.empty());
}

TEST(GenerationConfigTest, RefusesWhatIsOutOfRange) {
  const std::pair<const char*, Json> bad[] = {
      {"temperature", -0.1},
      {"temperature", 1e300},
      {"temperature", "hot"},
      {"top_p", 0},
      {"top_p", 1.5},
      {"top_p", 1e-60},
      {"min_p", -0.1},
      {"min_p", 2},
      {"top_k", -1},
      {"top_k", 1.5},
      {"repetition_penalty", 0},
      {"repetition_penalty", -1},
      {"do_sample", 1},
      {"eos_token_id", "</s>"},
      {"eos_token_id", {1, -1}},
  };
  for (const auto& [key, value] : bad) {
    EXPECT_TRUE(IsRefusal(
        ParseGenerationConfig(Json{{key, value}}.dump(), "g").status(),
        {"g: ", key}))
        << key << " " << value;
  }
}

TEST(GenerationConfigTest, WhatIsIgnoredIsNamed) {
  const TempDirectory directory;
  const std::string path = directory / "generation_config.json";
  const auto log_of = [&](const Json& config) {
    WriteFile(path, config.dump());
    testing::internal::CaptureStderr();
    EXPECT_TRUE(LoadGenerationConfig(directory.path()).ok());
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(log_of({{"do_sample", true},
                    {"num_beams", 1},
                    {"typical_p", 1.0},
                    {"min_length", 0},
                    {"suppress_tokens", Json::array()},
                    {"forced_eos_token_id", nullptr},
                    {"pad_token_id", 0},
                    {"max_length", 4096}}),
            "");
  const std::string log = log_of(
      {{"num_beams", 4}, {"suppress_tokens", {5}}, {"forced_eos_token_id", 1}});
  EXPECT_TRUE(absl::EndsWith(
      log, path + ": not supported, and ignored: forced_eos_token_id, "
                  "num_beams, suppress_tokens\n"))
      << log;
}

TEST(GenerationConfigTest, AnAbsentFileIsEmpty) {
  const TempDirectory directory;
  const auto absent = LoadGenerationConfig(directory.path());
  ASSERT_TRUE(absent.ok()) << absent.status();
  EXPECT_FALSE(absent->do_sample.has_value());
  WriteFile(directory / "generation_config.json", "{");
  EXPECT_TRUE(IsRefusal(LoadGenerationConfig(directory.path()).status(),
                        {directory / "generation_config.json"}));
}

}  // namespace
}  // namespace overfill
