// Encoding takes near-linear time whatever the text holds. Measured as the
// growth of processor time when the text gets four times as long: a quadratic
// step would take sixteen times as long.
#include <algorithm>
#include <ctime>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "engine/tokenizer/unicode.h"
#include "gtest/gtest.h"
#include "tests/tokenizer/test_util.h"

namespace overfill {
namespace {

double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * now.tv_nsec;
}

// The best of three runs.
double EncodeSeconds(const Tokenizer& tokenizer, const std::string& text) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 3; ++i) {
    const double start = ThreadSeconds();
    MustEncode(tokenizer, text);
    best = std::min(best, ThreadSeconds() - start);
  }
  return best;
}

std::string Repeat(absl::string_view unit, size_t size_bytes) {
  std::string text;
  text.reserve(size_bytes + unit.size());
  while (text.size() < size_bytes) text.append(unit.data(), unit.size());
  return text;
}

// A cycle through many characters, which sorting by class has to move.
std::string CombiningMarks(size_t size_bytes) {
  std::string text = "a";
  for (uint32_t i = 0; text.size() < size_bytes; ++i) {
    AppendUtf8(0x300 + i * 7919 % 0x6F, &text);
  }
  return text;
}

std::string MixedLines(size_t size_bytes) {
  std::string text;
  for (uint32_t i = 0; text.size() < size_bytes; ++i) {
    text.push_back(" \n\t\r"[i * 2654435761u >> 30]);
  }
  return text;
}

struct Adversary {
  const char* name;
  std::function<std::string(size_t)> make;
};

Adversary Repeated(const char* name, const char* unit) {
  return {name, [unit](size_t size_bytes) { return Repeat(unit, size_bytes); }};
}

TEST(SpeedTest, TimeGrowsNearlyAsTheText) {
  const Adversary adversaries[] = {
      Repeated("one letter", "a"),
      Repeated("spaces", " "),
      {"combining marks", CombiningMarks},
      Repeated("one combining mark", "\u0301"),
      Repeated("emoji", "👩\u200D👩\u200D👧"),
      Repeated("digits", "1234567890"),
      {"mixed lines", MixedLines},
      Repeated("apostrophes", "'"),
      Repeated("case changes", "aA"),
      Repeated("half special tokens", "<|im_start<|"),
      Repeated("words that end in spaces", "word          "),
      Repeated("no spaces", "日本語中文字符"),
  };
  constexpr size_t kSmallBytes = 100000;
  for (const Family family : {Family::kGpt2, Family::kQwen3, Family::kO200k,
                              Family::kLlama2, Family::kOddByteLevel}) {
    const Tokenizer& tokenizer = FamilyTokenizer(family);
    for (const Adversary& adversary : adversaries) {
      const double small =
          EncodeSeconds(tokenizer, adversary.make(kSmallBytes));
      const double large =
          EncodeSeconds(tokenizer, adversary.make(4 * kSmallBytes));
      // A floor keeps timer noise out of the smallest ones.
      EXPECT_LT(large, 10 * std::max(small, 0.002))
          << FamilyName(family) << ", " << adversary.name;
    }
  }
}

TEST(SpeedTest, OrdinaryText) {
  const std::string text = MakeText(/*seed=*/3, 100000);
  for (const Family family :
       {Family::kLlama3, Family::kQwen3, Family::kLlama2}) {
    const double seconds = EncodeSeconds(FamilyTokenizer(family), text);
    const double rate = static_cast<double>(text.size()) / 1e6 / seconds;
    std::cout << FamilyName(family) << ": " << rate << " MB/s" << std::endl;
    // Far below what is reached, for sanitizers and shared machines.
    EXPECT_GT(rate, 0.05);
  }
}

}  // namespace
}  // namespace overfill
