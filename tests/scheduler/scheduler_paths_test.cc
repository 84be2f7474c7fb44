// The three paths, alone and mixed, against the reference's answers; and the
// proof that the comparison sees what it should.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

constexpr DecodePath kPaths[] = {DecodePath::kTwoStage, DecodePath::kFull,
                                 DecodePath::kPruned};

// Whether the pools share a store.
class SchedulerPaths : public ::testing::TestWithParam<bool> {
 protected:
  RigOptions Options() {
    RigOptions options;
    options.is_shared = GetParam();
    return options;
  }
};

INSTANTIATE_TEST_SUITE_P(Stores, SchedulerPaths, ::testing::Bool(),
                         [](const auto& info) {
                           return info.param ? "Shared" : "Apart";
                         });

TEST_P(SchedulerPaths, EachAnswersAtEveryBoundary) {
  // Around blocks (4), chunks (16) and their products.
  for (DecodePath path : kPaths) {
    Rig rig(Options());
    for (int32_t prompt :
         {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65}) {
      for (int32_t max_tokens : {1, 2, 3, 4, 5, 12}) {
        rig.Submit(path, prompt, max_tokens);
      }
    }
    for (auto& client : rig.clients) rig.ExpectRight(*client);
    rig.Finish();
  }
}

TEST_P(SchedulerPaths, MixFreely) {
  Rig rig(Options());
  for (int i = 0; i < 200; ++i) {
    rig.Submit(kPaths[rig.random() % 3],
               static_cast<int32_t>(1 + rig.random() % 60),
               static_cast<int32_t>(1 + rig.random() % 30));
  }
  for (auto& client : rig.clients) rig.ExpectRight(*client);
  rig.Finish();
}

TEST_P(SchedulerPaths, SamplingStateCrossesWithTheSequence) {
  // The model's next token depends on all of it: counts, bans, bias, seed.
  Rig rig(Options());
  for (int i = 0; i < 60; ++i) {
    Request request = rig.MakeRequest(kPaths[i % 3], 1 + i % 23, 2 + i % 13);
    request.sampling.repetition_penalty = 1.25f;
    request.sampling.frequency_penalty = 0.5f;
    request.sampling.logit_bias = {{3, 1.5f}, {9, -2.0f}};
    request.sampling.num_logprobs = i % 4;
    request.sampling.min_tokens = 3;
    for (int32_t id = 0; id < TestTokenizer().vocab_size(); id += 2) {
      request.stop_rules.eos_ids.push_back(id);
    }
    request.sampling.min_tokens_banned_ids = request.stop_rules.eos_ids;
    rig.Submit(request);
  }
  for (auto& client : rig.clients) {
    rig.ExpectRight(*client);
    EXPECT_EQ(client->logprobs.size(), client->tokens.size());
    EXPECT_EQ(client->logprobs[0].top.size(),
              static_cast<size_t>(client->request.sampling.num_logprobs));
    EXPECT_GE(client->tokens.size(),
              std::min<size_t>(3, client->request.stop_rules.max_tokens));
  }
  rig.Finish();
}

TEST_P(SchedulerPaths, TwoStageOfOneModelIsItsFullPath) {
  RigOptions options = Options();
  options.pruned_salt = options.full_salt;
  Rig rig(options);
  const Request request = rig.MakeRequest(DecodePath::kTwoStage, 21, 20);
  Request full = request;
  full.request_id = "full";
  full.path = DecodePath::kFull;
  Client& a = rig.Submit(request);
  Client& b = rig.Submit(full);
  rig.ExpectRight(a);
  rig.ExpectRight(b);
  EXPECT_EQ(a.tokens, b.tokens);
  rig.Finish();
}

// Were they alike, the other tests would compare nothing.
TEST_P(SchedulerPaths, TheReferencesOfThePathsDiffer) {
  Rig rig(Options());
  Request request = rig.MakeRequest(DecodePath::kTwoStage, 9, 6);
  const auto two_stage = rig.Expected(request);
  request.path = DecodePath::kFull;
  const auto full = rig.Expected(request);
  request.path = DecodePath::kPruned;
  const auto pruned = rig.Expected(request);
  EXPECT_EQ(two_stage[0], full[0]);  // token 0 is the full model's
  EXPECT_NE(two_stage[0], pruned[0]);
  EXPECT_NE(two_stage, full);
  EXPECT_NE(two_stage, pruned);
  EXPECT_NE(two_stage, FakeAnswer(request, kPrunedSalt, kPrunedSalt,
                                  TestTokenizer().vocab_size()));
}

TEST_P(SchedulerPaths, ChunksAndRowsAreAsMany) {
  Rig rig(Options());
  // 40 rows in chunks of 16, one after the other, then 4 rows more.
  rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 40, 5));
  rig.Finish();
  const auto counts = rig.observer.counts();
  EXPECT_EQ(counts.steps[0], 3);
  EXPECT_EQ(counts.prompt_rows[0], 40);
  EXPECT_EQ(counts.decode_rows[0], 0);
  EXPECT_EQ(counts.steps[1], 4);
  EXPECT_EQ(counts.decode_rows[1], 4);
  EXPECT_EQ(counts.first_tokens, 1);
  EXPECT_EQ(counts.tokens, 4);
  EXPECT_EQ(counts.completion_tokens, 5);
  EXPECT_EQ(counts.handoffs, GetParam() ? 1 : 0);
  EXPECT_EQ(counts.copies, GetParam() ? 0 : 1);
  EXPECT_EQ(counts.copied_bytes, GetParam() ? 0 : 10 * 100);
}

TEST_P(SchedulerPaths, OneTokenEndsAtPrefill) {
  Rig rig(Options());
  rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 10, 1));
  rig.Finish();
  const auto counts = rig.observer.counts();
  EXPECT_EQ(counts.handoffs + counts.copies, 0);
  EXPECT_EQ(counts.steps[1], 0);
}

TEST_P(SchedulerPaths, AllRunningAnswersAdvanceInEveryStep) {
  RigOptions options = Options();
  Rig rig(options);
  rig.pruned.before_run = [&](const StepBatch& batch) {
    // No prompt of this test reads in the decode pool.
    const RequestCounts counts = rig.scheduler->Stats().requests;
    EXPECT_LE(batch.sequences.size(), 8u);
    EXPECT_GE(counts.decoding, static_cast<int>(batch.sequences.size()));
    return absl::OkStatus();
  };
  for (int i = 0; i < 24; ++i) rig.Submit(DecodePath::kTwoStage, 6, 16);
  for (auto& client : rig.clients) rig.ExpectRight(*client);
  rig.Finish();
  // One row for each sequence of a step: nobody waits for a second step.
  const auto counts = rig.observer.counts();
  EXPECT_EQ(counts.decode_rows[1], 24 * 15);
}

TEST_P(SchedulerPaths, AnAnswerLeavesItsPlaceInThePrefillPool) {
  RigOptions options = Options();
  options.scheduler.max_decode_batch = 1;
  Rig rig(options);
  rig.pruned.CloseGate();
  Client& decoding = rig.Submit(DecodePath::kTwoStage, 6, 5);
  rig.pruned.AwaitAtGate();
  rig.ExpectRight(rig.Submit(DecodePath::kFull, 6, 5));
  EXPECT_FALSE(decoding.HasEnded());
  rig.pruned.OpenGate();
  rig.ExpectRight(decoding);
  rig.Finish();
}

TEST_P(SchedulerPaths, APriorityGoesBeforeAnEarlierArrival) {
  RigOptions options = Options();
  options.scheduler.max_decode_batch = 1;
  Rig rig(options);
  std::vector<int32_t> order;  // the prompts' first tokens
  rig.full.before_run = [&](const StepBatch& batch) {
    for (const SequenceStep& step : batch.sequences) {
      if (step.start_position == 0) order.push_back(step.token_ids[0]);
    }
    return absl::OkStatus();
  };
  rig.full.CloseGate();
  for (int i = 0; i < 5; ++i) {
    Request request = rig.MakeRequest(DecodePath::kFull, 6, 5);
    request.prompt_ids[0] = i;
    request.priority = i == 3;
    rig.Submit(request);
    if (i == 0) rig.full.AwaitAtGate();
  }
  rig.full.OpenGate();
  for (auto& client : rig.clients) rig.ExpectRight(*client);
  rig.Finish();
  EXPECT_EQ(order, std::vector<int32_t>({0, 3, 1, 2, 4}));
}

TEST_P(SchedulerPaths, AStopCrossesTheBoundaryOfThePools) {
  // Token 0 is the full model's, the rest the pruned one's; the stop string
  // begins in the one and ends in the other, at each split.
  const std::string answer = "say STOP now";
  for (const std::string stop :
       {"say", "ay STOP", "STOP", "s", "say STOP now"}) {
    for (bool include_stop : {false, true}) {
      Rig rig(Options());
      const auto script = [&](const SequenceStep&, const SamplingState& draw) {
        SampledToken token;
        token.token_id = ByteToken(answer[draw.token_index()]);
        return std::optional<SampledToken>(token);
      };
      rig.full.script = script;
      rig.pruned.script = script;
      Request request = rig.MakeRequest(DecodePath::kTwoStage, 7, 12);
      request.prompt_ids.back() = ByteToken('x');
      request.stop_rules.stop = {stop, "never"};
      request.stop_rules.include_stop = include_stop;
      Client& client = rig.Submit(request);
      const Terminal& terminal = client.Wait();
      EXPECT_TRUE(terminal.status.ok());
      EXPECT_EQ(terminal.finish_reason, FinishReason::kStop);
      EXPECT_EQ(std::get<std::string>(client.completions.at(0).matched_stop),
                stop);
      const size_t at = answer.find(stop);
      EXPECT_EQ(client.text,
                answer.substr(0, include_stop ? at + stop.size() : at));
      EXPECT_EQ(client.tokens.size(), at + stop.size());
      rig.Finish();
    }
  }
}

TEST_P(SchedulerPaths, EosOrStopAsTheFirstTokenEndsThere) {
  for (DecodePath path : kPaths) {
    for (bool is_eos : {true, false}) {
      Rig rig(Options());
      Request request = rig.MakeRequest(path, 9, 10);
      const int32_t first = rig.Expected(request)[0];
      auto& rules = request.stop_rules;
      (is_eos ? rules.eos_ids : rules.stop_token_ids) = {first};
      Client& client = rig.Submit(request);
      rig.ExpectRight(client);
      const Terminal& terminal = client.Wait();
      EXPECT_EQ(client.text, "");
      EXPECT_EQ(terminal.usage.completion_tokens, 1);
      EXPECT_EQ(terminal.finish_reason,
                is_eos ? FinishReason::kEos : FinishReason::kStop);
      if (!is_eos) {
        EXPECT_EQ(std::get<int32_t>(client.completions.at(0).matched_stop),
                  first);
      }
      rig.Finish();
      const auto counts = rig.observer.counts();
      EXPECT_EQ(counts.handoffs + counts.copies, 0);
    }
  }
}

// ---- Planted faults: the comparison of answers must fail with each of them.

enum class Where { kFull, kPruned, kMover };
struct Planted {
  const char* name;
  Fault fault;
  Where where;
};

class PlantedFault
    : public ::testing::TestWithParam<std::tuple<Planted, bool>> {};

int CountWrong(const Planted& planted, bool is_shared) {
  RigOptions options;
  options.is_shared = is_shared;
  Rig rig(options);
  switch (planted.where) {
    case Where::kFull:
      rig.full.fault = planted.fault;
      break;
    case Where::kPruned:
      rig.pruned.fault = planted.fault;
      break;
    case Where::kMover:
      rig.mover.fault = planted.fault;
      break;
  }
  rig.full.CloseGate();  // so that they come into steps together
  for (int i = 0; i < 8; ++i) rig.Submit(DecodePath::kTwoStage, 6 + i % 3, 12);
  rig.full.OpenGate();
  int wrong = 0;
  for (auto& client : rig.clients) wrong += !rig.IsRight(*client);
  rig.Finish();
  return wrong;
}

TEST_P(PlantedFault, ShowsAsAWrongAnswer) {
  const auto& [planted, is_shared] = GetParam();
  if (planted.where == Where::kMover && is_shared) {
    // There is nothing to move: the same bug must change nothing.
    EXPECT_EQ(CountWrong(planted, is_shared), 0);
    return;
  }
  EXPECT_GT(CountWrong(planted, is_shared), 0);
}

INSTANTIATE_TEST_SUITE_P(
    All, PlantedFault,
    ::testing::Combine(
        ::testing::Values(
            Planted{"PromptKvDropped", Fault::kPromptKvDropped, Where::kFull},
            Planted{"FullOffByOne", Fault::kPositionOffByOne, Where::kFull},
            Planted{"PrunedOffByOne", Fault::kPositionOffByOne, Where::kPruned},
            Planted{"FullTables", Fault::kTablesExchanged, Where::kFull},
            Planted{"PrunedTables", Fault::kTablesExchanged, Where::kPruned},
            Planted{"StaleToken", Fault::kStaleToken, Where::kPruned},
            Planted{"StateForgotten", Fault::kStateForgotten, Where::kPruned},
            Planted{"CopyDropsPartial", Fault::kCopyDropsPartial,
                    Where::kMover},
            Planted{"CopyShifted", Fault::kCopyShifted, Where::kMover}),
        ::testing::Bool()),
    [](const auto& info) {
      return std::string(std::get<0>(info.param).name) +
             (std::get<1>(info.param) ? "Shared" : "Apart");
    });

}  // namespace
}  // namespace overfill
