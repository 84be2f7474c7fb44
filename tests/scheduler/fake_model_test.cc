// The model of arithmetic itself: what its draws depend on, and which batches
// it tells of.
#include "tests/scheduler/fake_model.h"

#include <array>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace overfill {
namespace {

constexpr int32_t kVocab = 1000;
constexpr uint64_t kSalt = 7;

class FakeModelTest : public testing::Test {
 protected:
  static SequenceStep Rows(std::span<const int32_t> tokens, int32_t start,
                           std::span<const int32_t> table) {
    return {.token_ids = tokens, .start_position = start, .block_table = table};
  }
  // What a fresh model has against the batch; "" when nothing.
  std::string Violation(const std::vector<SequenceStep>& sequences) {
    FakeModel model(kSalt, &store_, {16, 4, 64}, kVocab);
    EXPECT_TRUE(model.Run({.sequences = sequences}).ok());
    return model.violation();
  }

  FakeStore store_{16, 4};
  const std::vector<int32_t> prompt_ = {5, 6, 7, 8, 9, 10};
  const std::array<int32_t, 1> token_ = {3};
};

TEST_F(FakeModelTest, ADrawIsItsSamplesAnswer) {
  Request request;
  request.prompt_ids = prompt_;
  request.stop_rules.max_tokens = 1;
  std::vector<SamplingState> states;
  for (uint32_t sample = 0; sample < 4; ++sample) {
    states.emplace_back(&request.sampling, prompt_, sample);
  }
  std::vector<const SamplingState*> draws;
  for (const SamplingState& state : states) draws.push_back(&state);
  const std::array<int32_t, 2> table = {3, 1};
  SequenceStep step = Rows(prompt_, 0, table);
  step.draws = draws;
  FakeModel model(kSalt, &store_, {16, 4, 64}, kVocab);
  const auto result = model.Run({.sequences = {step}});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(model.violation(), "");
  ASSERT_EQ(result->tokens.size(), 4u);
  std::set<int32_t> ids;
  for (uint32_t sample = 0; sample < 4; ++sample) {
    EXPECT_EQ(std::vector<int32_t>{result->tokens[sample].token_id},
              FakeAnswer(request, kSalt, kSalt, kVocab, sample));
    ids.insert(result->tokens[sample].token_id);
  }
  EXPECT_GT(ids.size(), 1u);
}

TEST_F(FakeModelTest, SharedBlocksAreOnlyRead) {
  const std::array<int32_t, 2> one = {0, 1};
  const std::array<int32_t, 2> fork = {0, 2};
  EXPECT_EQ(Violation({Rows(token_, 5, one), Rows(token_, 6, fork)}), "");
  EXPECT_NE(Violation({Rows(token_, 5, one), Rows(token_, 5, one)}), "");
  // The first one's block 0 is the second one's to write.
  const std::array<int32_t, 1> writer = {0};
  EXPECT_NE(Violation({Rows(token_, 5, one), Rows(token_, 2, writer)}), "");
  EXPECT_NE(Violation({Rows(token_, 2, writer), Rows(token_, 5, one)}), "");
  const std::array<int32_t, 2> twice = {1, 1};
  EXPECT_NE(Violation({Rows(token_, 5, twice)}), "");
}

TEST_F(FakeModelTest, DrawsHaveALimit) {
  const SamplingParams params;
  const SamplingState state(&params, {}, 0);
  const std::vector<const SamplingState*> five(5, &state);
  const std::array<int32_t, 1> table = {0};
  const std::array<int32_t, 1> other = {1};
  SequenceStep step = Rows(token_, 0, table);
  SequenceStep second = Rows(token_, 0, other);
  step.draws = std::span(five).first(4);
  EXPECT_EQ(Violation({step, second}), "");
  second.draws = std::span(five).first(1);
  EXPECT_NE(Violation({step, second}), "");
  step.draws = five;
  EXPECT_NE(Violation({step}), "");
}

}  // namespace
}  // namespace overfill
