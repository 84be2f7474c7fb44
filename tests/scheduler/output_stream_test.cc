#include "scheduler/output_stream.h"

#include <random>
#include <string>
#include <vector>

#include "engine/tokenizer/unicode.h"
#include "gtest/gtest.h"
#include "scheduler/stop_matcher.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

// What the matcher must find, found the slow way.
struct Found {
  std::string text;
  std::string stop;  // "": none
};

Found FindStop(const std::string& text, const std::vector<std::string>& stops,
               bool include_stop) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string longest;
    for (const std::string& stop : stops) {
      if (stop.size() > longest.size() && stop.size() <= end &&
          text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = stop;
      }
    }
    if (longest.empty()) continue;
    return {text.substr(0, include_stop ? end : end - longest.size()), longest};
  }
  return {text, ""};
}

bool MayBegin(const std::string& suffix,
              const std::vector<std::string>& stops) {
  for (const std::string& stop : stops) {
    if (stop.size() > suffix.size() &&
        stop.compare(0, suffix.size(), suffix) == 0) {
      return true;
    }
  }
  return false;
}

// Feeds `text` cut at the bits of `cuts`, checks that only what must be is
// held back, and compares with FindStop.
void CheckCut(const std::string& text, uint64_t cuts,
              const std::vector<std::string>& stops, bool include_stop) {
  StopMatcher matcher(stops, include_stop);
  std::string out;
  size_t begin = 0;
  for (size_t end = 1; end <= text.size() && !matcher.matched(); ++end) {
    if (end < text.size() && !(cuts >> (end % 64) & 1)) continue;
    out += matcher.Append(text.substr(begin, end - begin));
    begin = end;
    if (matcher.matched()) break;
    const std::string held = text.substr(out.size(), end - out.size());
    ASSERT_TRUE(held.empty() || MayBegin(held, stops)) << held;
    for (size_t more = held.size() + 1; more <= end; ++more) {
      ASSERT_FALSE(MayBegin(text.substr(end - more, more), stops));
    }
  }
  if (!matcher.matched()) out += matcher.Flush();
  const Found expected = FindStop(text, stops, include_stop);
  ASSERT_EQ(out, expected.text);
  ASSERT_EQ(matcher.matched().value_or(""), expected.stop);
}

TEST(StopMatcher, EverySplitOfATextGivesTheSame) {
  const std::string text = "aabaabaac";
  for (const std::vector<std::string>& stops :
       std::vector<std::vector<std::string>>{{"aabaac"},
                                             {"baa", "aab"},
                                             {"aac", "abaac", "c"},
                                             {"x"},
                                             {"aabaabaacd"},
                                             {"a"},
                                             {}}) {
    for (uint64_t cuts = 0; cuts < 512; ++cuts) {
      for (bool include_stop : {false, true}) {
        ASSERT_NO_FATAL_FAILURE(CheckCut(text, cuts, stops, include_stop));
      }
    }
  }
}

TEST(StopMatcher, RandomTextsAndStops) {
  std::mt19937_64 random(TestSeed());
  const auto word = [&](size_t most) {
    std::string text;
    for (size_t i = 1 + random() % most; i > 0; --i) {
      text.push_back(static_cast<char>('a' + random() % 2));
    }
    return text;
  };
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::string> stops;
    for (size_t n = random() % 4; n > 0; --n) stops.push_back(word(6));
    ASSERT_NO_FATAL_FAILURE(
        CheckCut(word(30), random(), stops, random() % 2 == 0));
  }
}

TEST(StopMatcher, LongRepetitiveStopsCostLittle) {
  // 64 stop strings of a kilobyte that almost match all the time.
  std::vector<std::string> stops;
  for (int i = 0; i < 64; ++i) {
    stops.push_back(std::string(1000 + i, 'a') + "b");
  }
  StopMatcher matcher(stops, false);
  std::string out;
  const std::string text(100000, 'a');
  for (size_t i = 0; i < text.size(); i += 4) {
    out += matcher.Append(text.substr(i, 4));
  }
  // A quadratic one would not come to this point within the test's time.
  EXPECT_EQ(out.size(), text.size() - 1063);
  out += matcher.Flush();
  EXPECT_EQ(out, text);
}

Request Plain(int32_t max_tokens) {
  Request request;
  request.prompt_ids = {ByteToken('x')};
  request.stop_rules.max_tokens = max_tokens;
  return request;
}

struct Answer {
  std::string text;
  std::vector<std::string> deltas;
  int32_t num_tokens = 0;
  std::optional<OutputStream::End> end;
};

Answer Feed(const Request& request, const std::vector<int32_t>& tokens) {
  OutputStream stream(&TestTokenizer(), &request);
  Answer answer;
  for (int32_t id : tokens) {
    SampledToken token;
    token.token_id = id;
    OutputStream moved = stream;  // as it crosses from pool to pool
    OutputStream::Output output = moved.Accept(token);
    stream = moved;
    answer.text += output.delta.text;
    answer.deltas.push_back(output.delta.text);
    EXPECT_EQ(output.delta.token_ids, std::vector<int32_t>{id});
    EXPECT_TRUE(IsValidUtf8(output.delta.text));
    answer.num_tokens = stream.num_tokens();
    answer.end = output.end;
    if (output.end) break;
  }
  return answer;
}

std::vector<int32_t> Bytes(const std::string& text) {
  std::vector<int32_t> ids;
  for (char byte : text) ids.push_back(ByteToken(byte));
  return ids;
}

TEST(OutputStream, MaxTokensEndsWithAllTheText) {
  Request request = Plain(3);
  request.stop_rules.stop = {"abcd"};
  const Answer answer = Feed(request, Bytes("abcd"));
  ASSERT_TRUE(answer.end.has_value());
  EXPECT_EQ(answer.end->reason, FinishReason::kLength);
  EXPECT_EQ(answer.text, "abc");  // held back, then known to be no stop
  EXPECT_EQ(answer.num_tokens, 3);
}

TEST(OutputStream, EosAndStopIdsAddNoText) {
  Request request = Plain(10);
  request.stop_rules.eos_ids = {ByteToken('!'), ByteToken('?')};
  request.stop_rules.stop_token_ids = {ByteToken('?'), ByteToken('.')};
  Answer answer = Feed(request, Bytes("hi!x"));
  EXPECT_EQ(answer.text, "hi");
  EXPECT_EQ(answer.num_tokens, 3);
  EXPECT_EQ(answer.end->reason, FinishReason::kEos);
  answer = Feed(request, Bytes("?"));
  EXPECT_EQ(answer.text, "");
  EXPECT_EQ(answer.end->reason, FinishReason::kEos);
  answer = Feed(request, Bytes("a.b"));
  EXPECT_EQ(answer.text, "a");
  EXPECT_EQ(answer.end->reason, FinishReason::kStop);
  EXPECT_EQ(std::get<int32_t>(answer.end->matched_stop), ByteToken('.'));
}

TEST(OutputStream, AStopStringOnTheLastTokenIsAStop) {
  Request request = Plain(2);
  request.stop_rules.stop = {"ab"};
  const Answer answer = Feed(request, Bytes("abc"));
  EXPECT_EQ(answer.end->reason, FinishReason::kStop);
  EXPECT_EQ(std::get<std::string>(answer.end->matched_stop), "ab");
  EXPECT_EQ(answer.text, "");
}

TEST(OutputStream, ACutCharacterComesWholeOrAsAReplacement) {
  const Request request = Plain(4);
  Answer answer = Feed(request, Bytes("\xe2\x82\xac!"));
  EXPECT_EQ(answer.text, "\xe2\x82\xac!");
  EXPECT_EQ(answer.deltas[0], "");
  EXPECT_EQ(answer.deltas[2], "\xe2\x82\xac");
  answer = Feed(Plain(2), Bytes("\xe2\x82"));
  EXPECT_EQ(answer.text, "\xef\xbf\xbd");
}

TEST(OutputStream, AStopStringThatTheFlushCompletesCounts) {
  Request request = Plain(2);
  request.stop_rules.stop = {"a\xef\xbf\xbd"};
  const Answer answer = Feed(request, Bytes("a\xe2"));
  EXPECT_EQ(answer.text, "");
  EXPECT_EQ(answer.end->reason, FinishReason::kStop);
}

TEST(OutputStream, LogprobsComeOnlyIfAskedFor) {
  Request request = Plain(5);
  SampledToken token;
  token.token_id = ByteToken('a');
  token.logprob = -1;
  token.top_logprobs = {{3, -0.5f}};
  OutputStream without(&TestTokenizer(), &request);
  EXPECT_TRUE(without.Accept(token).delta.logprobs.empty());
  request.sampling.num_logprobs = 1;
  OutputStream with(&TestTokenizer(), &request);
  const auto delta = with.Accept(token).delta;
  ASSERT_EQ(delta.logprobs.size(), 1u);
  EXPECT_EQ(delta.logprobs[0].logprob, -1);
  EXPECT_EQ(delta.logprobs[0].top, token.top_logprobs);
}

}  // namespace
}  // namespace overfill
