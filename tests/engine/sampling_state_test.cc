#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "engine/sampling.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace overfill {
// Beside TokenAdjustment, where the matchers look for it.
static bool operator==(const TokenAdjustment& a, const TokenAdjustment& b) {
  return a.token_id == b.token_id && a.bias == b.bias &&
         a.output_count == b.output_count && a.seen == b.seen &&
         a.banned == b.banned;
}

namespace {

std::vector<TokenAdjustment> FillAlone(const SamplingState& state) {
  std::vector<TokenAdjustment> result;
  const SampleParams params = state.Fill(result);
  EXPECT_EQ(params.adjustments_begin, 0);
  EXPECT_EQ(params.adjustments_end, static_cast<int32_t>(result.size()));
  return result;
}

TEST(SamplingState, PlainRulesNeedNoAdjustments) {
  const SamplingParams params;
  const std::vector<int32_t> prompt = {5, 6, 7};
  SamplingState state(&params, prompt, 0);
  state.Accept(5);
  state.Accept(9);
  EXPECT_TRUE(FillAlone(state).empty());
  EXPECT_EQ(state.token_index(), 2u);
}

TEST(SamplingState, ParamsArePassedOn) {
  SamplingParams params;
  params.temperature = 0.7f;
  params.top_p = 0.9f;
  params.min_p = 0.05f;
  params.top_k = 40;
  params.repetition_penalty = 1.1f;
  params.presence_penalty = 0.2f;
  params.frequency_penalty = 0.3f;
  params.seed = 1234567890123u;
  params.num_logprobs = 5;
  SamplingState state(&params, {}, 3);
  state.Accept(1);
  std::vector<TokenAdjustment> adjustments(7);
  const SampleParams filled = state.Fill(adjustments);
  EXPECT_EQ(filled.temperature, 0.7f);
  EXPECT_EQ(filled.top_p, 0.9f);
  EXPECT_EQ(filled.min_p, 0.05f);
  EXPECT_EQ(filled.top_k, 40);
  EXPECT_EQ(filled.repetition_penalty, 1.1f);
  EXPECT_EQ(filled.presence_penalty, 0.2f);
  EXPECT_EQ(filled.frequency_penalty, 0.3f);
  EXPECT_EQ(filled.seed, 1234567890123u);
  EXPECT_EQ(filled.num_logprobs, 5);
  EXPECT_EQ(filled.sample_index, 3u);
  EXPECT_EQ(filled.token_index, 1u);
  // Appended behind what other rows have.
  EXPECT_EQ(filled.adjustments_begin, 7);
  EXPECT_EQ(filled.adjustments_end, 8);
  EXPECT_EQ(adjustments.size(), 8u);
}

TEST(SamplingState, RepetitionMarksThePromptAndTheOutput) {
  SamplingParams params;
  params.repetition_penalty = 1.3f;
  const std::vector<int32_t> prompt = {8, 3, 8};
  SamplingState state(&params, prompt, 0);
  EXPECT_THAT(FillAlone(state),
              testing::ElementsAre(TokenAdjustment{.token_id = 3, .seen = 1},
                                   TokenAdjustment{.token_id = 8, .seen = 1}));
  state.Accept(8);
  state.Accept(1);
  EXPECT_THAT(
      FillAlone(state),
      testing::ElementsAre(
          TokenAdjustment{.token_id = 1, .output_count = 1, .seen = 1},
          TokenAdjustment{.token_id = 3, .seen = 1},
          TokenAdjustment{.token_id = 8, .output_count = 1, .seen = 1}));
}

TEST(SamplingState, OutputPenaltiesDoNotLookAtThePrompt) {
  SamplingParams params;
  params.frequency_penalty = 0.5f;
  const std::vector<int32_t> prompt = {8, 3};
  SamplingState state(&params, prompt, 0);
  EXPECT_TRUE(FillAlone(state).empty());
  state.Accept(3);
  state.Accept(3);
  EXPECT_THAT(FillAlone(state),
              testing::ElementsAre(TokenAdjustment{
                  .token_id = 3, .output_count = 2, .seen = 1}));
}

TEST(SamplingState, MinTokensBansUntilReachedAndKeepsTheBias) {
  SamplingParams params;
  params.min_tokens = 2;
  params.min_tokens_banned_ids = {9, 4, 9};
  params.logit_bias = {{4, 1.5f}};
  SamplingState state(&params, {}, 0);
  const auto banned = testing::ElementsAre(
      TokenAdjustment{.token_id = 4, .bias = 1.5f, .banned = 1},
      TokenAdjustment{.token_id = 9, .banned = 1});
  EXPECT_THAT(FillAlone(state), banned);
  state.Accept(1);
  EXPECT_THAT(FillAlone(state), banned);
  state.Accept(1);
  EXPECT_THAT(FillAlone(state), testing::ElementsAre(TokenAdjustment{
                                    .token_id = 4, .bias = 1.5f}));
}

TEST(SamplingState, CopiesGoTheirOwnWay) {
  SamplingParams params;
  params.presence_penalty = 1;
  SamplingState first(&params, {}, 0);
  first.Accept(2);
  SamplingState second = first;
  second.Accept(5);
  EXPECT_EQ(FillAlone(first).size(), 1u);
  EXPECT_EQ(FillAlone(second).size(), 2u);
}

// Against a map kept in the plainest way.
TEST(SamplingState, RandomHistoriesMatchAMap) {
  std::mt19937 random(7);
  const auto draw = [&random](int n) { return static_cast<int>(random() % n); };
  for (int round = 0; round < 300; ++round) {
    SamplingParams params;
    if (draw(2) == 0) params.repetition_penalty = 1.2f;
    if (draw(2) == 0) params.presence_penalty = 0.4f;
    if (draw(2) == 0) params.frequency_penalty = 0.4f;
    params.min_tokens = draw(6);
    const std::set<int32_t> banned = {draw(20), draw(20)};
    params.min_tokens_banned_ids.assign(banned.begin(), banned.end());
    std::map<int32_t, float> bias;
    for (int i = draw(5); i > 0; --i) bias[draw(20)] = 1.0f + draw(3);
    params.logit_bias.assign(bias.begin(), bias.end());
    std::vector<int32_t> prompt(draw(10));
    for (int32_t& id : prompt) id = draw(20);

    SamplingState state(&params, prompt, 0);
    std::map<int32_t, int32_t> counts;
    std::set<int32_t> seen(prompt.begin(), prompt.end());
    for (int step = 0; step < 8; ++step) {
      std::map<int32_t, TokenAdjustment> got;
      for (const TokenAdjustment& a : FillAlone(state)) {
        EXPECT_TRUE(got.emplace(a.token_id, a).second) << "twice in the list";
      }
      for (int32_t id = 0; id < 20; ++id) {
        const TokenAdjustment a = got[id];
        EXPECT_EQ(a.bias, bias.count(id) ? bias[id] : 0);
        EXPECT_EQ(a.banned, step < params.min_tokens && banned.count(id));
        if (params.repetition_penalty != 1) {
          EXPECT_EQ(a.seen, seen.count(id));
        }
        if (params.presence_penalty != 0 || params.frequency_penalty != 0) {
          EXPECT_EQ(a.output_count, counts[id]);
        }
      }
      const int32_t token = draw(20);
      state.Accept(token);
      ++counts[token];
      seen.insert(token);
    }
  }
}

}  // namespace
}  // namespace overfill
