#include "scheduler/transfer_rules.h"

#include <optional>
#include <vector>

#include "base/checked_math.h"
#include "gtest/gtest.h"

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

TEST(TransferRules, CopiesCarryEachPositionOnce) {
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

TEST(TransferRules, TablesThatDoNotFitTheCoverageAreRefused) {
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

TEST(TransferRules, OnlyTheExactCommitCounts) {
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

TEST(TransferRules, DigestsMustAgreeWhereThereAreAny) {
  const KvTransfer transfer = Transfer({4, 9}, 4);
  KvCommit commit = {.uid = 3,
                     .epoch = 1,
                     .status = absl::OkStatus(),
                     .coverage = {4, 9},
                     .num_blocks = 2,
                     .sent_digest = 7,
                     .received_digest = 7};
  EXPECT_TRUE(CheckCommit(transfer, commit).ok());
  commit.received_digest = 8;
  EXPECT_EQ(CheckCommit(transfer, commit).code(), absl::StatusCode::kDataLoss);
  commit.received_digest.reset();
  EXPECT_EQ(CheckCommit(transfer, commit).code(), absl::StatusCode::kDataLoss);
  commit.sent_digest.reset();
  EXPECT_TRUE(CheckCommit(transfer, commit).ok());
  commit.received_digest = 0;
  EXPECT_EQ(CheckCommit(transfer, commit).code(), absl::StatusCode::kDataLoss);
}

TEST(TransferRules, WhatComesBackFromSwapIsWhatWentOut) {
  KvCommit commit = {.uid = 3, .epoch = 2, .status = {}, .coverage = {0, 9}};
  commit.received_digest = 7;
  EXPECT_TRUE(CheckSwappedIn(7, commit).ok());
  EXPECT_EQ(CheckSwappedIn(8, commit).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(CheckSwappedIn(std::nullopt, commit).code(),
            absl::StatusCode::kDataLoss);
  commit.received_digest.reset();
  EXPECT_EQ(CheckSwappedIn(7, commit).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(CheckSwappedIn(std::nullopt, commit).code(),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace overfill
