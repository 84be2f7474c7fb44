// Prompts that begin alike.
#include <string>

#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

int64_t PromptRows(const Rig& rig) {
  const auto counts = rig.observer.counts();
  return counts.prompt_rows[0] + counts.prompt_rows[1];
}

// Sends `request` once more, as another one.
Client& Again(Rig& rig, Request request) {
  request.request_id += "'";
  return rig.Submit(request);
}

TEST(Prefix, ASecondPromptReadsAtMostOneBlock) {
  for (const bool is_shared : {true, false}) {
    for (const DecodePath path :
         {DecodePath::kTwoStage, DecodePath::kFull, DecodePath::kPruned}) {
      for (const int32_t prompt_tokens : {1, 4, 41, 43, 44, 45}) {
        RigOptions options;
        options.is_shared = is_shared;
        Rig rig(options);
        const Request request = rig.MakeRequest(path, prompt_tokens, 9);
        rig.ExpectRight(rig.Submit(request));
        EXPECT_EQ(PromptRows(rig), prompt_tokens);
        Client& second = Again(rig, request);
        rig.ExpectRight(second);
        const int32_t cached = (prompt_tokens - 1) / 4 * 4;
        EXPECT_EQ(second.Wait().usage.cached_prompt_tokens, cached);
        EXPECT_EQ(PromptRows(rig), 2 * prompt_tokens - cached);
        EXPECT_EQ(rig.observer.counts().hit_tokens, cached);
        EXPECT_EQ(rig.observer.counts().queried_tokens, 2 * prompt_tokens);
        rig.Finish();
      }
    }
  }
}

// Several at once share the blocks while they run.
TEST(Prefix, RunningOnesShareBlocks) {
  Rig rig;
  Request request = rig.MakeRequest(DecodePath::kTwoStage, 41, 9);
  rig.ExpectRight(rig.Submit(request));
  rig.pruned.CloseGate();
  for (int i = 0; i < 4; ++i) {
    request.request_id += "'";
    request.prompt_ids.back() = i;
    request.sampling.seed += 1;
    rig.Submit(request);
  }
  for (auto& client : rig.clients) client->AwaitTokens(1);
  // Ten shared ones, and each with one of its own at least.
  EXPECT_LE(rig.Blocks(0).owned, 10 + 4 * 3);
  EXPECT_TRUE(rig.scheduler->CheckIntegrity().ok());
  rig.pruned.OpenGate();
  for (auto& client : rig.clients) rig.ExpectRight(*client);
  rig.Finish();
}

TEST(Prefix, TenantsAndModelsDoNotFindEachOthers) {
  Rig rig;
  Request request = rig.MakeRequest(DecodePath::kTwoStage, 41, 9);
  request.tenant = "a";
  rig.ExpectRight(rig.Submit(request));
  request.tenant = "b";
  Client& other_tenant = Again(rig, request);
  rig.ExpectRight(other_tenant);
  EXPECT_EQ(other_tenant.Wait().usage.cached_prompt_tokens, 0);
  request.tenant = "a";
  request.path = DecodePath::kPruned;
  Client& other_model = Again(rig, request);
  rig.ExpectRight(other_model);
  EXPECT_EQ(other_model.Wait().usage.cached_prompt_tokens, 0);
  // Full and two_stage prompts are read by one model.
  request.path = DecodePath::kFull;
  request.request_id += "'";
  Client& same = Again(rig, request);
  rig.ExpectRight(same);
  EXPECT_EQ(same.Wait().usage.cached_prompt_tokens, 40);
  rig.Finish();
}

// What the pruned model wrote is read again by the full one.
TEST(Prefix, AnAnswerIsNotFoundAsAPrompt) {
  Rig rig;
  const Request first = rig.MakeRequest(DecodePath::kTwoStage, 10, 30);
  Client& client = rig.Submit(first);
  rig.ExpectRight(client);
  Request next = first;
  next.prompt_ids.insert(next.prompt_ids.end(), client.tokens.begin(),
                         client.tokens.end());
  Client& turn = Again(rig, next);
  rig.ExpectRight(turn);
  EXPECT_EQ(turn.Wait().usage.cached_prompt_tokens, 8);
  rig.Finish();
}

TEST(Prefix, WhatFailedIsNotFound) {
  Rig rig;
  const Request request = rig.MakeRequest(DecodePath::kFull, 41, 9);
  int num_draws = 0;
  rig.full.script =
      [&](const SequenceStep&,
          const SamplingState& draw) -> std::optional<SampledToken> {
    if (++num_draws != 3) return std::nullopt;
    SampledToken broken;
    broken.status = absl::InternalError("not finite");
    return broken;
  };
  rig.ExpectStatus(rig.Submit(request), absl::StatusCode::kInternal);
  Client& second = Again(rig, request);
  rig.ExpectRight(second);
  EXPECT_EQ(second.Wait().usage.cached_prompt_tokens, 0);
  rig.Finish();
}

TEST(Prefix, SwitchedOffNothingIsKept) {
  RigOptions options;
  options.scheduler.prefix_cache = false;
  Rig rig(options);
  const Request request = rig.MakeRequest(DecodePath::kTwoStage, 41, 9);
  rig.ExpectRight(rig.Submit(request));
  Client& second = Again(rig, request);
  rig.ExpectRight(second);
  EXPECT_EQ(second.Wait().usage.cached_prompt_tokens, 0);
  EXPECT_EQ(rig.Blocks(0).cached, 0);
  rig.Finish();
}

// More prompts than the store keeps: the oldest are forgotten, nothing else.
TEST(Prefix, KeptBlocksMakeRoom) {
  Rig rig;
  std::vector<Request> requests;
  for (int i = 0; i < 20; ++i) {
    requests.push_back(rig.MakeRequest(DecodePath::kTwoStage, 41, 9));
    rig.ExpectRight(rig.Submit(requests.back()));
  }
  EXPECT_GT(rig.Blocks(0).cached, 0);
  Client& newest = Again(rig, requests.back());
  rig.ExpectRight(newest);
  EXPECT_EQ(newest.Wait().usage.cached_prompt_tokens, 40);
  Client& oldest = Again(rig, requests.front());
  rig.ExpectRight(oldest);
  EXPECT_EQ(oldest.Wait().usage.cached_prompt_tokens, 0);
  rig.Finish();
}

}  // namespace
}  // namespace overfill
