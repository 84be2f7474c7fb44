// Several answers to one prompt.
#include <set>

#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

constexpr DecodePath kPaths[] = {DecodePath::kTwoStage, DecodePath::kFull,
                                 DecodePath::kPruned};

Request Several(Rig& rig, DecodePath path, int32_t prompt_tokens,
                int32_t max_tokens, int32_t n) {
  Request request = rig.MakeRequest(path, prompt_tokens, max_tokens);
  request.n = n;
  return request;
}

// Prompts that end with a block, and one token before and behind.
TEST(Samples, EachIsTheReferences) {
  for (const bool is_shared : {true, false}) {
    for (const DecodePath path : kPaths) {
      RigOptions options;
      options.is_shared = is_shared;
      Rig rig(options);
      for (const int32_t prompt_tokens : {1, 3, 7, 8, 9}) {
        Client& client = rig.Submit(Several(rig, path, prompt_tokens, 9, 4));
        rig.ExpectRight(client);
        EXPECT_EQ(client.Wait().usage.completion_tokens, 36);
      }
      rig.Finish();
      // One prefill each.
      const auto counts = rig.observer.counts();
      EXPECT_EQ(counts.prompt_rows[0] + counts.prompt_rows[1], 28);
    }
  }
}

TEST(Samples, OneTokenEach) {
  Rig rig;
  Client& client = rig.Submit(Several(rig, DecodePath::kTwoStage, 6, 1, 4));
  rig.ExpectRight(client);
  rig.Finish();
  EXPECT_EQ(rig.pruned.num_steps(), 0);
}

// Whichever ends with its first token, the prompt's KV goes on with the
// others.
TEST(Samples, AnyMayEndAtTheFirstToken) {
  for (const bool is_shared : {true, false}) {
    for (int32_t ends = 0; ends < 3; ++ends) {
      RigOptions options;
      options.is_shared = is_shared;
      Rig rig(options);
      Request request = Several(rig, DecodePath::kTwoStage, 6, 9, 3);
      request.stop_rules.stop_token_ids = {rig.Expected(request, ends)[0]};
      Client& client = rig.Submit(request);
      rig.ExpectRight(client);
      EXPECT_EQ(client.samples[ends].size(), 1u);
      rig.Finish();
    }
  }
}

TEST(Samples, ACancelEndsAll) {
  for (const bool is_shared : {true, false}) {
    RigOptions options;
    options.is_shared = is_shared;
    Rig rig(options);
    rig.fork[is_shared ? 0 : 1].CloseGate();
    Client& client = rig.Submit(Several(rig, DecodePath::kTwoStage, 6, 30, 4));
    rig.fork[is_shared ? 0 : 1].AwaitAtGate();
    rig.scheduler->Cancel(client.uid, absl::CancelledError("x"));
    rig.ExpectStatus(client, absl::StatusCode::kCancelled);
    EXPECT_LT(client.completions.size(), 4u);
    rig.fork[is_shared ? 0 : 1].OpenGate();
    rig.ExpectRight(rig.Submit(Several(rig, DecodePath::kTwoStage, 6, 9, 4)));
    rig.Finish();
  }
}

TEST(Samples, WithPreemption) {
  for (const bool is_shared : {true, false}) {
    RigOptions options;
    options.is_shared = is_shared;
    options.prefill_blocks = options.decode_blocks = 14;
    options.swap_blocks = {200, is_shared ? 0 : 200};
    Rig rig(options);
    for (int i = 0; i < 6; ++i) {
      rig.Submit(Several(rig, kPaths[i % 3], 6, 30, 1 + i % 3));
    }
    for (auto& client : rig.clients) rig.ExpectRight(*client);
    rig.Finish();
    EXPECT_GT(rig.observer.counts().preemptions, 0);
  }
}

TEST(Samples, MoreThanHalfAStepHoldsAreRefused) {
  Rig rig;  // of steps with 8 sequences
  EXPECT_EQ(rig.TrySubmit(Several(rig, DecodePath::kTwoStage, 3, 3, 5)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(rig.TrySubmit(Several(rig, DecodePath::kTwoStage, 3, 3, 0)).code(),
            absl::StatusCode::kInvalidArgument);
  rig.ExpectRight(rig.Submit(Several(rig, DecodePath::kTwoStage, 3, 3, 4)));
  rig.Finish();
}

TEST(Samples, AFailedForkIsTriedAgain) {
  Rig rig;
  rig.fork[0].num_failures_to_come = 2;
  rig.ExpectRight(rig.Submit(Several(rig, DecodePath::kTwoStage, 6, 9, 3)));
  rig.Finish();
  EXPECT_EQ(rig.observer.counts().retries, 2);
}

TEST(Samples, AForkThatFailsAgainAndAgainEndsTheRequestAlone) {
  Rig rig;
  // All that fail may be one sample's, or another's.
  rig.fork[0].num_failures_to_come = 5;
  rig.ExpectStatus(rig.Submit(Several(rig, DecodePath::kTwoStage, 6, 9, 3)),
                   absl::StatusCode::kInternal);
  rig.ExpectRight(rig.Submit(Several(rig, DecodePath::kTwoStage, 6, 9, 3)));
  rig.Finish();
}

}  // namespace
}  // namespace overfill
