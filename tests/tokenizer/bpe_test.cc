#include "engine/tokenizer/bpe.h"

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/tokenizer/build.h"
#include "engine/tokenizer/spec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/tokenizer/test_util.h"

namespace overfill {
namespace {

using ::testing::ElementsAre;
using Pairs = std::vector<std::pair<std::string, std::string>>;

TEST(BpeTest, MergesByRankThenFromTheLeft) {
  // ids: ? 0, a 1, b 2, c 3, ab 4, bc 5, aa 6
  const std::vector<std::string> tokens = {"a", "b", "c", "ab", "bc", "aa"};
  const auto tokenizer =
      MustLoad(SmallJson(tokens, {{"b", "c"}, {"a", "b"}, {"a", "a"}}));
  EXPECT_THAT(MustEncode(*tokenizer, "abc"), ElementsAre(1, 5));
  EXPECT_THAT(MustEncode(*tokenizer, "abab"), ElementsAre(4, 4));
  EXPECT_THAT(MustEncode(*tokenizer, "aaa"), ElementsAre(6, 1));
  EXPECT_THAT(MustEncode(*tokenizer, "aab"), ElementsAre(1, 4));
  EXPECT_THAT(MustEncode(*tokenizer, ""), ElementsAre());
}

TEST(BpeTest, AMergedTokenMergesOn) {
  const std::vector<std::string> tokens = {"a", "b", "ab", "abab", "ba"};
  const auto tokenizer =
      MustLoad(SmallJson(tokens, {{"a", "b"}, {"ab", "ab"}, {"b", "a"}}));
  EXPECT_THAT(MustEncode(*tokenizer, "ababab"), ElementsAre(4, 3));
}

TEST(BpeTest, UnknownCharacters) {
  Json json = SmallJson({"a"}, {});
  EXPECT_THAT(MustEncode(*MustLoad(json), "xxaé"), ElementsAre(0, 0, 1, 0));
  json["model"]["fuse_unk"] = true;
  EXPECT_THAT(MustEncode(*MustLoad(json), "xxaé"), ElementsAre(0, 1, 0));
}

TEST(BpeTest, IgnoreMergesTakesWholeWords) {
  Json json = SmallJson({"a", "b", "ab", "aba"}, {{"a", "b"}});
  EXPECT_THAT(MustEncode(*MustLoad(json), "aba"), ElementsAre(3, 1));
  json["model"]["ignore_merges"] = true;
  EXPECT_THAT(MustEncode(*MustLoad(json), "aba"), ElementsAre(4));
}

// By the definition: join the leftmost of the best-ranked pairs, again and
// again.
std::vector<std::string> NaiveBpe(const std::string& text,
                                  const Pairs& merges) {
  std::vector<std::string> symbols;
  for (const char c : text) symbols.emplace_back(1, c);
  for (;;) {
    size_t best_rank = merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank] != std::make_pair(symbols[i], symbols[i + 1])) {
          continue;
        }
        best_rank = rank;
        best = i;
      }
    }
    if (best_rank == merges.size()) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + best + 1);
  }
}

TEST(BpeTest, AgreesWithTheDefinition) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 30; ++round) {
    // Random merges over a small alphabet, so that they compete.
    std::vector<std::string> tokens = {"a", "b", "c"};
    Pairs merges;
    // Few of them leave pairs of characters that nothing joins.
    const size_t num_merges = 3 + random() % 25;
    while (merges.size() < num_merges) {
      const auto& left = tokens[random() % tokens.size()];
      const auto& right = tokens[random() % tokens.size()];
      const std::pair<std::string, std::string> pair(left, right);
      if (std::count(merges.begin(), merges.end(), pair) > 0) continue;
      const std::string joined = left + right;
      if (joined.size() > 12) continue;
      merges.push_back(pair);
      if (std::count(tokens.begin(), tokens.end(), joined) == 0) {
        tokens.push_back(joined);
      }
    }
    const auto tokenizer = MustLoad(SmallJson(tokens, merges));
    for (int i = 0; i < 40; ++i) {
      // Short words take another way than long ones.
      std::string text;
      for (size_t n = random() % (i % 2 ? 20 : 200); n > 0; --n) {
        text.push_back(static_cast<char>('a' + random() % 3));
      }
      std::vector<std::string> found;
      for (const int32_t id : MustEncode(*tokenizer, text)) {
        found.push_back(tokenizer->Decode({&id, 1}, false));
      }
      ASSERT_EQ(found, NaiveBpe(text, merges)) << text;
    }
  }
}

TEST(BpeTest, TheCacheChangesNothing) {
  std::mt19937_64 random(TestSeed());
  for (const Family family : kAllFamilies) {
    const std::string json = FamilyJson(family).dump();
    const auto spec = ParseTokenizerSpec(json, "", "tokenizer.json");
    ASSERT_TRUE(spec.ok());
    auto config = MakeBpeConfig(*spec, "tokenizer.json");
    ASSERT_TRUE(config.ok());
    const BpeModel model(*std::move(config));
    WordCache cache;
    for (int i = 0; i < 300; ++i) {
      const std::string word = MakeText(random() % 100, random() % 6 + 1);
      std::vector<int32_t> cached, uncached;
      model.Encode(word, &cache, &cached);
      model.Encode(word, nullptr, &uncached);
      ASSERT_EQ(cached, uncached) << FamilyName(family) << " " << word;
    }
  }
}

}  // namespace
}  // namespace overfill
