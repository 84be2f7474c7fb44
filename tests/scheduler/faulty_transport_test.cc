#include "tests/support/faulty_transport.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/checked_math.h"
#include "engine/kv_mover.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "scheduler/block_pool.h"
#include "scheduler/local_transport.h"
#include "scheduler/transfer_rules.h"
#include "scheduler/transfer_table.h"
#include "tests/scheduler/fake_model.h"
#include "tests/scheduler/transfer_events.h"
#include "tests/support/faulty_mover.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

constexpr int32_t kBlockTokens = 4;
constexpr int32_t kNumBlocks = 24;

// Two stores with contents that can be told apart by block.
class Stores {
 public:
  virtual ~Stores() = default;
  virtual KvMover* mover() = 0;
  virtual FaultHooks Hooks() = 0;
  // Fills a source block with what no other fill has written.
  virtual void Fill(int32_t block, uint64_t content) = 0;
  // Of a destination block's first tokens: whether all of it is that.
  virtual bool Holds(int32_t block, int32_t num_tokens, uint64_t content) = 0;
};

class FakeStores : public Stores {
 public:
  KvMover* mover() override { return &mover_; }
  FaultHooks Hooks() override {
    return {.flip =
                [this](int32_t store, int32_t block, int32_t num_tokens,
                       uint64_t random) {
                  OVERFILL_CHECK_EQ(store, kDecodeStore);
                  destination_.At(block,
                                  static_cast<int32_t>(random % num_tokens)) ^=
                      uint64_t{1} << (random >> 32) % 64;
                },
            .received_digest =
                [this](const KvTransfer& transfer) {
                  return mover_.DestinationDigest(*PlanCopies(transfer),
                                                  transfer.coverage.begin);
                }};
  }
  void Fill(int32_t block, uint64_t content) override {
    for (int32_t slot = 0; slot < kBlockTokens; ++slot) {
      source_.At(block, slot) = content * kBlockTokens + slot;
    }
  }
  bool Holds(int32_t block, int32_t num_tokens, uint64_t content) override {
    for (int32_t slot = 0; slot < num_tokens; ++slot) {
      if (destination_.At(block, slot) != content * kBlockTokens + slot) {
        return false;
      }
    }
    return true;
  }

 private:
  FakeStore source_{kNumBlocks, kBlockTokens};
  FakeStore destination_{kNumBlocks, kBlockTokens};
  FakeMover mover_{&source_, &destination_};
};

class DeviceStores : public Stores {
 public:
  DeviceStores() {
    device_ = *MakeDevice("cpu", {.num_threads = 1});
    const KvLayout layout = {DType::kBF16, 2, 2, kBlockTokens, 16};
    const int64_t bytes = kNumBlocks * *KvBlockBytes(layout);
    source_ = *KvStore::Create(*device_, layout, bytes);
    destination_ = *KvStore::Create(*device_, layout, bytes);
    mover_ = *BlockMover::Create(*device_, *source_, *destination_,
                                 {.source_layers = {0, 1}});
  }
  KvMover* mover() override { return mover_.get(); }
  FaultHooks Hooks() override {
    return {.flip =
                [this](int32_t store, int32_t block, int32_t num_tokens,
                       uint64_t random) {
                  FlipBit(destination_->view(), block, num_tokens, random);
                },
            .received_digest =
                [this](const KvTransfer& transfer) -> std::optional<uint64_t> {
              return *mover_->DestinationDigest(*PlanCopies(transfer),
                                                transfer.coverage.begin);
            }};
  }
  void Fill(int32_t block, uint64_t content) override {
    ForEach(source_->view(), block, kBlockTokens,
            [&](uint16_t& element, uint64_t i) {
              element = static_cast<uint16_t>(content * 31 + i);
            });
  }
  bool Holds(int32_t block, int32_t num_tokens, uint64_t content) override {
    bool is_right = true;
    ForEach(destination_->view(), block, num_tokens,
            [&](uint16_t& element, uint64_t i) {
              is_right = is_right &&
                         element == static_cast<uint16_t>(content * 31 + i);
            });
    return is_right;
  }

 private:
  // `i` numbers the element within its block.
  template <typename Fn>
  static void ForEach(const KvView& kv, int32_t block, int32_t num_tokens,
                      const Fn& fn) {
    const int64_t begin = kv.TileOffset(block, 0, 0, 0);
    for (int32_t layer = 0; layer < kv.num_layers; ++layer) {
      for (int half = 0; half < 2; ++half) {
        for (int32_t head = 0; head < kv.num_kv_heads; ++head) {
          const int64_t tile = kv.TileOffset(block, layer, half, head);
          for (int64_t i = 0; i < int64_t{num_tokens} * kv.head_dim; ++i) {
            fn(static_cast<uint16_t*>(kv.data)[tile + i],
               static_cast<uint64_t>(tile - begin + i));
          }
        }
      }
    }
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<KvStore> source_;
  std::unique_ptr<KvStore> destination_;
  std::unique_ptr<BlockMover> mover_;
};

// Stores whose bytes are touched with a lock, for the bug that has two threads
// at one block.
class LockedStores : public Stores, private KvMover {
 public:
  explicit LockedStores(Stores* stores)
      : stores_(stores), hooks_(stores->Hooks()) {}

  KvMover* mover() override { return this; }
  FaultHooks Hooks() override {
    return {.flip =
                [this](int32_t store, int32_t block, int32_t num_tokens,
                       uint64_t random) {
                  MutexLock lock(&mu_);
                  hooks_.flip(store, block, num_tokens, random);
                },
            .received_digest =
                [this](const KvTransfer& transfer) {
                  MutexLock lock(&mu_);
                  return hooks_.received_digest(transfer);
                }};
  }
  void Fill(int32_t block, uint64_t content) override {
    MutexLock lock(&mu_);
    stores_->Fill(block, content);
  }
  bool Holds(int32_t block, int32_t num_tokens, uint64_t content) override {
    MutexLock lock(&mu_);
    return stores_->Holds(block, num_tokens, content);
  }

 private:
  absl::StatusOr<KvMoveResult> Move(std::span<const BlockCopy> blocks,
                                    int32_t first_position) override {
    MutexLock lock(&mu_);
    return stores_->mover()->Move(blocks, first_position);
  }

  Stores* const stores_;
  const FaultHooks hooks_;
  Mutex mu_;
};

// The least of a scheduler that moves KV: jobs get blocks of both pools, are
// copied under a lease until that has worked, look at what they got for a
// while, and give the blocks back.
class Jobs {
 public:
  struct Options {
    FaultRates rates = {};
    int num_jobs = 300;
    std::chrono::milliseconds lease{30};
    bool frees_before_fence = false;  // the bug that fences are there for
    bool takes_any_commit = false;    // the bug that checks are there for
  };

  Jobs(Stores* stores, const Options& options)
      : stores_(stores), options_(options), random_(TestSeed()) {
    auto faulty = std::make_unique<FaultyTransport>(
        std::make_unique<LocalTransport>(LocalTransport::Movers{
            {{kPrefillStore, kDecodeStore}, stores->mover()}}),
        FaultyTransport::Options{.seed = TestSeed(),
                                 .rates = options.rates,
                                 .max_delay = std::chrono::milliseconds(5),
                                 .hooks = stores->Hooks()});
    transport_ = std::move(faulty);
    transport_->Start(events_.Callbacks());
  }

  void Run() {
    const auto begin = std::chrono::steady_clock::now();
    while (num_done_ < options_.num_jobs) {
      OVERFILL_CHECK(std::chrono::steady_clock::now() - begin <
                     std::chrono::minutes(3))
          << "jobs hang";
      while (live_.size() < 8 && num_started_ < options_.num_jobs && Start()) {
      }
      Take();
      Expire();
      LookAndEnd();
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    // What is still fencing comes home without any job.
    while (table_.counts().fencing > 0) {
      OVERFILL_CHECK(std::chrono::steady_clock::now() - begin <
                     std::chrono::minutes(3))
          << "fences hang";
      Take();
      Expire();
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    EXPECT_EQ(pools_[0].num_free(), kNumBlocks);
    EXPECT_EQ(pools_[1].num_free(), kNumBlocks);
    CheckIntegrity();
  }

  int num_corrupted() const { return num_corrupted_; }
  int num_retries() const { return num_retries_; }
  FaultCounts faults() const { return transport_->counts(); }
  const TransferCounts& discarded() const { return table_.counts(); }

 private:
  struct Job {
    int32_t num_tokens = 0;
    uint32_t epoch = 0;
    std::vector<int32_t> tables[2];
    uint64_t content = 0;   // of its first block; the others' follow
    int looks_to_come = 0;  // > 0 once it has arrived
  };
  struct Pins {
    uint64_t source = 0;
    uint64_t destination = 0;
  };

  bool Start() {
    Job job;
    job.num_tokens = static_cast<int32_t>(1 + random_() % 15);
    const auto blocks =
        static_cast<int32_t>(CeilDiv(job.num_tokens, kBlockTokens));
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

  void Allocate(Job& job, uint64_t uid, int store, int32_t blocks) {
    OVERFILL_CHECK(pools_[store].Reserve(blocks));
    for (int32_t i = 0; i < blocks; ++i) {
      job.tables[store].push_back(pools_[store].Allocate(uid));
    }
  }

  void Release(Job& job, uint64_t uid, int store) {
    for (int32_t block : job.tables[store]) pools_[store].Release(block, uid);
    job.tables[store].clear();
  }

  void Send(uint64_t uid, Job& job) {
    KvTransfer transfer{.uid = uid,
                        .epoch = ++job.epoch,
                        .coverage = {0, job.num_tokens},
                        .block_tokens = kBlockTokens,
                        .source = job.tables[0],
                        .destination = job.tables[1]};
    pins_[{uid, job.epoch}] = {pools_[0].Pin(transfer.source, "a copy"),
                               pools_[1].Pin(transfer.destination, "a copy")};
    table_.Begin(transfer, std::chrono::steady_clock::now() + options_.lease);
    transport_->Send(std::move(transfer));
  }

  void Unpin(const KvTransfer& transfer) {
    const auto it = pins_.find({transfer.uid, transfer.epoch});
    if (it == pins_.end()) return;  // freed before the fence
    pools_[0].Unpin(it->second.source);
    pools_[1].Unpin(it->second.destination);
    pins_.erase(it);
  }

  // What the transport has told since the last call.
  void Take() {
    const auto commits = events_.AwaitCommits(num_commits_taken_);
    for (; num_commits_taken_ < commits.size(); ++num_commits_taken_) {
      const auto finished = table_.OnCommit(commits[num_commits_taken_]);
      if (!finished) continue;
      Unpin(finished->transfer);
      Job& job = live_.at(finished->transfer.uid);
      if (finished->status.ok() || options_.takes_any_commit) {
        Release(job, finished->transfer.uid, 0);
        job.looks_to_come = static_cast<int>(1 + random_() % 40);
      } else {
        to_retry_.push_back(finished->transfer.uid);
      }
    }
    const auto fenced = events_.AwaitFenced(num_fenced_taken_);
    for (; num_fenced_taken_ < fenced.size(); ++num_fenced_taken_) {
      const auto [uid, epoch] = fenced[num_fenced_taken_];
      const auto transfer = table_.OnFenced(uid, epoch);
      ASSERT_TRUE(transfer.has_value());
      Unpin(*transfer);
    }
    CheckIntegrity();
  }

  void Expire() {
    const SteadyTime now = std::chrono::steady_clock::now();
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

  void LookAndEnd() {
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

  bool Looks(const Job& job) {
    for (size_t i = 0; i < job.tables[1].size(); ++i) {
      const auto first = static_cast<int32_t>(i) * kBlockTokens;
      if (stores_->Holds(job.tables[1][i],
                         std::min(kBlockTokens, job.num_tokens - first),
                         job.content + i)) {
        continue;
      }
      ++num_corrupted_;
      return false;
    }
    return true;
  }

  void CheckIntegrity() {
    for (int store = 0; store < 2; ++store) {
      std::vector<BlockPool::Holding> holdings;
      for (const auto& [uid, job] : live_) {
        holdings.push_back({uid, job.tables[store], 0});
      }
      const absl::Status status = pools_[store].CheckIntegrity(holdings);
      ASSERT_TRUE(status.ok()) << status;
    }
    if (options_.frees_before_fence) return;
    ASSERT_TRUE(table_.CheckIntegrity().ok()) << table_.CheckIntegrity();
  }

  Stores* const stores_;
  const Options options_;
  std::mt19937_64 random_;
  BlockPool pools_[2] = {BlockPool(kNumBlocks), BlockPool(kNumBlocks)};
  TransferTable table_;
  std::map<std::pair<uint64_t, uint32_t>, Pins> pins_;
  std::map<uint64_t, Job> live_;
  std::deque<uint64_t> to_retry_;
  std::deque<std::pair<SteadyTime, std::pair<uint64_t, uint32_t>>> to_fence_;
  int num_started_ = 0;
  int num_done_ = 0;
  int num_corrupted_ = 0;
  int num_retries_ = 0;
  size_t num_commits_taken_ = 0;
  size_t num_fenced_taken_ = 0;
  TransferEvents events_;
  std::unique_ptr<FaultyTransport> transport_;
};

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
    if (GetParam()) {
      stores_ = std::make_unique<DeviceStores>();
    } else {
      stores_ = std::make_unique<FakeStores>();
    }
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
  LockedStores locked(stores_.get());
  Jobs jobs(&locked, {.rates = {.stall = 0.3},
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
  FakeStore store(8, kBlockTokens);
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
                      .block_tokens = kBlockTokens,
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
                            .block_tokens = kBlockTokens,
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
  FakeStore source(8, kBlockTokens);
  FakeStore destination(8, kBlockTokens);
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
  FakeStore source(8, kBlockTokens);
  FakeStore destination(8, kBlockTokens);
  FakeStore swap(8, kBlockTokens);
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
                              .block_tokens = kBlockTokens,
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
