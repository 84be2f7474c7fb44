#include "scheduler/transfer_table.h"

#include <chrono>
#include <map>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

SteadyTime At(int64_t seconds) {
  return SteadyTime(std::chrono::seconds(seconds));
}

// Of one block; `block` names it on both sides.
KvTransfer Transfer(uint64_t uid, uint32_t epoch, int32_t block) {
  return {.uid = uid,
          .epoch = epoch,
          .coverage = {0, 4},
          .block_tokens = 4,
          .source = {block},
          .destination = {block}};
}

KvCommit Commit(const KvTransfer& transfer) {
  return {.uid = transfer.uid,
          .epoch = transfer.epoch,
          .status = absl::OkStatus(),
          .coverage = transfer.coverage,
          .num_blocks = static_cast<int64_t>(transfer.source.size()),
          .sent_digest = 9,
          .received_digest = 9};
}

TEST(TransferTable, ACommitEndsATransferOnce) {
  TransferTable table;
  const KvTransfer transfer = Transfer(7, 1, 3);
  table.Begin(transfer, At(10));
  EXPECT_EQ(table.counts().sending, 1);
  const auto finished = table.OnCommit(Commit(transfer));
  ASSERT_TRUE(finished.has_value());
  EXPECT_TRUE(finished->status.ok());
  EXPECT_EQ(finished->digest, 9u);
  EXPECT_EQ(finished->transfer.source, transfer.source);
  EXPECT_EQ(table.counts().sending, 0);
  EXPECT_FALSE(table.OnCommit(Commit(transfer)).has_value());
  EXPECT_EQ(table.counts().unknown_commits, 1);
  EXPECT_TRUE(table.CheckIntegrity().ok());
}

TEST(TransferTable, AWrongCommitEndsATransferWithAnError) {
  KvTransfer transfer = Transfer(7, 1, 3);
  const auto status_of = [&](auto change) {
    TransferTable table;
    table.Begin(transfer, At(10));
    KvCommit commit = Commit(transfer);
    change(commit);
    const auto finished = table.OnCommit(commit);
    EXPECT_EQ(table.counts().sending, 0);
    return finished ? finished->status : absl::NotFoundError("no effect");
  };
  EXPECT_TRUE(status_of([](KvCommit& c) {}).ok());
  EXPECT_EQ(status_of([](KvCommit& c) { c.coverage.end = 3; }).code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(status_of([](KvCommit& c) { c.num_blocks = 0; }).code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(status_of([](KvCommit& c) { c.received_digest = 8; }).code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(
      status_of([](KvCommit& c) { c.status = absl::AbortedError(""); }).code(),
      absl::StatusCode::kAborted);
}

TEST(TransferTable, CommitsOfOthersHaveNoEffect) {
  TransferTable table;
  const KvTransfer transfer = Transfer(7, 2, 3);
  table.Begin(transfer, At(10));
  for (const auto& [uid, epoch] : std::vector<std::pair<uint64_t, uint32_t>>{
           {7, 1}, {7, 3}, {8, 2}, {0, 0}}) {
    KvCommit commit = Commit(transfer);
    commit.uid = uid;
    commit.epoch = epoch;
    EXPECT_FALSE(table.OnCommit(commit).has_value());
  }
  EXPECT_EQ(table.counts().unknown_commits, 4);
  EXPECT_EQ(table.counts().sending, 1);
  EXPECT_TRUE(table.OnCommit(Commit(transfer)).has_value());
}

TEST(TransferTable, AfterItsLeaseOnlyTheFenceEndsATransfer) {
  TransferTable table;
  const KvTransfer transfer = Transfer(7, 1, 3);
  table.Begin(transfer, At(10));
  EXPECT_EQ(table.NextLease(), At(10));
  EXPECT_TRUE(table.Expire(At(10) - std::chrono::nanoseconds(1)).empty());
  // Nobody has asked for a fence yet.
  EXPECT_FALSE(table.OnFenced(7, 1).has_value());
  ASSERT_EQ(table.Expire(At(10)).size(), 1u);
  EXPECT_TRUE(table.Expire(At(99)).empty());
  EXPECT_EQ(table.NextLease(), SteadyTime::max());
  EXPECT_EQ(table.counts().fencing, 1);
  EXPECT_EQ(table.counts().sending, 0);

  EXPECT_FALSE(table.OnCommit(Commit(transfer)).has_value());
  EXPECT_EQ(table.counts().commits_while_fencing, 1);
  const auto fenced = table.OnFenced(7, 1);
  ASSERT_TRUE(fenced.has_value());
  EXPECT_EQ(fenced->destination, transfer.destination);
  EXPECT_FALSE(table.OnFenced(7, 1).has_value());
  EXPECT_EQ(table.counts().unknown_fences, 2);
  EXPECT_EQ(table.counts().fencing, 0);
  EXPECT_TRUE(table.CheckIntegrity().ok());
}

TEST(TransferTable, ANewEpochRunsWhileAnOldOneIsFencing) {
  TransferTable table;
  const KvTransfer old_one = Transfer(7, 1, 3);
  const KvTransfer new_one = Transfer(7, 2, 4);
  table.Begin(old_one, At(10));
  table.Expire(At(10));
  table.Begin(new_one, At(20));
  EXPECT_TRUE(table.CheckIntegrity().ok());
  EXPECT_FALSE(table.OnCommit(Commit(old_one)).has_value());
  const auto finished = table.OnCommit(Commit(new_one));
  ASSERT_TRUE(finished.has_value());
  EXPECT_EQ(finished->transfer.epoch, 2u);
  EXPECT_TRUE(table.OnFenced(7, 1).has_value());
}

TEST(TransferTableDeathTest, AnEpochIsUsedOnce) {
  TransferTable table;
  table.Begin(Transfer(7, 2, 3), At(10));
  EXPECT_DEATH(table.Begin(Transfer(7, 2, 4), At(10)), "not a new one");
  EXPECT_DEATH(table.Begin(Transfer(7, 1, 4), At(10)), "not a new one");
  EXPECT_DEATH(table.Abandoned(7, 1), "not there");
}

TEST(TransferTable, IntegrityNamesABlockOfTwoTransfers) {
  TransferTable two_writers;
  two_writers.Begin(Transfer(7, 1, 3), At(1));
  two_writers.Begin(Transfer(8, 1, 3), At(1));
  EXPECT_EQ(two_writers.CheckIntegrity().message(),
            "block 3 of store 1 is written by two transfers");
  TransferTable read_and_written;
  read_and_written.Begin(Transfer(7, 1, 3), At(1));
  KvTransfer swap_out = Transfer(8, 1, 3);
  swap_out.from_store = kDecodeStore;
  swap_out.to_store = kDecodeSwapStore;
  read_and_written.Begin(swap_out, At(1));
  EXPECT_EQ(read_and_written.CheckIntegrity().message(),
            "block 3 of store 1 is read and written by transfers");
  // Two may read one block.
  TransferTable forks;
  KvTransfer fork = Transfer(7, 1, 3);
  fork.to_store = fork.from_store;
  fork.destination = {4};
  forks.Begin(fork, At(1));
  fork.uid = 8;
  fork.destination = {5};
  forks.Begin(fork, At(1));
  EXPECT_TRUE(forks.CheckIntegrity().ok());
}

// What the table must say, as a list of what lives.
struct Reference {
  struct Live {
    SteadyTime lease_end;
    bool is_fencing = false;
  };
  std::map<std::pair<uint64_t, uint32_t>, Live> live;
};

TEST(TransferTable, RandomMessagesLeaveItRight) {
  std::mt19937_64 random(TestSeed());
  for (int schedule = 0; schedule < 300; ++schedule) {
    TransferTable table;
    Reference reference;
    std::map<uint64_t, uint32_t> last_epoch;
    SteadyTime now = At(0);
    int32_t next_block = 0;
    int64_t discarded = 0;
    for (int step = 0; step < 200; ++step) {
      const uint64_t uid = random() % 4;
      const uint32_t epoch = random() % 3 == 0
                                 ? static_cast<uint32_t>(random() % 9)
                                 : last_epoch[uid];
      const auto it = reference.live.find({uid, epoch});
      const bool is_sending =
          it != reference.live.end() && !it->second.is_fencing;
      switch (random() % 5) {
        case 0: {
          const SteadyTime lease_end = now + std::chrono::seconds(random() % 5);
          table.Begin(Transfer(uid, ++last_epoch[uid], next_block++),
                      lease_end);
          reference.live[{uid, last_epoch[uid]}] = {lease_end};
          break;
        }
        case 1: {
          const auto finished = table.OnCommit(Commit(Transfer(uid, epoch, 0)));
          ASSERT_EQ(finished.has_value(), is_sending);
          if (is_sending) reference.live.erase(it);
          discarded += !is_sending;
          break;
        }
        case 2: {
          const bool is_fencing =
              it != reference.live.end() && it->second.is_fencing;
          ASSERT_EQ(table.OnFenced(uid, epoch).has_value(), is_fencing);
          if (is_fencing) reference.live.erase(it);
          discarded += !is_fencing;
          break;
        }
        case 3: {
          now += std::chrono::seconds(random() % 2);
          size_t num_expired = 0;
          for (auto& [id, live] : reference.live) {
            if (live.is_fencing || live.lease_end > now) continue;
            live.is_fencing = true;
            ++num_expired;
          }
          ASSERT_EQ(table.Expire(now).size(), num_expired);
          break;
        }
        default:
          if (!is_sending) break;
          ASSERT_EQ(table.Abandoned(uid, epoch).epoch, epoch);
          reference.live.erase(it);
      }
      SteadyTime next = SteadyTime::max();
      int32_t fencing = 0;
      for (const auto& [id, live] : reference.live) {
        fencing += live.is_fencing;
        if (!live.is_fencing) next = std::min(next, live.lease_end);
      }
      const TransferCounts& counts = table.counts();
      ASSERT_EQ(table.NextLease(), next);
      ASSERT_EQ(counts.fencing, fencing);
      ASSERT_EQ(counts.sending + fencing,
                static_cast<int32_t>(reference.live.size()));
      ASSERT_EQ(counts.unknown_commits + counts.commits_while_fencing +
                    counts.unknown_fences,
                discarded);
      ASSERT_TRUE(table.CheckIntegrity().ok()) << table.CheckIntegrity();
    }
  }
}

}  // namespace
}  // namespace overfill
