#include "scheduler/migration.h"

#include <atomic>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "base/checked_math.h"
#include "base/mutex.h"
#include "gtest/gtest.h"
#include "scheduler/local_transport.h"
#include "tests/scheduler/fake_model.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

KvTransfer Transfer(TokenRange coverage, int32_t block_tokens) {
  KvTransfer transfer{
      .uid = 3, .epoch = 1, .coverage = coverage, .block_tokens = block_tokens};
  const auto count = static_cast<int32_t>(
      CeilDiv(coverage.end - coverage.begin, block_tokens));
  for (int32_t i = 0; i < count; ++i) {
    transfer.source.push_back(10 + i);
    transfer.destination.push_back(50 - i);
  }
  return transfer;
}

TEST(Migration, CopiesCarryEachPositionOnce) {
  for (int32_t block_tokens : {1, 2, 4, 16}) {
    for (int32_t begin_block : {0, 1, 3}) {
      for (int32_t tokens = 1; tokens <= 3 * block_tokens + 1; ++tokens) {
        const int32_t begin = begin_block * block_tokens;
        const KvTransfer transfer =
            Transfer({begin, begin + tokens}, block_tokens);
        const auto copies = PlanCopies(transfer);
        ASSERT_TRUE(copies.ok()) << copies.status();
        int32_t carried = 0;
        for (size_t i = 0; i < copies->size(); ++i) {
          const BlockCopy& copy = (*copies)[i];
          EXPECT_EQ(copy.source, transfer.source[i]);
          EXPECT_EQ(copy.destination, transfer.destination[i]);
          EXPECT_EQ(carried, static_cast<int32_t>(i) * block_tokens);
          EXPECT_GE(copy.num_tokens, 1);
          EXPECT_LE(copy.num_tokens, block_tokens);
          carried += copy.num_tokens;
        }
        EXPECT_EQ(carried, tokens);
      }
    }
  }
}

TEST(Migration, TablesThatDoNotFitTheCoverageAreRefused) {
  KvTransfer transfer = Transfer({0, 9}, 4);
  transfer.source.pop_back();
  EXPECT_FALSE(PlanCopies(transfer).ok());
  transfer = Transfer({0, 9}, 4);
  transfer.destination.push_back(1);
  EXPECT_FALSE(PlanCopies(transfer).ok());
  transfer = Transfer({0, 9}, 4);
  transfer.coverage = {2, 9};
  EXPECT_FALSE(PlanCopies(transfer).ok());
  transfer.coverage = {4, 4};
  EXPECT_FALSE(PlanCopies(transfer).ok());
}

TEST(Migration, OnlyTheExactCommitCounts) {
  const KvTransfer transfer = Transfer({0, 9}, 4);
  const KvCommit good = {.uid = 3,
                         .epoch = 1,
                         .status = absl::OkStatus(),
                         .coverage = {0, 9},
                         .num_blocks = 3};
  EXPECT_TRUE(CheckCommit(transfer, good).ok());
  KvCommit commit = good;
  commit.epoch = 2;
  EXPECT_FALSE(CheckCommit(transfer, commit).ok());
  commit = good;
  commit.uid = 4;
  EXPECT_FALSE(CheckCommit(transfer, commit).ok());
  commit = good;
  commit.coverage = {0, 8};
  EXPECT_FALSE(CheckCommit(transfer, commit).ok());
  commit = good;
  commit.coverage = {1, 9};
  EXPECT_FALSE(CheckCommit(transfer, commit).ok());
  commit = good;
  commit.num_blocks = 2;
  EXPECT_FALSE(CheckCommit(transfer, commit).ok());
  commit = good;
  commit.status = absl::DataLossError("lost");
  EXPECT_EQ(CheckCommit(transfer, commit).code(), absl::StatusCode::kDataLoss);
}

// Collects commits from the transport's thread.
class Commits {
 public:
  void Add(const KvCommit& commit) {
    MutexLock lock(&mu_);
    commits_.push_back(commit);
    changed_.NotifyAll();
  }
  std::vector<KvCommit> Await(size_t count) {
    MutexLock lock(&mu_);
    while (commits_.size() < count) changed_.Wait(&mu_);
    return commits_;
  }
  size_t size() {
    MutexLock lock(&mu_);
    return commits_.size();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<KvCommit> commits_ ABSL_GUARDED_BY(mu_);
};

TEST(LocalTransport, CopiesAndCommitsWhatItMoved) {
  FakeStore source(64, 4);
  FakeStore destination(64, 4);
  for (size_t i = 0; i < source.cells.size(); ++i) source.cells[i] = i;
  const std::vector<uint64_t> before = destination.cells;
  FakeMover mover(&source, &destination);
  Commits commits;
  LocalTransport transport(&mover, [&](const KvCommit& c) { commits.Add(c); });
  const KvTransfer transfer = Transfer({0, 9}, 4);
  transport.Send(transfer);
  const KvCommit commit = commits.Await(1)[0];
  EXPECT_TRUE(CheckCommit(transfer, commit).ok());
  for (int32_t position = 0; position < 12; ++position) {
    const uint64_t got = destination.At(50 - position / 4, position % 4);
    EXPECT_EQ(got, position < 9 ? source.At(10 + position / 4, position % 4)
                                : before[0]);
  }
}

TEST(LocalTransport, OnlyWhatHasNotBegunCanBeAbandoned) {
  FakeStore store(64, 4);
  FakeMover mover(&store, &store);
  mover.CloseGate();
  Commits commits;
  {
    LocalTransport transport(&mover,
                             [&](const KvCommit& c) { commits.Add(c); });
    KvTransfer transfer = Transfer({0, 9}, 4);
    transport.Send(transfer);
    mover.AwaitAtGate();
    transfer.uid = 4;
    transport.Send(transfer);
    transfer.uid = 5;
    transport.Send(transfer);
    EXPECT_FALSE(transport.Abandon(3, 1));
    EXPECT_FALSE(transport.Abandon(4, 2));
    EXPECT_TRUE(transport.Abandon(4, 1));
    EXPECT_FALSE(transport.Abandon(4, 1));
    EXPECT_EQ(commits.size(), 0u);
    mover.OpenGate();
  }
  // 3 was under way; 5 was copied or refused, but has its answer.
  const auto all = commits.Await(2);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].uid, 3u);
  EXPECT_TRUE(all[0].status.ok());
  EXPECT_EQ(all[1].uid, 5u);
}

TEST(LocalTransport, AFailedMoveIsACommitWithItsError) {
  FakeStore store(64, 4);
  FakeMover mover(&store, &store);
  mover.num_failures_to_come = 1;
  Commits commits;
  LocalTransport transport(&mover, [&](const KvCommit& c) { commits.Add(c); });
  transport.Send(Transfer({0, 9}, 4));
  EXPECT_EQ(commits.Await(1)[0].status.code(), absl::StatusCode::kDataLoss);
  transport.Send(Transfer({0, 9}, 4));
  EXPECT_TRUE(commits.Await(2)[1].status.ok());
}

}  // namespace
}  // namespace overfill
