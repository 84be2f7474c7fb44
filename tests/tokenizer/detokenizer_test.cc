#include "engine/tokenizer/detokenizer.h"

#include <random>
#include <string>
#include <vector>

#include "engine/tokenizer/unicode.h"
#include "gtest/gtest.h"
#include "tests/tokenizer/test_util.h"

namespace overfill {
namespace {

class DetokenizerTest : public ::testing::TestWithParam<Family> {
 protected:
  // Ids that break characters more often than chance would.
  std::vector<int32_t> RandomIds(size_t max_ids) {
    std::vector<int32_t> ids;
    for (size_t i = random_() % (max_ids + 1); i > 0; --i) {
      switch (random_() % 4) {
        case 0:
          ids.push_back(
              static_cast<int32_t>(random_() % (tokenizer_.vocab_size() + 4)) -
              2);
          break;
        case 1: {
          const auto text = MustEncode(tokenizer_, RandomText(random_, 4));
          ids.insert(ids.end(), text.begin(), text.end());
          break;
        }
        default:  // single bytes
          ids.push_back(static_cast<int32_t>(random_() % 262));
      }
    }
    return ids;
  }

  std::mt19937_64 random_{TestSeed()};
  const Tokenizer& tokenizer_ = FamilyTokenizer(GetParam());
};

INSTANTIATE_TEST_SUITE_P(All, DetokenizerTest,
                         ::testing::ValuesIn(kAllFamilies),
                         [](const auto& info) {
                           return std::string(FamilyName(info.param));
                         });

TEST_P(DetokenizerTest, DeltasJoinToTheWhole) {
  for (int i = 0; i < 600; ++i) {
    const std::vector<int32_t> ids = RandomIds(25);
    const bool skip = i % 2 == 0;
    Detokenizer detokenizer(&tokenizer_, skip);
    std::string joined;
    for (const int32_t id : ids) {
      // State moves by copies, as it does with a migrating sequence.
      if (random_() % 5 == 0) detokenizer = Detokenizer(detokenizer);
      const std::string delta = detokenizer.Append(id);
      ASSERT_TRUE(IsValidUtf8(delta));
      joined += delta;
    }
    joined += detokenizer.Flush();
    ASSERT_EQ(joined, tokenizer_.Decode(ids, skip));
  }
}

TEST_P(DetokenizerTest, DeltasContinueAPrompt) {
  for (int i = 0; i < 600; ++i) {
    const std::vector<int32_t> prompt = RandomIds(10);
    const std::vector<int32_t> rest = RandomIds(10);
    const bool skip = i % 2 == 0;
    Detokenizer reader(&tokenizer_, skip);
    std::string certain;
    for (const int32_t id : prompt) certain += reader.Append(id);
    Detokenizer detokenizer =
        Detokenizer::AfterPrompt(&tokenizer_, skip, prompt);
    std::string joined;
    for (const int32_t id : rest) joined += detokenizer.Append(id);
    joined += detokenizer.Flush();
    std::vector<int32_t> all = prompt;
    all.insert(all.end(), rest.begin(), rest.end());
    ASSERT_EQ(certain + joined, tokenizer_.Decode(all, skip));
  }
}

TEST_P(DetokenizerTest, TextComesAsSoonAsItIsCertain) {
  for (int i = 0; i < 200; ++i) {
    const std::vector<int32_t> ids = RandomIds(20);
    Detokenizer detokenizer(&tokenizer_, false);
    std::string joined;
    std::string bytes;
    for (const int32_t id : ids) {
      joined += detokenizer.Append(id);
      const absl::string_view token = tokenizer_.TokenBytes(id);
      bytes.append(token.data(), token.size());
      // At most three bytes of an unfinished character are held back.
      std::string text;
      const size_t consumed = AppendLossyUtf8(bytes, false, &text);
      ASSERT_GE(consumed + 3, bytes.size());
      if (tokenizer_.strip_count() == 0) {
        ASSERT_EQ(joined, text);
      }
    }
  }
}

TEST(DetokenizerCasesTest, HoldsAnUnfinishedCharacter) {
  const Tokenizer& llama = FamilyTokenizer(Family::kLlama2);
  Detokenizer detokenizer(&llama, true);
  const auto append = [&](const char* token) {
    return detokenizer.Append(*llama.TokenId(token));
  };
  EXPECT_EQ(append("<0xF0>"), "");
  EXPECT_EQ(append("<0x9F>"), "");
  EXPECT_EQ(append("<0x98>"), "");
  EXPECT_EQ(append("<0x80>"), "😀");
  EXPECT_EQ(append("<0xE2>"), "");
  EXPECT_EQ(append("</s>"), "");  // special: skipped, breaks nothing
  EXPECT_EQ(append("t"), "�t");
  EXPECT_EQ(append("<0xE2>"), "");
  EXPECT_EQ(append("<0x82>"), "");
  EXPECT_EQ(detokenizer.Flush(), "�");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(DetokenizerCasesTest, TheSpaceInFrontBelongsToTheWholeText) {
  const Tokenizer& llama = FamilyTokenizer(Family::kLlama2);
  const int32_t space = *llama.TokenId("▁");
  const int32_t bos = *llama.TokenId("<s>");
  const int32_t t = *llama.TokenId("t");
  Detokenizer alone(&llama, true);
  EXPECT_EQ(alone.Append(space), "");
  EXPECT_EQ(alone.Append(space), " ");
  EXPECT_EQ(alone.Append(t), "t");
  const int32_t prompt[] = {bos, space, t};
  Detokenizer behind = Detokenizer::AfterPrompt(&llama, true, prompt);
  EXPECT_EQ(behind.Append(space), " ");
  Detokenizer behind_bos = Detokenizer::AfterPrompt(&llama, true, {&bos, 1});
  EXPECT_EQ(behind_bos.Append(space), "");
  EXPECT_EQ(behind_bos.Append(space), " ");
}

}  // namespace
}  // namespace overfill
