#include "tests/tokenizer/test_util.h"

#include <cstdlib>
#include <iostream>
#include <map>

#include "absl/status/status.h"
#include "base/check.h"
#include "engine/tokenizer/unicode.h"
#include "gtest/gtest.h"

namespace overfill {
namespace {

std::string DumpOrEmpty(const Json& json) {
  return json.is_null() ? "" : json.dump();
}

}  // namespace

const Json& FamilyJson(Family family) {
  static auto* const made = new std::map<Family, Json>;
  const auto [it, is_new] = made->try_emplace(family);
  if (is_new) it->second = MakeTokenizerJson(family, /*seed=*/1);
  return it->second;
}

const Tokenizer& FamilyTokenizer(Family family) {
  static auto* const made = new std::map<Family, std::unique_ptr<Tokenizer>>;
  auto& tokenizer = (*made)[family];
  if (tokenizer == nullptr) {
    tokenizer = MustLoad(FamilyJson(family), MakeTokenizerConfig(family));
  }
  return *tokenizer;
}

std::unique_ptr<Tokenizer> MustLoad(const Json& tokenizer_json,
                                    const Json& config) {
  auto result = Tokenizer::FromJson(tokenizer_json.dump(), DumpOrEmpty(config),
                                    "tokenizer.json");
  OVERFILL_CHECK_OK(result.status());
  return *std::move(result);
}

std::string LoadError(const Json& tokenizer_json, const Json& config) {
  const auto result = Tokenizer::FromJson(
      tokenizer_json.dump(), DumpOrEmpty(config), "tokenizer.json");
  if (result.ok()) return "";
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(result.status().message());
}

Json SmallJson(const std::vector<std::string>& tokens,
               const std::vector<std::pair<std::string, std::string>>& merges) {
  Json vocab = {{"?", 0}};
  for (const std::string& token : tokens) vocab[token] = vocab.size();
  Json pairs = Json::array();
  for (const auto& [left, right] : merges) pairs.push_back({left, right});
  return {{"decoder", {{"type", "Fuse"}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "?"},
            {"vocab", vocab},
            {"merges", pairs}}}};
}

std::vector<int32_t> MustEncode(const Tokenizer& tokenizer,
                                const std::string& text,
                                Tokenizer::EncodeOptions options) {
  auto ids = tokenizer.Encode(text, options);
  OVERFILL_CHECK_OK(ids.status());
  return *std::move(ids);
}

std::string RandomText(std::mt19937_64& random, size_t max_chars) {
  static constexpr char32_t kChars[] = {
      'a',     'Z',     's',     't',     'r',     'e',     'l',     'L',
      'D',     'm',     'v',     '\'',    '\'',    '0',     '9',     ' ',
      ' ',     ' ',     '\n',    '\n',    '\r',    '\t',    '\v',    '/',
      '.',     '_',     '-',     '(',     '<',     0x0,     0x7F,    0x85,
      0xA0,    0xAA,    0xB2,    0xBD,    0xDF,    0xE9,    0x130,   0x17F,
      0x1C5,   0x2B0,   0x301,   0x308,   0x327,   0x345,   0x3A9,   0x3C2,
      0x416,   0x44F,   0x5D0,   0x5B0,   0x627,   0x64B,   0x663,   0x900,
      0x915,   0x93F,   0xE01,   0xE31,   0x1100,  0x1161,  0x11A8,  0x1680,
      0x1E9E,  0x2003,  0x200B,  0x200D,  0x2028,  0x2029,  0x203F,  0x20AC,
      0x2167,  0x2460,  0x24B6,  0x3000,  0x3042,  0x3099,  0x4E2D,  0x65E5,
      0xAC00,  0xD7A3,  0xE000,  0xFB01,  0xFE0F,  0xFEFF,  0xFF11,  0xFFFD,
      0xFFFF,  0x10400, 0x10428, 0x1D15F, 0x1D7D8, 0x1F600, 0x1F468, 0x20000,
      0x2F800, 0xE0041, 0x10FFFD};
  std::string text;
  // Runs of one character are what scanners have trouble with.
  for (size_t left = random() % (max_chars + 1); left > 0;) {
    const char32_t c = kChars[random() % std::size(kChars)];
    const size_t run = random() % 4 == 0 ? random() % left + 1 : 1;
    for (size_t i = 0; i < run; ++i) AppendUtf8(c, &text);
    left -= run;
  }
  return text;
}

}  // namespace overfill
