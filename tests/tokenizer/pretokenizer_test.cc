#include "engine/tokenizer/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/tokenizer/unicode.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/tokenizer/test_util.h"

namespace overfill {
namespace {

using ::testing::ElementsAre;
using Words = std::vector<std::string>;

Words Split(SplitPattern pattern, absl::string_view text) {
  Words words;
  for (size_t pos = 0; pos < text.size();) {
    const size_t end = WordEnd(pattern, text, pos);
    EXPECT_GT(end, pos);
    words.emplace_back(text.substr(pos, end - pos));
    pos = end;
  }
  return words;
}

TEST(PretokenizerTest, Gpt2) {
  const auto split = [](absl::string_view t) {
    return Split(SplitPattern::kGpt2, t);
  };
  EXPECT_THAT(split("Hello world's  end"),
              ElementsAre("Hello", " world", "'s", " ", " end"));
  EXPECT_THAT(split("IT'S 123abc !?"),
              ElementsAre("IT", "'", "S", " 123", "abc", " !?"));
  EXPECT_THAT(split("a\n\n b  "), ElementsAre("a", "\n\n", " b", "  "));
  EXPECT_THAT(split("'re've'x"), ElementsAre("'re", "'ve", "'", "x"));
}

TEST(PretokenizerTest, Llama3) {
  const auto split = [](absl::string_view t) {
    return Split(SplitPattern::kLlama3, t);
  };
  EXPECT_THAT(
      split("IT'S 12345 (x)\n\nend"),
      ElementsAre("IT", "'S", " ", "123", "45", " (", "x", ")\n\n", "end"));
  EXPECT_THAT(split("a \n \n  b"), ElementsAre("a", " \n \n", " ", " b"));
  EXPECT_THAT(split("\tdon\u00A0t"), ElementsAre("\tdon", "\u00A0t"));
  EXPECT_THAT(split("'ſ"), ElementsAre("'ſ"));
}

TEST(PretokenizerTest, Qwen2) {
  EXPECT_THAT(Split(SplitPattern::kQwen2, " 1234"),
              ElementsAre(" ", "1", "2", "3", "4"));
}

TEST(PretokenizerTest, TekkenAndO200k) {
  EXPECT_THAT(
      Split(SplitPattern::kTekken, "camelCase HTTPServer 12/\n"),
      ElementsAre("camel", "Case", " HTTPServer", " ", "1", "2", "/\n"));
  EXPECT_THAT(Split(SplitPattern::kO200k, "McDonald's 1234"),
              ElementsAre("Mc", "Donald's", " ", "123", "4"));
}

// An independent judge: the expression itself, run by PCRE2.
class Regex {
 public:
  explicit Regex(const char* expression) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression),
                              PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                              &error, &offset, nullptr));
    EXPECT_NE(code_, nullptr) << "at " << offset;
    match_.reset(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
  }

  Words Split(absl::string_view text) {
    Words words;
    for (size_t pos = 0; pos < text.size();) {
      const int found =
          pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                      text.size(), pos, 0, match_.get(), nullptr);
      EXPECT_GT(found, 0);
      if (found <= 0) break;
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match_.get());
      EXPECT_EQ(range[0], pos) << "the expressions match every character";
      words.emplace_back(text.substr(pos, range[1] - pos));
      pos = range[1];
    }
    return words;
  }

 private:
  struct Free {
    void operator()(pcre2_code* code) { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) { pcre2_match_data_free(data); }
  };
  std::unique_ptr<pcre2_code, Free> code_;
  std::unique_ptr<pcre2_match_data, Free> match_;
};

// The expression that a family's tokenizer.json states.
std::string FamilyRegex(Family family) {
  const Json pre = FamilyJson(family)["pre_tokenizer"];
  return pre["pretokenizers"][0]["pattern"]["Regex"].get<std::string>();
}

TEST(PretokenizerTest, ScannersAgreeWithTheirExpressions) {
  struct Case {
    SplitPattern pattern;
    std::string regex;
  };
  const Case cases[] = {
      {SplitPattern::kGpt2,
       R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
       R"(|\s+(?!\S)|\s+)"},
      {SplitPattern::kLlama3, FamilyRegex(Family::kLlama3)},
      {SplitPattern::kQwen2, FamilyRegex(Family::kQwen2)},
      {SplitPattern::kTekken, FamilyRegex(Family::kTekken)},
      {SplitPattern::kO200k, FamilyRegex(Family::kO200k)},
  };
  std::mt19937_64 random(TestSeed());
  for (const Case& c : cases) {
    EXPECT_EQ(FindSplitPattern(c.regex), c.pattern);
    Regex regex(c.regex.c_str());
    for (int i = 0; i < 4000; ++i) {
      const std::string text = RandomText(random, 30);
      ASSERT_EQ(Split(c.pattern, text), regex.Split(text)) << text;
    }
  }
  EXPECT_EQ(FindSplitPattern(R"(\s+)"), std::nullopt);
}

Words RunStep(PreTokenizerStep step, absl::string_view text,
              bool is_text_start = true) {
  Words words;
  PreTokenizer({std::move(step)})
      .Run(text, is_text_start,
           [&](absl::string_view word) { words.emplace_back(word); });
  return words;
}

TEST(PretokenizerTest, Digits) {
  PreTokenizerStep step;
  step.kind = PreTokenizerStep::Kind::kDigits;
  EXPECT_THAT(RunStep(step, "a12 b½٣"), ElementsAre("a", "12", " b", "½٣"));
  step.individual_digits = true;
  EXPECT_THAT(RunStep(step, "a12 b½٣"),
              ElementsAre("a", "1", "2", " b", "½", "٣"));
}

TEST(PretokenizerTest, ByteLevelAddsASpaceWhereThereIsNone) {
  PreTokenizerStep step;
  step.kind = PreTokenizerStep::Kind::kByteLevel;
  step.add_prefix_space = true;
  EXPECT_THAT(RunStep(step, "a b"), ElementsAre(" a b"));
  EXPECT_THAT(RunStep(step, " a b"), ElementsAre(" a b"));
}

TEST(PretokenizerTest, Metaspace) {
  PreTokenizerStep step;
  step.kind = PreTokenizerStep::Kind::kMetaspace;
  step.replacement = "▁";
  EXPECT_THAT(RunStep(step, "a  b"), ElementsAre("a▁▁b"));
  step.prepend_scheme = PrependScheme::kFirst;
  EXPECT_THAT(RunStep(step, "a b"), ElementsAre("▁a▁b"));
  EXPECT_THAT(RunStep(step, " a b"), ElementsAre("▁a▁b"));
  EXPECT_THAT(RunStep(step, "a b", false), ElementsAre("a▁b"));
  step.prepend_scheme = PrependScheme::kAlways;
  step.split = true;
  EXPECT_THAT(RunStep(step, "a  b", false), ElementsAre("▁a", "▁", "▁b"));
}

}  // namespace
}  // namespace overfill
