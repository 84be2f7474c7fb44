#include "engine/tokenizer/unicode.h"

#include <utf8proc.h>

#include <cstdlib>
#include <random>

#include "gtest/gtest.h"
#include "tests/tokenizer/test_util.h"

namespace overfill {
namespace {

std::string Lossy(absl::string_view bytes) {
  std::string text;
  EXPECT_EQ(AppendLossyUtf8(bytes, /*is_end=*/true, &text), bytes.size());
  return text;
}

std::string RandomBytes(std::mt19937_64& random, size_t max_bytes) {
  static constexpr uint8_t kBytes[] = {
      'a',  0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF,
      0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF, 0xE2, 0x82, 0xAC};
  std::string bytes;
  for (size_t i = random() % (max_bytes + 1); i > 0; --i) {
    bytes.push_back(static_cast<char>(kBytes[random() % std::size(kBytes)]));
  }
  return bytes;
}

TEST(UnicodeTest, ReplacesMaximalBrokenSequences) {
  // Tables 3-8 to 3-11 of the Unicode standard.
  EXPECT_EQ(Lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), "��������A");
  EXPECT_EQ(Lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), "��������A");
  EXPECT_EQ(Lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), "�����A��B");
  EXPECT_EQ(Lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), "����A");
  EXPECT_EQ(Lossy("\xE2\x82"), "�");
  EXPECT_EQ(Lossy("\xE2\x82\xAC"), "€");
}

TEST(UnicodeTest, LossyDecodingDoesNotDependOnTheCuts) {
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 3000; ++i) {
    const std::string bytes = RandomBytes(random, 12);
    const std::string whole = Lossy(bytes);
    EXPECT_TRUE(IsValidUtf8(whole));
    EXPECT_EQ(IsValidUtf8(bytes), whole == bytes);
    std::string joined, pending;
    for (const char byte : bytes) {
      pending.push_back(byte);
      pending.erase(0, AppendLossyUtf8(pending, /*is_end=*/false, &joined));
      EXPECT_LE(pending.size(), 3u);
    }
    AppendLossyUtf8(pending, /*is_end=*/true, &joined);
    EXPECT_EQ(joined, whole);
  }
}

TEST(UnicodeTest, FindsTheFirstInvalidByte) {
  EXPECT_EQ(FindInvalidUtf8(""), 0u);
  EXPECT_EQ(FindInvalidUtf8("a€b"), 5u);
  EXPECT_EQ(FindInvalidUtf8("a€\xE2\x82"), 4u);
  EXPECT_EQ(FindInvalidUtf8("a\xED\xA0\x80"), 1u);
  EXPECT_EQ(FindInvalidUtf8(absl::string_view("\0\0", 2)), 2u);
}

TEST(UnicodeTest, EveryCharacterSurvives) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    AppendUtf8(c, &text);
    const Utf8Char decoded = DecodeUtf8(text, 0);
    ASSERT_EQ(decoded.code_point, c);
    ASSERT_EQ(decoded.size_bytes, text.size());
    size_t pos = 0;
    ASSERT_EQ(NextChar(text, &pos), c);
    ASSERT_EQ(pos, text.size());
  }
}

TEST(UnicodeTest, Classes) {
  EXPECT_EQ(CharClass('a'), kLetter | kLowerLike | kWord);
  EXPECT_EQ(CharClass('A'), kLetter | kUpperLike | kWord);
  EXPECT_EQ(CharClass(0x1C5), kLetter | kUpperLike | kWord);  // Lt
  EXPECT_EQ(CharClass(0x4E2D), kLetter | kUpperLike | kLowerLike | kWord);
  EXPECT_EQ(CharClass(0x301), kUpperLike | kLowerLike | kWord);
  EXPECT_EQ(CharClass('5'), kNumber | kWord);
  EXPECT_EQ(CharClass(0xBD), kNumber);
  EXPECT_EQ(CharClass('_'), kWord);
  EXPECT_EQ(CharClass('.'), 0);
  for (const char32_t c : {0x9, 0xA, 0xB, 0xC, 0xD, 0x20, 0x85, 0xA0, 0x1680,
                           0x2028, 0x2029, 0x202F, 0x205F, 0x3000}) {
    EXPECT_EQ(CharClass(c), kSpace) << std::hex << uint32_t{c};
  }
  for (const char32_t c : {0x1C, 0x180E, 0x200B, 0x2060, 0xFEFF}) {
    EXPECT_EQ(CharClass(c), 0) << std::hex << uint32_t{c};
  }
  EXPECT_EQ(CharClass(0x10428), kLetter | kLowerLike | kWord);
  EXPECT_EQ(CharClass(0x10FFFF), 0);
}

TEST(UnicodeTest, Nfc) {
  EXPECT_EQ(NormalizeNfc(""), "");
  EXPECT_EQ(NormalizeNfc("plain é"), "plain é");
  EXPECT_EQ(NormalizeNfc("e\u0301"), "é");
  EXPECT_EQ(NormalizeNfc("\u212B"), "Å");
  EXPECT_EQ(NormalizeNfc("\u1100\u1161\u11A8"), "각");
  EXPECT_EQ(NormalizeNfc("\u0344"), "\u0308\u0301");
  EXPECT_EQ(NormalizeNfc("\u0958"), "\u0915\u093C");  // never composed
  EXPECT_EQ(NormalizeNfc("a\u0301\u0327"), "á\u0327");
  EXPECT_EQ(NormalizeNfc("c\u0301\u0327"), "ḉ");
  EXPECT_EQ(NormalizeNfc("\uFB01"), "\uFB01");  // compatibility only
}

TEST(UnicodeTest, NfcAgreesWithTheLibrary) {
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 3000; ++i) {
    std::string text = RandomText(random, 40);
    text.erase(std::remove(text.begin(), text.end(), '\0'), text.end());
    auto* const expected = reinterpret_cast<char*>(
        utf8proc_NFC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str())));
    ASSERT_NE(expected, nullptr);
    EXPECT_EQ(NormalizeNfc(text), expected);
    std::free(expected);
  }
}

}  // namespace
}  // namespace overfill
