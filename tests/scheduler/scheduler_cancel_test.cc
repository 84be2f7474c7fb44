// Cancel in every state of a request.
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

using std::chrono::milliseconds;
constexpr auto kCancelled = absl::StatusCode::kCancelled;

absl::Status Cancelled() { return absl::CancelledError("by the client"); }

RigOptions Apart() {
  RigOptions options;
  options.is_shared = false;
  return options;
}

TEST(Cancel, WhileQueued) {
  Rig rig;
  rig.full.CloseGate();
  Client& first = rig.Submit(DecodePath::kFull, 5, 3);
  rig.full.AwaitAtGate();
  Client& second = rig.Submit(DecodePath::kFull, 5, 3);
  EXPECT_EQ(rig.scheduler->Stats().requests.queued, 1);
  EXPECT_EQ(rig.scheduler->Stats().queued_tokens, 5);
  rig.scheduler->Cancel(second.uid, Cancelled());
  rig.ExpectStatus(second, kCancelled);  // with the pool still at the gate
  EXPECT_EQ(second.Wait().usage.completion_tokens, 0);
  EXPECT_EQ(second.Wait().timings.prefill_seconds, 0);
  rig.full.OpenGate();
  rig.ExpectRight(first);
  rig.Finish();
  EXPECT_EQ(rig.observer.counts().prompt_rows[0], 5);
}

TEST(Cancel, WhileItsStepRunsQuarantinesItsBlocks) {
  Rig rig;
  rig.full.CloseGate();
  Client& client = rig.Submit(DecodePath::kTwoStage, 9, 3);
  rig.full.AwaitAtGate();
  EXPECT_EQ(rig.Blocks(0).owned, 3);
  rig.scheduler->Cancel(client.uid, Cancelled());
  rig.ExpectStatus(client, kCancelled);
  EXPECT_EQ(rig.Blocks(0).owned, 0);
  EXPECT_EQ(rig.Blocks(0).quarantined, 3);
  EXPECT_TRUE(rig.scheduler->CheckIntegrity().ok());
  rig.full.OpenGate();
  EXPECT_TRUE(rig.BlocksComeHome(milliseconds(10000)));
  rig.Finish();
  EXPECT_EQ(rig.full.num_steps(), 1);
}

// A step of which nothing is wanted any more may end early; one with a sequence
// left may not.
TEST(Cancel, OfAllOfAStepAbandonsIt) {
  RigOptions options;
  options.scheduler.prefill_chunk_tokens = 64;
  Rig rig(options);
  std::atomic<bool> was_abandoned = false;
  rig.full.before_run = [&](const StepBatch& batch) -> absl::Status {
    if (batch.sequences.size() < 3) return absl::OkStatus();
    rig.scheduler->Cancel(rig.clients[1]->uid, Cancelled());
    rig.scheduler->Cancel(rig.clients[2]->uid, Cancelled());
    if (*batch.is_abandoned) return absl::InternalError("one was left");
    rig.scheduler->Cancel(rig.clients[3]->uid, Cancelled());
    was_abandoned = batch.is_abandoned->load();
    return Cancelled();
  };
  rig.full.CloseGate();
  rig.Submit(DecodePath::kFull, 5, 1);
  rig.full.AwaitAtGate();
  for (int i = 0; i < 3; ++i) rig.Submit(DecodePath::kTwoStage, 9, 3);
  rig.full.OpenGate();
  for (int i = 1; i <= 3; ++i) rig.ExpectStatus(*rig.clients[i], kCancelled);
  EXPECT_TRUE(rig.BlocksComeHome(milliseconds(10000)));
  EXPECT_TRUE(was_abandoned);
  rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 9, 3));
  rig.Finish();
}

TEST(Cancel, BetweenTwoChunks) {
  Rig rig;
  std::atomic<uint64_t> uid = 0;
  std::atomic<int> steps = 0;
  rig.full.before_run = [&](const StepBatch&) {
    while (uid == 0) std::this_thread::yield();
    if (++steps == 2) rig.scheduler->Cancel(uid, Cancelled());
    return absl::OkStatus();
  };
  Client& client = rig.Submit(DecodePath::kTwoStage, 100, 3);
  uid = client.uid;
  rig.ExpectStatus(client, kCancelled);
  rig.Finish();
  EXPECT_EQ(steps, 2);
}

TEST(Cancel, WhileDecoding) {
  for (bool is_shared : {true, false}) {
    RigOptions options;
    options.is_shared = is_shared;
    Rig rig(options);
    rig.pruned.before_run = [&](const StepBatch&) {
      if (rig.pruned.num_steps() == 2) rig.pruned.CloseGate();
      return absl::OkStatus();
    };
    Client& client = rig.Submit(DecodePath::kTwoStage, 9, 200);
    rig.pruned.AwaitAtGate();
    EXPECT_EQ(rig.scheduler->Stats().requests.decoding, 1);
    // A copied prompt has left the prefill pool's store.
    EXPECT_EQ(rig.Blocks(0).owned, is_shared ? 4 : 0);
    rig.scheduler->Cancel(client.uid, Cancelled());
    rig.ExpectStatus(client, kCancelled);
    EXPECT_EQ(client.tokens.size(), 4u);
    rig.pruned.OpenGate();
    EXPECT_TRUE(rig.BlocksComeHome(milliseconds(10000)));
    EXPECT_EQ(rig.pruned.num_steps(), 4);  // with the one under way
    // The token of that step is neither emitted nor counted.
    EXPECT_EQ(client.tokens.size(), 4u);
    EXPECT_EQ(client.Wait().usage.completion_tokens, 4);
    rig.Finish();
    EXPECT_EQ(rig.observer.counts().tokens, 3);  // after the first one
  }
}

TEST(Cancel, WhileItsCopyIsUnderWayKeepsTheBlocksUntilItIsDone) {
  RigOptions options = Apart();
  options.prefill_blocks = 4;
  options.decode_blocks = 4;
  Rig rig(options);
  rig.mover.CloseGate();
  Client& gone = rig.Submit(DecodePath::kTwoStage, 13, 4);
  rig.mover.AwaitAtGate();
  EXPECT_EQ(rig.scheduler->Stats().requests.migrating, 1);
  EXPECT_TRUE(rig.scheduler->Stats().has_work[1]);
  rig.scheduler->Cancel(gone.uid, Cancelled());
  rig.ExpectStatus(gone, kCancelled);  // does not wait for the copy
  EXPECT_EQ(gone.tokens.size(), 1u);
  EXPECT_EQ(rig.Blocks(0).quarantined, 4);
  EXPECT_EQ(rig.Blocks(1).quarantined, 4);
  EXPECT_TRUE(rig.scheduler->CheckIntegrity().ok());
  // Every other request needs blocks of the one or the other store: none may
  // have those that the copy still reads and writes.
  Client& full = rig.Submit(DecodePath::kFull, 5, 3);
  Client& pruned = rig.Submit(DecodePath::kPruned, 5, 3);
  std::this_thread::sleep_for(milliseconds(30));
  EXPECT_EQ(rig.scheduler->Stats().requests.queued, 2);
  EXPECT_EQ(rig.full.num_steps(), 1);
  EXPECT_EQ(rig.pruned.num_steps(), 0);
  rig.mover.OpenGate();
  rig.ExpectRight(full);
  rig.ExpectRight(pruned);
  rig.Finish();
  EXPECT_EQ(rig.observer.counts().copies, 0);  // not committed
}

TEST(Cancel, BeforeItsCopyHasBegunFreesTheBlocksAtOnce) {
  Rig rig(Apart());
  rig.mover.CloseGate();
  Client& first = rig.Submit(DecodePath::kTwoStage, 8, 2);
  rig.mover.AwaitAtGate();
  Client& second = rig.Submit(DecodePath::kTwoStage, 20, 2);
  second.AwaitTokens(1);
  EXPECT_EQ(rig.Blocks(0).owned, 2 + 5);
  rig.scheduler->Cancel(second.uid, Cancelled());
  rig.ExpectStatus(second, kCancelled);
  EXPECT_EQ(rig.Blocks(0).owned, 2);
  EXPECT_EQ(rig.Blocks(0).quarantined + rig.Blocks(1).quarantined, 0);
  rig.mover.OpenGate();
  rig.ExpectRight(first);
  rig.Finish();
  EXPECT_EQ(rig.mover.num_moves, 1);
}

TEST(Cancel, HasNoEffectOnOneThatEnded) {
  Rig rig;
  Client& client = rig.Submit(DecodePath::kTwoStage, 5, 3);
  rig.ExpectRight(client);
  rig.scheduler->Cancel(client.uid, Cancelled());
  rig.scheduler->Cancel(client.uid + 1000, Cancelled());
  rig.Finish();
}

TEST(Cancel, MayComeFromWithinTheClientsOwnCall) {
  Rig rig;
  rig.Begin();
  std::atomic<uint64_t> uid = 0;
  std::atomic<int> ends = 0;
  std::shared_ptr<EventQueue> events;
  events = std::make_shared<EventQueue>(1 << 20, [&] {
    while (uid == 0) std::this_thread::yield();
    rig.scheduler->Cancel(uid, Cancelled());
    while (auto event = events->Pop()) {
      ends += std::holds_alternative<Terminal>(*event);
    }
  });
  const auto submitted = rig.scheduler->Submit(
      rig.MakeRequest(DecodePath::kTwoStage, 5, 50), events);
  ASSERT_TRUE(submitted.ok());
  uid = *submitted;
  EXPECT_TRUE(rig.scheduler->WaitIdle(std::chrono::seconds(30)));
  EXPECT_EQ(ends, 1);
  EXPECT_TRUE(rig.BlocksComeHome(milliseconds(10000)));
  EXPECT_TRUE(rig.scheduler->CheckIntegrity().ok());
  rig.Destroy();
}

TEST(Cancel, WaitsItsTurnBehindADeltaUnderWay) {
  Rig rig;
  rig.Begin();
  std::atomic<int> calls = 0;
  std::atomic<bool> is_in_call = false;
  std::atomic<bool> two_at_once = false;
  std::atomic<bool> has_ended = false;
  std::shared_ptr<EventQueue> events;
  events = std::make_shared<EventQueue>(1 << 20, [&] {
    if (is_in_call.exchange(true)) two_at_once = true;
    while (auto event = events->Pop()) {
      has_ended = std::holds_alternative<Terminal>(*event);
    }
    ++calls;
    std::this_thread::sleep_for(milliseconds(20));
    is_in_call = false;
  });
  const auto uid = rig.scheduler->Submit(
      rig.MakeRequest(DecodePath::kTwoStage, 5, 50), events);
  ASSERT_TRUE(uid.ok());
  while (calls == 0) std::this_thread::yield();
  rig.scheduler->Cancel(*uid, Cancelled());
  EXPECT_TRUE(rig.scheduler->WaitIdle(std::chrono::seconds(30)));
  EXPECT_TRUE(has_ended);
  EXPECT_FALSE(two_at_once);
  EXPECT_TRUE(rig.scheduler->CheckIntegrity().ok());
  rig.Destroy();
}

}  // namespace
}  // namespace overfill
