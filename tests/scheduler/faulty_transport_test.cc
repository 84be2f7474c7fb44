#include "tests/support/faulty_transport.h"

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/local_transport.h"
#include "scheduler/transfer_rules.h"
#include "scheduler/transfer_table.h"
#include "tests/scheduler/fake_model.h"
#include "tests/scheduler/transfer_events.h"
#include "tests/scheduler/transfer_jobs.h"
#include "tests/scheduler/transfer_stores.h"
#include "tests/support/faulty_mover.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

FaultRates AllFaults() {
  return {.delay = 0.06,
          .drop = 0.06,
          .duplicate = 0.06,
          .reorder = 0.06,
          .truncate = 0.06,
          .flip = 0.06,
          .stall = 0.06,
          .fail = 0.06,
          .late_fence = 0.5};
}

class FaultyTransportTest : public testing::TestWithParam<bool> {
 protected:
  FaultyTransportTest() {
    stores_ = GetParam() ? MakeDeviceStores() : MakeFakeStores();
  }
  std::unique_ptr<Stores> stores_;
};

TEST_P(FaultyTransportTest, WithoutFaultsIsTheOneInside) {
  Jobs jobs(stores_.get(), {.rates = {}, .lease = std::chrono::minutes(1)});
  jobs.Run();
  EXPECT_EQ(jobs.num_corrupted(), 0);
  EXPECT_EQ(jobs.num_retries(), 0);
  EXPECT_EQ(jobs.faults().transfers, 300);
}

TEST_P(FaultyTransportTest, NoFaultReachesAJobNorKeepsABlock) {
  Jobs jobs(stores_.get(), {.rates = AllFaults()});
  jobs.Run();
  EXPECT_EQ(jobs.num_corrupted(), 0);
  const FaultCounts faults = jobs.faults();
  for (int64_t count : {faults.delayed, faults.dropped, faults.duplicated,
                        faults.reordered, faults.truncated, faults.flipped,
                        faults.stalled, faults.failed, faults.late_fences}) {
    EXPECT_GT(count, 0);
  }
  EXPECT_EQ(faults.transfers, 300 + jobs.num_retries());
  EXPECT_GE(jobs.num_retries(), faults.dropped + faults.truncated +
                                    faults.flipped + faults.stalled +
                                    faults.failed);
}

// That is: the test above would have seen these bugs.
TEST_P(FaultyTransportTest, BlocksFreedBeforeTheFenceShowAsCorruption) {
  const std::unique_ptr<Stores> locked = MakeLockedStores(stores_.get());
  Jobs jobs(locked.get(), {.rates = {.stall = 0.3},
                           .lease = std::chrono::milliseconds(5),
                           .frees_before_fence = true});
  jobs.Run();
  EXPECT_GT(jobs.num_corrupted(), 0);
}

TEST_P(FaultyTransportTest, CommitsTakenUncheckedShowAsCorruption) {
  Jobs jobs(stores_.get(), {.rates = {.truncate = 0.1, .flip = 0.2},
                            .takes_any_commit = true});
  jobs.Run();
  EXPECT_GT(jobs.num_corrupted(), 0);
}

struct Outcome {
  FaultCounts counts;
  std::vector<KvCommit> commits;
};
constexpr int kNumSends = 400;

int64_t NumOver(const FaultCounts& counts) {
  return counts.unharmed + counts.delayed + counts.dropped + counts.duplicated +
         counts.reordered + counts.truncated + counts.flipped + counts.stalled +
         counts.failed;
}

// What becomes of transfers that nobody fences.
Outcome SendMany(const FaultRates& rates) {
  FakeStore store(8, kJobBlockTokens);
  FakeMover mover(&store, &store);
  TransferEvents events;
  Outcome outcome;
  {
    FaultyTransport transport(
        std::make_unique<LocalTransport>(
            LocalTransport::Movers{{{kPrefillStore, kDecodeStore}, &mover}}),
        {.seed = TestSeed(), .rates = rates});
    transport.Start(events.Callbacks());
    for (int i = 0; i < kNumSends; ++i) {
      transport.Send({.uid = static_cast<uint64_t>(i),
                      .epoch = 1,
                      .coverage = {0, 6},
                      .block_tokens = kJobBlockTokens,
                      .source = {0, 1},
                      .destination = {2, 3}});
    }
    while (NumOver(transport.counts()) < kNumSends) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    outcome.counts = transport.counts();
  }
  outcome.commits = events.AwaitCommits(0);
  return outcome;
}

int NumInversions(const std::vector<KvCommit>& commits) {
  int inversions = 0;
  for (size_t i = 1; i < commits.size(); ++i) {
    inversions += commits[i].uid < commits[i - 1].uid;
  }
  return inversions;
}

TEST(FaultyTransport, TheSeedAndTheOrderDecide) {
  const FaultCounts once = SendMany(AllFaults()).counts;
  const FaultCounts again = SendMany(AllFaults()).counts;
  for (int64_t FaultCounts::*count :
       {&FaultCounts::delayed, &FaultCounts::dropped, &FaultCounts::duplicated,
        &FaultCounts::reordered, &FaultCounts::truncated, &FaultCounts::flipped,
        &FaultCounts::stalled, &FaultCounts::failed}) {
    EXPECT_GT(once.*count, 0);
    EXPECT_EQ(once.*count, again.*count);
  }
}

TEST(FaultyTransport, EachFaultIsWhatItsNameSays) {
  const auto num_commits = [](const Outcome& outcome) {
    return static_cast<int64_t>(outcome.commits.size());
  };
  const auto codes = [](const Outcome& outcome) {
    std::map<absl::StatusCode, int64_t> codes;
    for (const KvCommit& commit : outcome.commits) {
      const KvTransfer sent{.uid = commit.uid,
                            .epoch = 1,
                            .coverage = {0, 6},
                            .block_tokens = kJobBlockTokens,
                            .source = {0, 1},
                            .destination = {2, 3}};
      ++codes[CheckCommit(sent, commit).code()];
    }
    return codes;
  };
  Outcome outcome = SendMany({.drop = 0.2});
  EXPECT_GT(outcome.counts.dropped, 0);
  EXPECT_EQ(num_commits(outcome), kNumSends - outcome.counts.dropped);
  outcome = SendMany({.duplicate = 0.2});
  EXPECT_GT(outcome.counts.duplicated, 0);
  EXPECT_EQ(num_commits(outcome), kNumSends + outcome.counts.duplicated);
  EXPECT_EQ(codes(outcome)[absl::StatusCode::kOk], num_commits(outcome));
  for (const FaultRates& rates :
       {FaultRates{.delay = 0.2}, FaultRates{.reorder = 0.2}}) {
    outcome = SendMany(rates);
    EXPECT_EQ(num_commits(outcome), kNumSends);
    EXPECT_GT(outcome.counts.delayed + outcome.counts.reordered, 0);
    EXPECT_GT(NumInversions(outcome.commits), 0);
  }
  EXPECT_EQ(NumInversions(SendMany({}).commits), 0);
  outcome = SendMany({.truncate = 0.2});
  EXPECT_GT(outcome.counts.truncated, 0);
  EXPECT_EQ(codes(outcome)[absl::StatusCode::kInternal],
            outcome.counts.truncated);
  outcome = SendMany({.flip = 0.2});
  EXPECT_GT(outcome.counts.flipped, 0);
  EXPECT_EQ(codes(outcome)[absl::StatusCode::kDataLoss],
            outcome.counts.flipped);
  outcome = SendMany({.fail = 0.2});
  EXPECT_GT(outcome.counts.failed, 0);
  EXPECT_EQ(codes(outcome)[absl::StatusCode::kUnavailable],
            outcome.counts.failed);
  // What stalls is told of when the transport ends.
  outcome = SendMany({.stall = 0.2});
  EXPECT_GT(outcome.counts.stalled, 0);
  EXPECT_EQ(codes(outcome)[absl::StatusCode::kUnavailable],
            outcome.counts.stalled);
  EXPECT_EQ(num_commits(outcome), kNumSends);
}

TEST(FaultyMover, SpoiledBytesAreSeenByTheDigest) {
  FakeStore source(8, kJobBlockTokens);
  FakeStore destination(8, kJobBlockTokens);
  FakeMover mover(&source, &destination);
  for (bool truncates : {false, true}) {
    FaultRates rates;
    (truncates ? rates.truncate : rates.flip) = 0.5;
    FaultyMover faulty(
        &mover,
        {.seed = TestSeed(),
         .rates = rates,
         .hooks = {.flip =
                       [&](int32_t block, int32_t num_tokens, uint64_t random) {
                         destination.At(block, random % num_tokens) ^= 1;
                       },
                   .received_digest =
                       [&](std::span<const BlockCopy> blocks,
                           int32_t first_position) {
                         return mover.DestinationDigest(blocks, first_position);
                       }}});
    int num_seen = 0;
    for (int i = 0; i < 200; ++i) {
      const std::vector<BlockCopy> copies = {{1, 6, 4}, {2, 5, 3}};
      const auto moved = faulty.Move(copies, 4);
      ASSERT_TRUE(moved.ok());
      const bool is_seen = moved->sent_digest != moved->received_digest;
      bool is_wrong = false;
      for (const BlockCopy& copy : copies) {
        for (int32_t slot = 0; slot < copy.num_tokens; ++slot) {
          is_wrong = is_wrong || source.At(copy.source, slot) !=
                                     destination.At(copy.destination, slot);
        }
      }
      ASSERT_EQ(is_seen, is_wrong);
      num_seen += is_seen;
    }
    const FaultCounts counts = faulty.counts();
    EXPECT_GT(num_seen, 0);
    EXPECT_EQ(truncates ? counts.truncated : counts.flipped, num_seen);
  }
}

// A copy that never returns: its transfer stays fencing, everything else goes
// on.
TEST(FaultyMover, AStallForEverKeepsOnlyItsOwnBlocks) {
  FakeStore source(8, kJobBlockTokens);
  FakeStore destination(8, kJobBlockTokens);
  FakeStore swap(8, kJobBlockTokens);
  FakeMover mover(&source, &destination);
  FakeMover swap_mover(&destination, &swap);
  FaultyMover stalling(&mover, {.rates = {.stall = 1}});
  TransferEvents events;
  TransferTable table;
  LocalTransport transport({{{kPrefillStore, kDecodeStore}, &stalling},
                            {{kDecodeStore, kDecodeSwapStore}, &swap_mover}});
  transport.Start(events.Callbacks());
  const auto send = [&](uint64_t uid, int32_t from, int32_t to, int32_t block) {
    const KvTransfer transfer{.uid = uid,
                              .epoch = 1,
                              .from_store = from,
                              .to_store = to,
                              .coverage = {0, 4},
                              .block_tokens = kJobBlockTokens,
                              .source = {block},
                              .destination = {block}};
    table.Begin(transfer, SteadyTime{});
    transport.Send(transfer);
  };
  send(1, kPrefillStore, kDecodeStore, 1);
  stalling.AwaitStall();
  send(2, kPrefillStore, kDecodeStore, 2);
  for (const KvTransfer& transfer : table.Expire(SteadyTime{})) {
    transport.Fence(transfer.uid, transfer.epoch);
  }
  EXPECT_EQ(table.counts().fencing, 2);
  // What waited behind it is over; it is not.
  const auto fenced = events.AwaitFenced(1);
  ASSERT_EQ(fenced.size(), 1u);
  EXPECT_TRUE(table.OnFenced(fenced[0].first, fenced[0].second).has_value());
  for (uint64_t uid = 10; uid < 20; ++uid) {
    send(uid, kDecodeStore, kDecodeSwapStore, 3);
    const auto commits = events.AwaitCommits(uid - 9);
    EXPECT_TRUE(table.OnCommit(commits.back())->status.ok());
  }
  EXPECT_EQ(table.counts().fencing, 1);
  EXPECT_EQ(table.counts().sending, 0);
  EXPECT_EQ(events.num_fenced(), 1u);
  stalling.Release();
  EXPECT_EQ(events.AwaitFenced(2)[1].first, 1u);
  EXPECT_TRUE(table.OnFenced(1, 1).has_value());
  EXPECT_EQ(events.num_commits(), 10u);
}

INSTANTIATE_TEST_SUITE_P(Stores, FaultyTransportTest, testing::Bool(),
                         [](const auto& info) {
                           return info.param ? "Device" : "Fake";
                         });

}  // namespace
}  // namespace overfill
