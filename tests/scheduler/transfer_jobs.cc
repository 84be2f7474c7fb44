#include "tests/scheduler/transfer_jobs.h"

#include <algorithm>
#include <thread>

#include "base/check.h"
#include "base/checked_math.h"
#include "gtest/gtest.h"
#include "scheduler/local_transport.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::minutes kPatience(3);
constexpr size_t kMaxLive = 8;

}  // namespace

Jobs::Jobs(Stores* stores, const Options& options)
    : stores_(stores),
      options_(options),
      random_(TestSeed()),
      pools_{BlockPool(kNumJobBlocks), BlockPool(kNumJobBlocks)} {
  auto local = std::make_unique<LocalTransport>(
      LocalTransport::Movers{{{kPrefillStore, kDecodeStore}, stores->mover()}});
  transport_ = std::make_unique<FaultyTransport>(
      std::move(local),
      FaultyTransport::Options{.seed = TestSeed(),
                               .rates = options.rates,
                               .max_delay = std::chrono::milliseconds(5),
                               .hooks = stores->Hooks()});
  transport_->Start(events_.Callbacks());
}

void Jobs::Run() {
  const auto begin = Clock::now();
  // What is still fencing comes home without any job.
  while (num_done_ < options_.num_jobs || table_.counts().fencing > 0) {
    OVERFILL_CHECK(Clock::now() - begin < kPatience) << "jobs hang";
    while (live_.size() < kMaxLive && num_started_ < options_.num_jobs &&
           Start()) {
    }
    Take();
    Expire();
    Retry();
    LookAndEnd();
    CheckIntegrity();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  for (const BlockPool& pool : pools_) {
    EXPECT_EQ(pool.num_free(), kNumJobBlocks);
  }
}

bool Jobs::Start() {
  Job job;
  job.num_tokens = static_cast<int32_t>(1 + random_() % 15);
  const auto blocks =
      static_cast<int32_t>(CeilDiv(job.num_tokens, kJobBlockTokens));
  if (pools_[0].available() < blocks || pools_[1].available() < blocks) {
    return false;
  }
  const auto uid = static_cast<uint64_t>(++num_started_);
  job.content = uid * 16;
  for (int store = 0; store < 2; ++store) Allocate(job, uid, store, blocks);
  for (int32_t i = 0; i < blocks; ++i) {
    stores_->Fill(job.tables[0][i], job.content + i);
  }
  Send(uid, job);
  live_[uid] = std::move(job);
  return true;
}

void Jobs::Allocate(Job& job, uint64_t uid, int store, int32_t blocks) {
  OVERFILL_CHECK(pools_[store].Reserve(blocks));
  for (int32_t i = 0; i < blocks; ++i) {
    job.tables[store].push_back(pools_[store].Allocate(uid));
  }
}

void Jobs::Release(Job& job, uint64_t uid, int store) {
  for (int32_t block : job.tables[store]) pools_[store].Release(block, uid);
  job.tables[store].clear();
}

void Jobs::Send(uint64_t uid, Job& job) {
  KvTransfer transfer{.uid = uid,
                      .epoch = ++job.epoch,
                      .coverage = {0, job.num_tokens},
                      .block_tokens = kJobBlockTokens,
                      .source = job.tables[0],
                      .destination = job.tables[1]};
  pins_[{uid, job.epoch}] = {pools_[0].Pin(transfer.source, "a copy"),
                             pools_[1].Pin(transfer.destination, "a copy")};
  table_.Begin(transfer, Clock::now() + options_.lease);
  transport_->Send(std::move(transfer));
}

void Jobs::Unpin(const KvTransfer& transfer) {
  const auto it = pins_.find({transfer.uid, transfer.epoch});
  if (it == pins_.end()) return;  // freed before the fence
  pools_[0].Unpin(it->second.source);
  pools_[1].Unpin(it->second.destination);
  pins_.erase(it);
}

void Jobs::Take() {
  const auto commits = events_.AwaitCommits(0);
  for (; num_commits_taken_ < commits.size(); ++num_commits_taken_) {
    TakeCommit(commits[num_commits_taken_]);
  }
  const auto fenced = events_.AwaitFenced(0);
  for (; num_fenced_taken_ < fenced.size(); ++num_fenced_taken_) {
    const auto [uid, epoch] = fenced[num_fenced_taken_];
    const auto transfer = table_.OnFenced(uid, epoch);
    ASSERT_TRUE(transfer.has_value());
    Unpin(*transfer);
  }
}

void Jobs::TakeCommit(const KvCommit& commit) {
  const auto finished = table_.OnCommit(commit);
  if (!finished) return;
  const uint64_t uid = finished->transfer.uid;
  Unpin(finished->transfer);
  Job& job = live_.at(uid);
  if (finished->status.ok() || options_.takes_any_commit) {
    Release(job, uid, 0);
    job.looks_to_come = static_cast<int>(1 + random_() % 40);
  } else {
    to_retry_.push_back(uid);
  }
}

void Jobs::Expire() {
  const SteadyTime now = Clock::now();
  for (const KvTransfer& transfer : table_.Expire(now)) {
    SteadyTime fence_at = now;
    if (options_.frees_before_fence) {
      Unpin(transfer);
      fence_at += std::chrono::milliseconds(20);
    }
    to_fence_.push_back({fence_at, {transfer.uid, transfer.epoch}});
    to_retry_.push_back(transfer.uid);
  }
  while (!to_fence_.empty() && to_fence_.front().first <= now) {
    const auto [uid, epoch] = to_fence_.front().second;
    to_fence_.pop_front();
    transport_->Fence(uid, epoch);
  }
}

void Jobs::Retry() {
  // To other blocks: the old ones may still be written.
  for (size_t left = to_retry_.size(); left > 0; --left) {
    const uint64_t uid = to_retry_.front();
    to_retry_.pop_front();
    Job& job = live_.at(uid);
    const auto blocks = static_cast<int32_t>(job.tables[0].size());
    Release(job, uid, 1);
    if (pools_[1].available() < blocks) {
      to_retry_.push_back(uid);
      continue;
    }
    ++num_retries_;
    Allocate(job, uid, 1, blocks);
    Send(uid, job);
  }
}

void Jobs::LookAndEnd() {
  for (auto it = live_.begin(); it != live_.end();) {
    auto& [uid, job] = *it;
    if (job.looks_to_come > 0 && (!Looks(job) || --job.looks_to_come == 0)) {
      Release(job, uid, 1);
      ++num_done_;
      it = live_.erase(it);
    } else {
      ++it;
    }
  }
}

bool Jobs::Looks(const Job& job) {
  for (size_t i = 0; i < job.tables[1].size(); ++i) {
    const auto first = static_cast<int32_t>(i) * kJobBlockTokens;
    if (stores_->Holds(job.tables[1][i],
                       std::min(kJobBlockTokens, job.num_tokens - first),
                       job.content + i)) {
      continue;
    }
    ++num_corrupted_;
    return false;
  }
  return true;
}

void Jobs::CheckIntegrity() {
  for (int store = 0; store < 2; ++store) {
    std::vector<BlockPool::Holding> holdings;
    for (const auto& [uid, job] : live_) {
      holdings.push_back({uid, job.tables[store], 0});
    }
    const absl::Status status = pools_[store].CheckIntegrity(holdings);
    ASSERT_TRUE(status.ok()) << status;
  }
  // Two transfers to one block are what the bug leads to.
  if (options_.frees_before_fence) return;
  ASSERT_TRUE(table_.CheckIntegrity().ok()) << table_.CheckIntegrity();
}

}  // namespace overfill
