// Several tokens drawn from one row.
#include <cstdint>
#include <random>
#include <set>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/model_runner.h"
#include "gtest/gtest.h"
#include "tests/engine/model_runner_fixture.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

// Samples of one request, and others: seeds, temperatures, penalties and bans
// of their own.
class ModelRunnerDraws : public ModelRunnerTest {
 protected:
  ModelRunnerDraws() : params_(kNumDraws) {
    std::mt19937_64 random(TestSeed());
    for (int32_t i = 0; i < kNumDraws; ++i) {
      SamplingParams& params = params_[i];
      params.temperature = i % 4 == 3 ? 0 : 1.5f;
      params.seed = i % 2 ? 77 : random();
      if (i % 3 == 1) params.repetition_penalty = 1.5f;
      if (i % 5 == 2) {
        params.logit_bias = {
            {static_cast<int32_t>(random() % TinyModel::kVocab), 3.0f}};
      }
      if (i % 7 == 5) params.num_logprobs = 2;
    }
    for (int32_t i = 0; i < kNumDraws; ++i) {
      states_.emplace_back(&params_[i], tokens_, /*sample_index=*/i);
    }
    for (const SamplingState& state : states_) draws_.push_back(&state);
  }

  // The first `num_draws` draws from one row, which is nobody else's.
  SequenceStep Drawing(int32_t num_rows, int32_t first_block, size_t begin,
                       size_t num_draws) {
    SequenceStep step = Rows(0, num_rows, first_block);
    step.draws = std::span(draws_).subspan(begin, num_draws);
    return step;
  }

  // Each draw in a step of its own.
  std::vector<SampledToken> Apart(int32_t num_rows, int32_t first_block) {
    std::vector<SampledToken> tokens;
    for (int32_t i = 0; i < kNumDraws; ++i) {
      Run({Drawing(num_rows, first_block, i, 1)});
      tokens.push_back(last_result_.tokens.at(0));
    }
    return tokens;
  }

  static void ExpectSame(std::span<const SampledToken> got,
                         std::span<const SampledToken> want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(got[i].status.ok());
      EXPECT_EQ(got[i].token_id, want[i].token_id) << "draw " << i;
      ASSERT_EQ(got[i].top_logprobs.size(), want[i].top_logprobs.size());
      EXPECT_NEAR(got[i].logprob, want[i].logprob, kTolerance);
    }
  }

  static constexpr int32_t kNumDraws = 24;
  std::vector<SamplingParams> params_;
  std::vector<SamplingState> states_;
  std::vector<const SamplingState*> draws_;
};

TEST_F(ModelRunnerDraws, OfOneRowAreThoseOfSeparateSteps) {
  const std::vector<SampledToken> apart = Apart(9, 0);
  std::set<int32_t> ids;
  for (const SampledToken& token : apart) ids.insert(token.token_id);
  EXPECT_GT(ids.size(), 5u);

  Run({Drawing(9, 10, 0, kNumDraws)});
  ExpectSame(last_result_.tokens, apart);
  // Beside others, silent and drawing, in the order of the batch.
  SequenceStep silent = Rows(0, 6, 30);
  silent.draws = {};
  const auto logits = Run({Rows(0, 12, 40), Drawing(9, 10, 3, 9), silent,
                           Drawing(9, 50, 12, kNumDraws - 12), Rows(0, 5, 60)});
  const std::span<const SampledToken> tokens(last_result_.tokens);
  ASSERT_EQ(tokens.size(), 23u);
  EXPECT_EQ(tokens.front().token_id, ArgMax(logits[0]));
  ExpectSame(tokens.subspan(1, 21), std::span(apart).subspan(3));
  EXPECT_EQ(tokens.back().token_id, ArgMax(logits[4]));
}

TEST_F(ModelRunnerDraws, FillAStepToItsLimit) {
  const std::vector<const SamplingState*> full(kLimits.max_sequences, &greedy_);
  SequenceStep step = Rows(0, 4, 0);
  step.draws = full;
  SequenceStep silent = Rows(0, 4, 10);
  silent.draws = {};
  const auto logits = Run({step, silent});
  ASSERT_EQ(last_result_.tokens.size(), full.size());
  for (const SampledToken& token : last_result_.tokens) {
    EXPECT_EQ(token.token_id, ArgMax(logits[0]));
  }
}

TEST_F(ModelRunnerDraws, OfANonFiniteRowAllFail) {
  std::vector<int32_t> bad(tokens_.begin(), tokens_.begin() + 9);
  bad[4] = TinyModel::kPoisonedToken;
  const std::vector<SampledToken> apart = Apart(9, 0);
  SequenceStep poisoned = Drawing(9, 30, 0, 4);
  poisoned.token_ids = bad;
  Run({Drawing(9, 10, 0, 5), poisoned, Drawing(9, 20, 5, 6)});
  const std::span<const SampledToken> tokens(last_result_.tokens);
  ASSERT_EQ(tokens.size(), 15u);
  ExpectSame(tokens.first(5), std::span(apart).first(5));
  for (const SampledToken& token : tokens.subspan(5, 4)) {
    EXPECT_EQ(token.status.code(), absl::StatusCode::kInternal);
    EXPECT_EQ(token.token_id, -1);
  }
  ExpectSame(tokens.last(6), std::span(apart).subspan(5, 6));
}

TEST_F(ModelRunnerDraws, AnIdOutsideTheVocabularyFailsItsDrawAlone) {
  const std::vector<SampledToken> apart = Apart(7, 0);
  SamplingParams params = Greedy();
  params.logit_bias = {{TinyModel::kVocab, 1.0f}};
  const SamplingState state(&params, {}, 0);
  std::vector<const SamplingState*> draws = draws_;
  draws[8] = &state;
  SequenceStep step = Rows(0, 7, 10);
  step.draws = draws;
  Run({step});
  std::vector<SampledToken> tokens = last_result_.tokens;
  ASSERT_EQ(tokens.size(), apart.size());
  EXPECT_EQ(tokens[8].status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(tokens[8].token_id, -1);
  tokens[8] = apart[8];
  ExpectSame(tokens, apart);
}

}  // namespace
}  // namespace overfill
