#include "scheduler/local_transport.h"

#include <cstdint>
#include <map>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/transfer_rules.h"
#include "tests/scheduler/fake_model.h"
#include "tests/scheduler/transfer_events.h"

namespace overfill {
namespace {

const LocalTransport::Movers::key_type kMigration = {kPrefillStore,
                                                     kDecodeStore};
const LocalTransport::Movers::key_type kSwapOut = {kDecodeStore,
                                                   kDecodeSwapStore};

KvTransfer Transfer(uint64_t uid, LocalTransport::Movers::key_type stores) {
  return {.uid = uid,
          .epoch = 1,
          .from_store = stores.first,
          .to_store = stores.second,
          .coverage = {0, 9},
          .block_tokens = 4,
          .source = {10, 11, 12},
          .destination = {50, 49, 48}};
}

class LocalTransportTest : public testing::Test {
 protected:
  LocalTransportTest()
      : migration_(&prefill_, &decode_), swap_out_(&decode_, &swap_) {
    for (size_t i = 0; i < prefill_.cells.size(); ++i) prefill_.cells[i] = i;
    for (size_t i = 0; i < decode_.cells.size(); ++i) decode_.cells[i] = ~i;
    transport_.emplace(LocalTransport::Movers{{kMigration, &migration_},
                                              {kSwapOut, &swap_out_}});
    transport_->Start(events_.Callbacks());
  }
  ~LocalTransportTest() override {
    migration_.OpenGate();
    swap_out_.OpenGate();
  }

  FakeStore prefill_{64, 4};
  FakeStore decode_{64, 4};
  FakeStore swap_{64, 4};
  FakeMover migration_;
  FakeMover swap_out_;
  TransferEvents events_;
  std::optional<LocalTransport> transport_;
};

TEST_F(LocalTransportTest, CopiesAndCommitsWhatItMoved) {
  const std::vector<uint64_t> before = decode_.cells;
  const KvTransfer transfer = Transfer(3, kMigration);
  transport_->Send(transfer);
  const KvCommit commit = events_.AwaitCommits(1)[0];
  EXPECT_TRUE(CheckCommit(transfer, commit).ok());
  EXPECT_TRUE(commit.sent_digest.has_value());
  EXPECT_EQ(commit.sent_digest, commit.received_digest);
  for (int32_t block = 0; block < 64; ++block) {
    for (int32_t slot = 0; slot < 4; ++slot) {
      const int32_t position = (50 - block) * 4 + slot;
      EXPECT_EQ(decode_.At(block, slot),
                block >= 48 && block <= 50 && position < 9
                    ? prefill_.At(10 + position / 4, slot)
                    : before[block * 4 + slot]);
    }
  }
}

TEST_F(LocalTransportTest, ADigestSeesWhatArrivesWrong) {
  migration_.fault = Fault::kCopyShifted;
  const KvTransfer transfer = Transfer(3, kMigration);
  transport_->Send(transfer);
  EXPECT_EQ(CheckCommit(transfer, events_.AwaitCommits(1)[0]).code(),
            absl::StatusCode::kDataLoss);
  migration_.fault = Fault::kNone;
  migration_.copies_bytes = false;
  transport_->Send(transfer);
  EXPECT_FALSE(events_.AwaitCommits(2)[1].sent_digest.has_value());
}

TEST_F(LocalTransportTest, OnlyWhatHasNotBegunCanBeAbandoned) {
  migration_.CloseGate();
  transport_->Send(Transfer(3, kMigration));
  migration_.AwaitAtGate();
  transport_->Send(Transfer(4, kMigration));
  transport_->Send(Transfer(5, kMigration));
  EXPECT_FALSE(transport_->Abandon(3, 1));
  EXPECT_FALSE(transport_->Abandon(4, 2));
  EXPECT_TRUE(transport_->Abandon(4, 1));
  EXPECT_FALSE(transport_->Abandon(4, 1));
  EXPECT_EQ(events_.num_commits(), 0u);
  migration_.OpenGate();
  transport_.reset();
  // 3 was under way; 5 was copied or refused, but has its answer.
  const auto commits = events_.AwaitCommits(2);
  ASSERT_EQ(commits.size(), 2u);
  EXPECT_EQ(commits[0].uid, 3u);
  EXPECT_TRUE(commits[0].status.ok());
  EXPECT_EQ(commits[1].uid, 5u);
  EXPECT_EQ(events_.num_fenced(), 0u);
}

TEST_F(LocalTransportTest, AFailedMoveIsACommitWithItsError) {
  migration_.num_failures_to_come = 1;
  transport_->Send(Transfer(3, kMigration));
  EXPECT_EQ(events_.AwaitCommits(1)[0].status.code(),
            absl::StatusCode::kDataLoss);
  transport_->Send(Transfer(4, kMigration));
  EXPECT_TRUE(events_.AwaitCommits(2)[1].status.ok());
}

TEST_F(LocalTransportTest, TablesThatDoNotFitAreACommitWithTheError) {
  KvTransfer transfer = Transfer(3, kMigration);
  transfer.source.pop_back();
  transport_->Send(transfer);
  EXPECT_EQ(events_.AwaitCommits(1)[0].status.code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(migration_.num_moves, 0);
}

TEST_F(LocalTransportTest, AStuckLinkStopsNoOther) {
  migration_.CloseGate();
  transport_->Send(Transfer(3, kMigration));
  migration_.AwaitAtGate();
  transport_->Send(Transfer(4, kSwapOut));
  EXPECT_EQ(events_.AwaitCommits(1)[0].uid, 4u);
  // Nor the fences of what waits behind it.
  transport_->Send(Transfer(5, kMigration));
  transport_->Fence(5, 1);
  EXPECT_EQ(events_.AwaitFenced(1)[0], std::make_pair(uint64_t{5}, 1u));
  EXPECT_FALSE(transport_->Abandon(5, 1));
}

TEST_F(LocalTransportTest, AFenceWaitsForTheCopyAndTakesItsCommitsPlace) {
  migration_.CloseGate();
  transport_->Send(Transfer(3, kMigration));
  migration_.AwaitAtGate();
  const std::vector<uint64_t> before = decode_.cells;
  transport_->Fence(3, 1);
  transport_->Fence(3, 2);  // another epoch: unknown, so at once
  EXPECT_EQ(events_.AwaitFenced(1)[0], std::make_pair(uint64_t{3}, 2u));
  EXPECT_EQ(decode_.cells, before);
  migration_.OpenGate();
  EXPECT_EQ(events_.AwaitFenced(2)[1], std::make_pair(uint64_t{3}, 1u));
  // Nothing is written after it.
  const std::vector<uint64_t> after = decode_.cells;
  EXPECT_NE(after, before);
  transport_.reset();
  EXPECT_EQ(decode_.cells, after);
  EXPECT_EQ(events_.num_commits(), 0u);
  EXPECT_EQ(events_.num_fenced(), 2u);
}

TEST_F(LocalTransportTest, AFenceOfWhatIsOverIsAnswered) {
  transport_->Send(Transfer(3, kMigration));
  events_.AwaitCommits(1);
  transport_->Fence(3, 1);
  transport_->Fence(99, 7);
  EXPECT_EQ(events_.AwaitFenced(2).size(), 2u);
  EXPECT_EQ(events_.num_commits(), 1u);
}

// Every transfer ends exactly once, whoever calls what at the same time.
TEST_F(LocalTransportTest, CallsFromManyThreadsEndEachTransferOnce) {
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kTransfers = 300;
  std::vector<std::thread> threads;
  std::vector<std::map<uint64_t, bool>> abandoned(kThreads);
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < kTransfers; ++i) {
        const uint64_t uid = t * kTransfers + i;
        transport_->Send(Transfer(uid, i % 2 == 0 ? kMigration : kSwapOut));
        if (i % 3 == 0) abandoned[t][uid] = transport_->Abandon(uid, 1);
        if (i % 3 == 1) transport_->Fence(uid, 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  transport_.reset();
  std::map<uint64_t, int> commits;
  std::map<uint64_t, int> fences;
  for (const KvCommit& commit : events_.AwaitCommits(0)) ++commits[commit.uid];
  for (const auto& [uid, epoch] : events_.AwaitFenced(0)) ++fences[uid];
  for (uint64_t uid = 0; uid < kThreads * kTransfers; ++uid) {
    const bool was_abandoned = abandoned[uid / kTransfers][uid];
    const bool was_fenced = uid % kTransfers % 3 == 1;
    EXPECT_EQ(fences[uid], was_fenced ? 1 : 0);
    if (was_fenced) {
      EXPECT_LE(commits[uid], 1);
    } else {
      EXPECT_EQ(commits[uid], was_abandoned ? 0 : 1);
    }
  }
}

}  // namespace
}  // namespace overfill
