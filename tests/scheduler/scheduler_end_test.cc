// How a request ends before its answer is complete: deadline, failure, a slow
// reader, shutdown; see scheduler_cancel_test.cc for cancel; and what is
// refused.
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

using std::chrono::milliseconds;
constexpr auto kLate = absl::StatusCode::kDeadlineExceeded;
constexpr auto kInternal = absl::StatusCode::kInternal;

RigOptions Apart() {
  RigOptions options;
  options.is_shared = false;
  return options;
}

SteadyTime In(milliseconds time) {
  return std::chrono::steady_clock::now() + time;
}

// ---- Deadlines, with nothing else going on.

TEST(Deadline, PastAlreadyIsRefused) {
  Rig rig;
  Request request = rig.MakeRequest(DecodePath::kTwoStage, 5, 3);
  request.deadline = std::chrono::steady_clock::now();
  EXPECT_EQ(rig.TrySubmit(request).code(), kLate);
  EXPECT_EQ(rig.observer.counts().rejects["deadline"], 1);
  rig.Finish();
}

TEST(Deadline, PassesInTheQueueWithoutAStep) {
  Rig rig;
  rig.full.CloseGate();
  Client& first = rig.Submit(DecodePath::kFull, 5, 3);
  rig.full.AwaitAtGate();
  Request request = rig.MakeRequest(DecodePath::kFull, 5, 3);
  request.deadline = In(milliseconds(300));
  Client& late = rig.Submit(request);
  rig.ExpectStatus(late, kLate);
  EXPECT_GE(std::chrono::steady_clock::now(), request.deadline);
  EXPECT_EQ(late.Wait().usage.completion_tokens, 0);
  EXPECT_GT(late.Wait().timings.queue_seconds, 0.02);
  rig.full.OpenGate();
  rig.ExpectRight(first);
  rig.Finish();
  EXPECT_EQ(rig.observer.counts().prompt_rows[0], 5);
}

TEST(Deadline, PassesWhileItsPromptIsRead) {
  Rig rig;
  rig.full.CloseGate();
  Request request = rig.MakeRequest(DecodePath::kTwoStage, 5, 1);
  request.deadline = In(milliseconds(300));
  Client& late = rig.Submit(request);
  rig.ExpectStatus(late, kLate);
  rig.full.OpenGate();
  rig.Finish();
  // It would have been complete with this step: the end is what it is.
  EXPECT_EQ(late.tokens.size(), 0u);
}

TEST(Deadline, PassesDuringTheCopyAndDuringDecode) {
  Rig rig(Apart());
  rig.mover.CloseGate();
  Request request = rig.MakeRequest(DecodePath::kTwoStage, 5, 50);
  request.deadline = In(milliseconds(300));
  Client& copied = rig.Submit(request);
  rig.ExpectStatus(copied, kLate);
  EXPECT_EQ(copied.tokens.size(), 1u);
  EXPECT_GT(copied.Wait().timings.migration_seconds, 0);
  rig.mover.OpenGate();

  rig.pruned.CloseGate();
  request = rig.MakeRequest(DecodePath::kTwoStage, 5, 50);
  request.deadline = In(milliseconds(500));
  Client& decoded = rig.Submit(request);
  rig.ExpectStatus(decoded, kLate);
  EXPECT_LE(decoded.tokens.size(), 1u);
  rig.pruned.OpenGate();
  rig.Finish();
}

TEST(Deadline, TheEarliestIsMetWhateverTheOrder) {
  Rig rig;
  rig.full.CloseGate();
  for (int i : {50, 10, 30, 20, 40}) {
    Request request = rig.MakeRequest(DecodePath::kFull, 5, 3);
    request.deadline = In(milliseconds(10 * i));
    rig.Submit(request);
  }
  for (auto& client : rig.clients) {
    rig.ExpectStatus(*client, kLate);
    EXPECT_GE(std::chrono::steady_clock::now(), client->request.deadline);
  }
  rig.full.OpenGate();
  rig.Finish();
}

// ---- Failures.

TEST(Failure, OfAStepEndsItsSequencesAndNoOthers) {
  for (PoolId pool : {PoolId::kPrefill, PoolId::kDecode}) {
    Rig rig;
    std::atomic<int> failures = 1;
    FakeModel& model = pool == PoolId::kPrefill ? rig.full : rig.pruned;
    model.before_run = [&](const StepBatch&) {
      return failures-- > 0 ? absl::DataLossError("dev7 at 0x1234")
                            : absl::OkStatus();
    };
    Client& failed = rig.Submit(DecodePath::kTwoStage, 5, 10);
    rig.ExpectStatus(failed, kInternal);
    const std::string message(failed.Wait().status.message());
    EXPECT_FALSE(absl::StrContains(message, "dev7")) << message;
    EXPECT_EQ(failed.tokens.size(), pool == PoolId::kPrefill ? 0u : 1u);
    rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 5, 10));
    rig.Finish();
  }
}

TEST(Failure, OfARowIsThatRequestsAlone) {
  Rig rig;
  const auto script =
      [](const SequenceStep&,
         const SamplingState& draw) -> std::optional<SampledToken> {
    if (draw.params().seed != 666) return std::nullopt;
    if (draw.token_index() < 2) return std::nullopt;
    SampledToken token;
    token.status = absl::InternalError("layer 3 is not finite");
    return token;
  };
  rig.full.script = script;
  rig.pruned.script = script;
  std::vector<Client*> bad;
  for (int i = 0; i < 30; ++i) {
    Request request = rig.MakeRequest(
        i % 2 ? DecodePath::kTwoStage : DecodePath::kFull, 5 + i % 9, 10);
    if (i % 7 == 3) request.sampling.seed = 666;
    Client& client = rig.Submit(request);
    if (i % 7 == 3) bad.push_back(&client);
  }
  for (auto& client : rig.clients) {
    if (client->request.sampling.seed != 666) rig.ExpectRight(*client);
  }
  for (Client* client : bad) {
    rig.ExpectStatus(*client, kInternal);
    EXPECT_EQ(client->tokens.size(), 2u);
    EXPECT_EQ(client->Wait().usage.completion_tokens, 2);
    EXPECT_FALSE(absl::StrContains(client->Wait().status.message(), "layer"));
  }
  rig.Finish();
}

TEST(Failure, OfATokenWithoutAnIdIsThatRequests) {
  Rig rig;
  rig.full.script = [](const SequenceStep&, const SamplingState&) {
    return std::optional<SampledToken>(SampledToken{});
  };
  rig.ExpectStatus(rig.Submit(DecodePath::kTwoStage, 5, 3), kInternal);
  rig.ExpectRight(rig.Submit(DecodePath::kPruned, 5, 3));
  rig.Finish();
}

TEST(Failure, OfACopyIsTriedAgain) {
  Rig rig(Apart());
  rig.mover.num_failures_to_come = 2;
  rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 5, 10));
  EXPECT_EQ(rig.observer.counts().retries, 2);
  rig.Finish();
}

TEST(Failure, OfACopyAgainAndAgainEndsItsRequest) {
  Rig rig(Apart());
  rig.mover.num_failures_to_come = 3;
  Client& failed = rig.Submit(DecodePath::kTwoStage, 5, 10);
  rig.ExpectStatus(failed, kInternal);
  EXPECT_EQ(failed.tokens.size(), 1u);
  EXPECT_FALSE(absl::StrContains(failed.Wait().status.message(), "dev7"));
  rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 5, 10));
  rig.Finish();
}

TEST(SlowReader, EndsItselfAndHoldsUpNobody) {
  Rig rig;
  Client& slow = rig.Submit(
      rig.MakeRequest(DecodePath::kTwoStage, 5, 200),
      std::make_unique<Client>(/*max_pending_bytes=*/64, /*reads=*/false));
  for (int i = 0; i < 5; ++i) rig.Submit(DecodePath::kTwoStage, 5, 200);
  for (size_t i = 1; i < rig.clients.size(); ++i) {
    rig.ExpectRight(*rig.clients[i]);
  }
  rig.Finish();
  slow.Read();
  rig.ExpectStatus(slow, absl::StatusCode::kResourceExhausted);
  EXPECT_LE(slow.tokens.size() * sizeof(int32_t) + slow.text.size(), 64u);
  // The engine does not wait: it may be done before the queue is found full.
  EXPECT_LE(slow.Wait().usage.completion_tokens, 200);
}

// ---- The end of the scheduler.

TEST(Destructor, EndsWhatIsLiveInEveryState) {
  for (int closed = 0; closed < 3; ++closed) {
    Rig rig(Apart());
    if (closed == 0) rig.full.CloseGate();
    if (closed == 1) rig.mover.CloseGate();
    if (closed == 2) rig.pruned.CloseGate();
    for (int i = 0; i < 20; ++i) rig.Submit(DecodePath::kTwoStage, 20, 50);
    std::this_thread::sleep_for(milliseconds(5));
    std::thread opener([&] {
      std::this_thread::sleep_for(milliseconds(20));
      rig.full.OpenGate();
      rig.mover.OpenGate();
      rig.pruned.OpenGate();
    });
    rig.Destroy();
    opener.join();
    for (auto& client : rig.clients) {
      EXPECT_TRUE(client->HasEnded());
      EXPECT_EQ(client->Wait().status.code(), absl::StatusCode::kUnavailable);
      EXPECT_EQ(client->num_events_after_end, 0);
    }
    EXPECT_EQ(rig.observer.counts().terminals, 20);
  }
}

TEST(StopAdmission, FinishesWhatIsLive) {
  Rig rig;
  Client& client = rig.Submit(DecodePath::kTwoStage, 20, 50);
  rig.scheduler->StopAdmission();
  EXPECT_EQ(rig.TrySubmit(rig.MakeRequest(DecodePath::kFull, 5, 5)).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(rig.observer.counts().rejects["draining"], 1);
  rig.ExpectRight(client);
  rig.Finish();
}

TEST(WaitIdle, SaysWhenTheTimeIsUp) {
  Rig rig;
  rig.full.CloseGate();
  rig.Submit(DecodePath::kTwoStage, 20, 50);
  EXPECT_FALSE(rig.scheduler->WaitIdle(milliseconds(10)));
  rig.full.OpenGate();
  EXPECT_TRUE(rig.scheduler->WaitIdle(std::chrono::nanoseconds::max()));
  rig.Finish();
}

// ---- What is refused.

TEST(Refusal, TheQueueIsBounded) {
  RigOptions options;
  options.scheduler.max_queued_requests = 3;
  options.scheduler.max_queued_tokens = 30;
  Rig rig(options);
  rig.full.CloseGate();
  rig.Submit(DecodePath::kTwoStage, 5, 5);
  rig.full.AwaitAtGate();
  const auto submit = [&](int32_t prompt_tokens) {
    return rig.TrySubmit(
        rig.MakeRequest(DecodePath::kTwoStage, prompt_tokens, 5));
  };
  EXPECT_TRUE(submit(20).ok());
  EXPECT_EQ(submit(11).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(submit(5).ok());
  EXPECT_TRUE(submit(5).ok());
  EXPECT_EQ(submit(1).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(rig.observer.counts().rejects["queue_full"], 1);
  EXPECT_EQ(rig.observer.counts().rejects["queued_tokens"], 1);
  rig.full.OpenGate();
  for (auto& client : rig.clients) rig.ExpectRight(*client);
  EXPECT_TRUE(submit(20).ok());
  rig.Finish();
}

TEST(Refusal, ALiveIdIsTheTenantsOnlyOne) {
  Rig rig;
  rig.full.CloseGate();
  Request request = rig.MakeRequest(DecodePath::kTwoStage, 5, 5);
  rig.Submit(request);
  EXPECT_EQ(rig.TrySubmit(request).code(), absl::StatusCode::kAlreadyExists);
  Request other = request;
  other.tenant = "another";
  EXPECT_TRUE(rig.TrySubmit(other).ok());
  rig.full.OpenGate();
  for (auto& client : rig.clients) rig.ExpectRight(*client);
  EXPECT_TRUE(rig.TrySubmit(request).ok());  // the first one has ended
  rig.Finish();
  EXPECT_EQ(rig.observer.counts().rejects["duplicate"], 1);
}

TEST(Refusal, WhatCanNeverFitIsSaidAtOnce) {
  RigOptions options;
  options.prefill_blocks = 5;
  Rig rig(options);
  EXPECT_EQ(
      rig.TrySubmit(rig.MakeRequest(DecodePath::kTwoStage, 10, 12)).code(),
      absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(rig.observer.counts().rejects["too_large"], 1);
  rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 10, 11));
  rig.Finish();
}

TEST(Create, RefusesWhatDoesNotFitTogether) {
  FakeStore store(4, 4);
  FakeModel full(1, &store, {8, 4, 64}, 10);
  FakeModel pruned(2, &store, {8, 4, 64}, 10);
  FakeMover mover(&store, &store);
  const SchedulerOptions good_options = {.block_tokens = 4};
  const SchedulerBackend good = {.prefill = &full,
                                 .decode = &pruned,
                                 .prefill_blocks = 4,
                                 .tokenizer = &TestTokenizer()};
  const auto error = [](const SchedulerOptions& options,
                        const SchedulerBackend& backend) {
    const auto made = Scheduler::Create(options, backend, nullptr);
    return std::string(made.status().message());
  };
  EXPECT_EQ(error(good_options, good), "");
  for (auto member :
       {&SchedulerOptions::block_tokens, &SchedulerOptions::max_decode_batch,
        &SchedulerOptions::prefill_chunk_tokens,
        &SchedulerOptions::max_queued_requests}) {
    SchedulerOptions options = good_options;
    options.*member = 0;
    EXPECT_THAT(error(options, good), ::testing::HasSubstr("at least 1"));
  }
  for (auto member : {&SchedulerOptions::max_queued_tokens,
                      &SchedulerOptions::max_queued_bytes}) {
    SchedulerOptions options = good_options;
    options.*member = 0;
    EXPECT_THAT(error(options, good), ::testing::HasSubstr("at least 1"));
  }
  for (auto member : {&SchedulerOptions::max_tenant_queued_tokens,
                      &SchedulerOptions::max_tenant_queued_bytes}) {
    SchedulerOptions options = good_options;
    options.*member = -1;
    EXPECT_THAT(error(options, good), ::testing::HasSubstr("negative"));
  }
  for (auto member :
       {&SchedulerOptions::itl_target, &SchedulerOptions::max_request_duration,
        &SchedulerOptions::priority_ageing,
        &SchedulerOptions::transfer_lease}) {
    for (std::chrono::nanoseconds bad :
         {std::chrono::nanoseconds(-1), std::chrono::nanoseconds::max()}) {
      SchedulerOptions options = good_options;
      options.*member = bad;
      EXPECT_THAT(error(options, good), ::testing::HasSubstr("a year"));
    }
  }
  SchedulerOptions options = good_options;
  options.max_sequence_tokens = 65;
  EXPECT_THAT(error(options, good), ::testing::HasSubstr("limit of 64"));
  SchedulerBackend backend = good;
  backend.decode = nullptr;
  EXPECT_NE(error(good_options, backend), "");
  backend.decode = &full;
  EXPECT_NE(error(good_options, backend), "");
  backend = good;
  backend.decode_blocks = 3;
  EXPECT_NE(error(good_options, backend), "");
  backend.mover = &mover;
  EXPECT_EQ(error(good_options, backend), "");
  backend.decode_blocks = 0;
  EXPECT_NE(error(good_options, backend), "");
  backend = good;
  backend.prefill_blocks = 0;
  EXPECT_NE(error(good_options, backend), "");
}

TEST(Create, RefusesSwapSpaceThatCannotBeReached) {
  FakeStore store(4, 4);
  FakeModel full(1, &store, {8, 4, 64}, 10);
  FakeModel pruned(2, &store, {8, 4, 64}, 10);
  FakeMover mover(&store, &store);
  FakeMover movers[] = {{&store, &store}, {&store, &store}, {&store, &store},
                        {&store, &store}, {&store, &store}, {&store, &store}};
  const auto error = [&](auto change) {
    SchedulerBackend backend = {.prefill = &full,
                                .decode = &pruned,
                                .prefill_blocks = 4,
                                .tokenizer = &TestTokenizer()};
    change(backend);
    const auto made = Scheduler::Create({.block_tokens = 4}, backend, nullptr);
    return std::string(made.status().message());
  };
  using Backend = SchedulerBackend;
  EXPECT_EQ(error([](Backend&) {}), "");
  EXPECT_NE(error([](Backend& b) { b.swap_blocks[0] = 1; }), "");
  EXPECT_NE(error([](Backend& b) { b.swap_blocks[0] = -1; }), "");
  EXPECT_NE(error([&](Backend& b) { b.swap_out[0] = &mover; }), "");
  EXPECT_NE(error([&](Backend& b) { b.swap_in[0] = &mover; }), "");
  const auto with_swap = [&](Backend& b, int number) {
    (number == 0 ? b.swap_blocks[0] : b.swap_blocks[1]) = 3;
    b.swap_out[number] = &movers[number];
    b.swap_in[number] = &movers[2 + number];
    b.fork[number] = &movers[4 + number];
  };
  EXPECT_EQ(error([&](Backend& b) { with_swap(b, 0); }), "");
  // The decode pool has no store of its own.
  EXPECT_NE(error([&](Backend& b) { with_swap(b, 1); }), "");
  EXPECT_NE(error([&](Backend& b) { b.fork[1] = &mover; }), "");
  EXPECT_EQ(error([&](Backend& b) {
              b.decode_blocks = 4;
              b.mover = &mover;
              with_swap(b, 0);
              with_swap(b, 1);
            }),
            "");
}

TEST(Heartbeat, BeginsAnewWhenWorkComesToAnIdlePool) {
  Rig rig;
  rig.Begin();
  std::this_thread::sleep_for(milliseconds(30));
  EXPECT_FALSE(rig.scheduler->Stats().has_work[0]);
  rig.full.CloseGate();
  const SteadyTime before = std::chrono::steady_clock::now();
  rig.Submit(DecodePath::kTwoStage, 5, 5);
  rig.full.AwaitAtGate();
  SchedulerStats stats = rig.scheduler->Stats();
  EXPECT_TRUE(stats.has_work[0]);
  EXPECT_FALSE(stats.has_work[1]);
  EXPECT_GE(stats.last_step[0], before);
  // A step that does not come back: the heartbeat stands still.
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(rig.scheduler->Stats().last_step[0], stats.last_step[0]);
  rig.full.OpenGate();
  rig.Finish();
  EXPECT_GT(rig.scheduler->Stats().last_step[0], stats.last_step[0]);
  EXPECT_FALSE(rig.scheduler->Stats().has_work[0]);
}

}  // namespace
}  // namespace overfill
