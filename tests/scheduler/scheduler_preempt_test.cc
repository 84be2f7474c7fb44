// Sequences that give up their blocks and come back.
#include <algorithm>
#include <chrono>
#include <thread>

#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

using std::chrono::milliseconds;

constexpr DecodePath kPaths[] = {DecodePath::kTwoStage, DecodePath::kFull,
                                 DecodePath::kPruned};

// Blocks of 4 tokens, as many as two prompts of 8 with little growth.
RigOptions Tight(int32_t blocks, int32_t swap_blocks, bool is_shared = true) {
  RigOptions options;
  options.is_shared = is_shared;
  options.prefill_blocks = blocks;
  options.decode_blocks = blocks;
  options.swap_blocks = {swap_blocks, is_shared ? 0 : swap_blocks};
  return options;
}

void AwaitDecoding(Rig& rig, int32_t count) {
  while (rig.scheduler->Stats().requests.decoding < count) {
    std::this_thread::sleep_for(milliseconds(1));
  }
}

TEST(Preempt, AnswersAreThoseOfAServerWithRoom) {
  for (const bool is_shared : {true, false}) {
    for (const DecodePath path : kPaths) {
      Rig rig(Tight(12, 200, is_shared));
      for (int i = 0; i < 10; ++i) rig.Submit(path, 5 + i % 4, 30);
      for (auto& client : rig.clients) rig.ExpectRight(*client);
      rig.Finish();
      EXPECT_GT(rig.observer.counts().preemptions, 0)
          << DecodePathName(path) << ", shared " << is_shared;
      EXPECT_EQ(rig.observer.counts().retries, 0);
    }
  }
}

// The same request with three preemptions and with none.
TEST(Preempt, ThreeTimesGivesTheSameAnswer) {
  Rig rig(Tight(40, 200));
  // Slow enough that the others come while the answer is being written.
  rig.pruned.before_run = [](const StepBatch&) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    return absl::OkStatus();
  };
  Request request = rig.MakeRequest(DecodePath::kTwoStage, 6, 140);
  request.priority = -1;
  Client& victim = rig.Submit(request);
  victim.AwaitTokens(50);
  // Each comes to need more than the first leaves, and outlasts it.
  for (int i = 0; i < 3; ++i) {
    const int64_t before = rig.observer.counts().preemptions;
    victim.AwaitTokens(victim.num_tokens() + 2);
    rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 8, 130));
    EXPECT_GT(rig.observer.counts().preemptions, before) << "round " << i;
    EXPECT_FALSE(victim.HasEnded());
  }
  rig.ExpectRight(victim);
  EXPECT_GE(rig.observer.counts().preemptions, 3);
  rig.Finish();
}

TEST(Preempt, WhatTheSwapSpaceDoesNotHoldEndsExhausted) {
  Rig rig(Tight(12, 1));
  for (int i = 0; i < 6; ++i) rig.Submit(DecodePath::kTwoStage, 8, 38);
  int exhausted = 0;
  for (auto& client : rig.clients) {
    if (client->Wait().status.ok()) {
      rig.ExpectRight(*client);
    } else {
      rig.ExpectStatus(*client, absl::StatusCode::kResourceExhausted);
      ++exhausted;
    }
  }
  EXPECT_GT(exhausted, 0);
  EXPECT_LT(exhausted, 6);
  rig.Finish();
}

// Where one sample finds no room, the others of its request end in the midst of
// the same plan.
TEST(Preempt, ASampleThatTheSwapSpaceDoesNotHoldEndsItsRequest) {
  Rig rig(Tight(13, 1));  // the last one is the first sample's
  Request request = rig.MakeRequest(DecodePath::kTwoStage, 8, 38);
  request.n = 2;
  rig.ExpectStatus(rig.Submit(request), absl::StatusCode::kResourceExhausted);
  rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 8, 38));
  rig.Finish();
}

TEST(Preempt, WithoutSwapSpaceNothingStartsThatMayNotFinish) {
  Rig rig(Tight(12, 0));
  for (int i = 0; i < 10; ++i) rig.Submit(DecodePath::kTwoStage, 8, 38);
  for (auto& client : rig.clients) rig.ExpectRight(*client);
  rig.Finish();
  EXPECT_EQ(rig.observer.counts().preemptions, 0);
}

TEST(Preempt, TheYoungestOfTheLeastPriorityGoes) {
  Rig rig(Tight(12, 200));
  rig.pruned.CloseGate();
  std::vector<Client*> clients;
  for (const int priority : {0, 5, 0}) {
    Request request = rig.MakeRequest(DecodePath::kTwoStage, 5, 30);
    request.priority = priority;
    clients.push_back(&rig.Submit(request));
    clients.back()->AwaitTokens(1);
  }
  AwaitDecoding(rig, 3);
  rig.swap_out[0].CloseGate();
  rig.pruned.OpenGate();
  rig.swap_out[0].AwaitAtGate();
  EXPECT_EQ(rig.scheduler->Stats().requests.swapped, 1);
  // It is the one: without it nobody is on the way.
  rig.scheduler->Cancel(clients[2]->uid, absl::CancelledError("x"));
  EXPECT_EQ(rig.scheduler->Stats().requests.swapped, 0);
  rig.ExpectStatus(*clients[2], absl::StatusCode::kCancelled);
  rig.swap_out[0].OpenGate();
  rig.ExpectRight(*clients[0]);
  rig.ExpectRight(*clients[1]);
  rig.Finish();
}

// Cancelled on its way out, while it is out, and on its way back.
TEST(Preempt, ACancelAtAnyPointBringsTheBlocksHome) {
  for (const int point : {0, 1, 2}) {
    Rig rig(Tight(12, 200));
    rig.pruned.CloseGate();
    Client& elder = rig.Submit(DecodePath::kTwoStage, 8, 38);
    elder.AwaitTokens(1);
    if (point == 0) rig.swap_out[0].CloseGate();
    if (point == 2) rig.swap_in[0].CloseGate();
    Client& victim = rig.Submit(DecodePath::kTwoStage, 8, 30);
    AwaitDecoding(rig, 2);
    rig.pruned.OpenGate();
    if (point == 0) rig.swap_out[0].AwaitAtGate();
    if (point == 1) {
      while (rig.scheduler->Stats().requests.swapped == 0 &&
             !elder.HasEnded()) {
        std::this_thread::yield();
      }
    }
    if (point == 2) rig.swap_in[0].AwaitAtGate();
    rig.scheduler->Cancel(victim.uid, absl::CancelledError("x"));
    EXPECT_TRUE(rig.scheduler->CheckIntegrity().ok())
        << rig.scheduler->CheckIntegrity();
    victim.Wait();  // does not wait for the copy
    rig.swap_out[0].OpenGate();
    rig.swap_in[0].OpenGate();
    rig.ExpectRight(elder);
    rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 8, 38));
    rig.Finish();
  }
}

TEST(Preempt, HostMemoryThatDoesNotKeepItEndsTheRequest) {
  Rig rig(Tight(12, 200));
  std::atomic<int> num_broken = 0;
  rig.swap_in[0].before_move = [&](std::span<const BlockCopy> blocks) {
    rig.swap_stores[0].At(blocks[0].source, 0) = ++num_broken;
  };
  for (int i = 0; i < 4; ++i) rig.Submit(DecodePath::kTwoStage, 8, 38);
  int broken = 0;
  for (auto& client : rig.clients) {
    if (client->Wait().status.ok()) {
      rig.ExpectRight(*client);
    } else {
      rig.ExpectStatus(*client, absl::StatusCode::kInternal);
      ++broken;
    }
  }
  EXPECT_GT(num_broken, 0);
  EXPECT_GT(broken, 0);
  rig.Finish();
}

}  // namespace
}  // namespace overfill
