#include "benchmarks/serving/workload.h"

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr int kRequests = 20'000;

Workload MustMake(WorkloadOptions options) {
  auto workload = Workload::Make(std::move(options));
  EXPECT_TRUE(workload.ok()) << workload.status();
  return *std::move(workload);
}

WorkloadOptions Mixed() {
  WorkloadOptions options;
  options.seed = TestSeed();
  options.prompt = *LengthDistribution::Parse("uniform:10:20");
  options.output = *LengthDistribution::Parse("uniform:1:50");
  options.cancel_fraction = 0.1;
  options.slow_fraction = 0.2;
  options.dead_fraction = 0.05;
  options.deadline_fraction = 0.3;
  options.cancel_within_seconds = 2;
  options.tiny_deadline_seconds = 0.03;
  options.timeout_seconds = 40;
  options.min_priority = -2;
  options.max_priority = 2;
  options.paths = {"two_stage", "full"};
  return options;
}

void ExpectShare(int count, double share) {
  EXPECT_NEAR(static_cast<double>(count) / kRequests, share,
              6 * std::sqrt(share * (1 - share) / kRequests));
}

TEST(WorkloadTest, FatesComeInTheirShares) {
  Workload workload = MustMake(Mixed());
  int cancels = 0, slow = 0, dead = 0, tiny = 0, full = 0;
  std::map<int32_t, int> priorities;
  for (int i = 0; i < kRequests; ++i) {
    const PlannedRequest request = workload.Next();
    EXPECT_EQ(request.index, i);
    const bool cancel = request.cancel_after_tokens.has_value();
    EXPECT_EQ(cancel, request.cancel_after_seconds.has_value());
    if (cancel) {
      EXPECT_GE(*request.cancel_after_tokens, 1);
      EXPECT_LE(*request.cancel_after_tokens, request.max_tokens);
      EXPECT_LE(*request.cancel_after_seconds, 2);
    }
    const bool is_slow = request.reader == ReaderKind::kSlow;
    const bool is_dead = request.reader == ReaderKind::kDead;
    EXPECT_LE(cancel + is_slow + is_dead + request.tiny_deadline, 1);
    if (request.tiny_deadline) {
      EXPECT_GT(request.timeout_seconds, 0);
      EXPECT_LE(request.timeout_seconds, 0.03);
    } else {
      EXPECT_EQ(request.timeout_seconds, 40);
    }
    cancels += cancel, slow += is_slow, dead += is_dead;
    tiny += request.tiny_deadline, full += request.path == "full";
    ++priorities[request.priority];
  }
  ExpectShare(cancels, 0.1);
  ExpectShare(slow, 0.2);
  ExpectShare(dead, 0.05);
  ExpectShare(tiny, 0.3);
  ExpectShare(full, 0.5);
  EXPECT_EQ(priorities.size(), 5u);
  for (const auto& [priority, count] : priorities) ExpectShare(count, 0.2);
}

TEST(WorkloadTest, ARequestIsTheSameAtAnyRate) {
  WorkloadOptions options = Mixed();
  Workload slow = MustMake(options);
  options.rate = 1000;
  options.burstiness = 0.5;
  Workload fast = MustMake(options);
  options.seed += 1;
  Workload other = MustMake(options);
  int different = 0;
  for (int i = 0; i < 100; ++i) {
    const PlannedRequest a = slow.Next(), b = fast.Next(), c = other.Next();
    EXPECT_EQ(a.prompt_seed, b.prompt_seed);
    EXPECT_EQ(a.sampling_seed, b.sampling_seed);
    EXPECT_EQ(a.max_tokens, b.max_tokens);
    EXPECT_EQ(a.reader, b.reader);
    EXPECT_EQ(slow.PromptTokens(a, 1000), fast.PromptTokens(b, 1000));
    EXPECT_GT(a.at_seconds, b.at_seconds);
    different += a.prompt_seed != c.prompt_seed;
  }
  EXPECT_EQ(different, 100);
}

TEST(WorkloadTest, PromptsShareTheirPrefixOnly) {
  WorkloadOptions options;
  options.seed = TestSeed();
  options.prompt = *LengthDistribution::Parse("uniform:50:150");
  options.prefix_tokens = 100;
  options.num_prefixes = 3;
  Workload workload = MustMake(options);
  std::map<int32_t, std::vector<int32_t>> prefixes;
  std::map<int32_t, int> suffix_heads;  // first ids behind the prefix
  int long_prompts = 0;
  for (int i = 0; i < 200; ++i) {
    const PlannedRequest request = workload.Next();
    const auto tokens = workload.PromptTokens(request, 128256);
    ASSERT_EQ(tokens.size(), static_cast<size_t>(request.num_prompt_tokens));
    EXPECT_THAT(tokens,
                Each(testing::AllOf(testing::Ge(0), testing::Lt(128256))));
    std::vector<int32_t>& prefix = prefixes[request.prefix];
    for (size_t j = 0; j < std::min<size_t>(100, tokens.size()); ++j) {
      if (j < prefix.size()) {
        ASSERT_EQ(tokens[j], prefix[j]);
      } else {
        prefix.push_back(tokens[j]);
      }
    }
    if (tokens.size() > 100) {
      ++long_prompts;
      ++suffix_heads[tokens[100]];
    }
  }
  ASSERT_EQ(prefixes.size(), 3u);
  EXPECT_NE(prefixes[0], prefixes[1]);
  EXPECT_GT(long_prompts, 20);
  // Of 128256 ids, hardly two of them equal.
  EXPECT_GE(suffix_heads.size(), static_cast<size_t>(long_prompts - 3));
}

TEST(WorkloadTest, FollowsATrace) {
  const auto trace = ParseTrace(
      "{\"at_seconds\": 0.5, \"prompt_tokens\": 7, \"output_tokens\": 3}\n\n"
      "{\"at_seconds\": 2, \"prompt_tokens\": 9, \"output_tokens\": 1}\n",
      "t");
  ASSERT_TRUE(trace.ok()) << trace.status();
  WorkloadOptions options;
  options.trace = *trace;
  options.prompt = *LengthDistribution::Parse("trace");
  options.output = *LengthDistribution::Parse("trace");
  Workload workload = MustMake(options);
  ASSERT_FALSE(workload.AtEnd());
  PlannedRequest request = workload.Next();
  EXPECT_EQ(request.at_seconds, 0.5);
  EXPECT_EQ(request.num_prompt_tokens, 7);
  EXPECT_EQ(request.max_tokens, 3);
  request = workload.Next();
  EXPECT_EQ(request.at_seconds, 2);
  EXPECT_EQ(request.num_prompt_tokens, 9);
  EXPECT_TRUE(workload.AtEnd());
}

TEST(WorkloadTest, NamesTheBadLineOfATrace) {
  const std::string good =
      "{\"at_seconds\": 1, \"prompt_tokens\": 7, \"output_tokens\": 3}\n";
  for (const char* bad :
       {"7", "{", "{\"at_seconds\": 1, \"prompt_tokens\": 7}",
        "{\"at_seconds\": 1, \"prompt_tokens\": 0, \"output_tokens\": 3}",
        "{\"at_seconds\": 1, \"prompt_tokens\": 1.5, \"output_tokens\": 3}",
        "{\"at_seconds\": -1, \"prompt_tokens\": 7, \"output_tokens\": 3}",
        "{\"at_seconds\": \"x\", \"prompt_tokens\": 7, \"output_tokens\": 3}",
        "{\"at_seconds\": 0.9, \"prompt_tokens\": 7, \"output_tokens\": 3}"}) {
    const auto trace = ParseTrace(good + bad, "file");
    ASSERT_FALSE(trace.ok()) << bad;
    EXPECT_THAT(std::string(trace.status().message()), HasSubstr("file:2"));
  }
  EXPECT_FALSE(ParseTrace("\n", "file").ok());
}

TEST(WorkloadTest, RefusesFractionsOfMoreThanAll) {
  WorkloadOptions options;
  options.cancel_fraction = 0.6;
  options.dead_fraction = 0.5;
  EXPECT_FALSE(Workload::Make(options).ok());
  options.dead_fraction = 0.4;
  EXPECT_TRUE(Workload::Make(options).ok());
  options.slow_fraction = -0.1;
  EXPECT_FALSE(Workload::Make(options).ok());
  options.slow_fraction = 0;
  options.output = *LengthDistribution::Parse("trace");
  EXPECT_FALSE(Workload::Make(options).ok());
}

}  // namespace
}  // namespace overfill
