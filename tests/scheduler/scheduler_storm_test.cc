// Many requests, random schedules, stores of few blocks.
#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/kv_ledger.h"
#include "scheduler/step_planner.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

using std::chrono::milliseconds;

constexpr DecodePath kPaths[] = {DecodePath::kTwoStage, DecodePath::kFull,
                                 DecodePath::kPruned};

TEST(Storm, ManyStreamsAtOnceLeaveTheStoreAsItWas) {
  for (bool is_shared : {true, false}) {
    RigOptions options;
    options.is_shared = is_shared;
    options.scheduler.max_decode_batch = 64;
    options.max_rows = 128;
    options.prefill_blocks = 4000;
    options.decode_blocks = 4000;
    Rig rig(options);
    rig.Begin();
    const auto unheld = [&] {
      return rig.Blocks(0).free + rig.Blocks(0).cached;
    };
    const int32_t before = unheld();
    int32_t most = 0;
    rig.pruned.before_run = [&](const StepBatch& batch) {
      most = std::max(most, static_cast<int32_t>(batch.sequences.size()));
      return absl::OkStatus();
    };
    rig.pruned.CloseGate();
    for (int i = 0; i < 48; ++i) rig.Submit(DecodePath::kTwoStage, 12, 200);
    while (rig.scheduler->Stats().requests.decoding < 48) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    rig.pruned.OpenGate();
    for (auto& client : rig.clients) rig.ExpectRight(*client);
    rig.Finish();
    EXPECT_EQ(unheld(), before);
    EXPECT_EQ(most, 48);
  }
}

// While requests come and go, the states' sum is the live ones and the books
// are right.
TEST(Storm, StatsAddUpAllTheTime) {
  RigOptions options;
  options.is_shared = false;
  Rig rig(options);
  rig.Begin();
  std::atomic<bool> is_done = false;
  std::atomic<int> submitted = 0;
  std::thread watcher([&] {
    while (!is_done) {
      const SchedulerStats stats = rig.scheduler->Stats();
      const RequestCounts& r = stats.requests;
      EXPECT_LE(r.queued + r.prefilling + r.migrating + r.decoding,
                submitted + 1);
      EXPECT_GE(std::min({r.queued, r.prefilling, r.migrating, r.decoding}), 0);
      for (const BlockCounts& store : stats.stores) {
        EXPECT_EQ(store.free + store.cached + store.owned + store.quarantined,
                  64);
      }
      const absl::Status status = rig.scheduler->CheckIntegrity();
      EXPECT_TRUE(status.ok()) << status;
    }
  });
  for (int i = 0; i < 300; ++i) {
    rig.Submit(kPaths[i % 3], 1 + i % 40, 1 + i % 20);
    ++submitted;
  }
  for (auto& client : rig.clients) rig.ExpectRight(*client);
  is_done = true;
  watcher.join();
  rig.Finish();
}

RigOptions RandomOptions(std::mt19937_64& random) {
  const auto pick = [&](int32_t least, int32_t most) {
    return least + static_cast<int32_t>(random() % (most - least + 1));
  };
  RigOptions options;
  options.is_shared = random() % 2 == 0;
  options.scheduler.block_tokens = pick(1, 6);
  options.scheduler.prefill_chunk_tokens = pick(1, 20);
  options.scheduler.max_decode_batch = pick(1, 6);
  options.max_rows = options.scheduler.max_decode_batch + pick(0, 20);
  options.prefill_blocks = pick(1, 14);
  options.decode_blocks = pick(1, 14);
  return options;
}

// A request of a size that some random store can hold; one that cannot be is
// refused.
Request RandomRequest(Rig& rig) {
  Request request = rig.MakeRequest(kPaths[rig.random() % 3],
                                    1 + static_cast<int32_t>(rig.random() % 24),
                                    1 + static_cast<int32_t>(rig.random() % 9));
  request.priority = static_cast<int32_t>(rig.random() % 3);
  return request;
}

TEST(Storm, EveryAdmittedRequestIsAnsweredWhateverTheStores) {
  std::mt19937_64 random(TestSeed());
  int64_t answered = 0;
  int64_t refused = 0;
  for (int schedule = 0; schedule < 150; ++schedule) {
    Rig rig(RandomOptions(random));
    rig.random.seed(random());
    for (int i = 0; i < 25; ++i) {
      const absl::Status status = rig.TrySubmit(RandomRequest(rig));
      if (status.ok()) continue;
      ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
      ++refused;
    }
    for (auto& client : rig.clients) rig.ExpectRight(*client);
    answered += static_cast<int64_t>(rig.clients.size());
    rig.Finish();
    ASSERT_FALSE(HasFailure()) << "schedule " << schedule;
  }
  EXPECT_GT(answered, 1000);
  EXPECT_GT(refused, 100);
}

TEST(Storm, CancelsDeadlinesAndFailuresTouchNobodyElse) {
  std::mt19937_64 random(TestSeed() + 1);
  std::array<int, 17> ends{};
  for (int schedule = 0; schedule < 60; ++schedule) {
    Rig rig(RandomOptions(random));
    rig.random.seed(random());
    std::atomic<uint64_t> calls = random();
    const auto sometimes = [&](const StepBatch&) {
      const uint64_t call = ++calls;
      return call % 37 == 0 ? absl::DataLossError("planted") : absl::OkStatus();
    };
    rig.full.before_run = sometimes;
    rig.pruned.before_run = sometimes;
    rig.mover.num_failures_to_come = static_cast<int>(random() % 2);
    for (int i = 0; i < 30; ++i) {
      Request request = RandomRequest(rig);
      if (random() % 4 == 0) {
        request.deadline = std::chrono::steady_clock::now() +
                           std::chrono::microseconds(random() % 2000);
      }
      (void)rig.TrySubmit(request);
      if (!rig.clients.empty() && random() % 3 == 0) {
        rig.scheduler->Cancel(rig.clients[random() % rig.clients.size()]->uid,
                              absl::CancelledError("x"));
      }
    }
    for (auto& client : rig.clients) {
      const absl::StatusCode code = client->Wait().status.code();
      ++ends[static_cast<int>(code)];
      if (code == absl::StatusCode::kOk) {
        rig.ExpectRight(*client);
      } else {
        rig.ExpectStatus(*client, code);
      }
      EXPECT_EQ(client->Wait().usage.completion_tokens,
                static_cast<int32_t>(client->tokens.size()));
    }
    rig.Finish();
    ASSERT_FALSE(HasFailure()) << "schedule " << schedule;
  }
  EXPECT_GT(ends[static_cast<int>(absl::StatusCode::kOk)], 0);
  EXPECT_GT(ends[static_cast<int>(absl::StatusCode::kCancelled)], 0);
  EXPECT_GT(ends[static_cast<int>(absl::StatusCode::kDeadlineExceeded)], 0);
  EXPECT_GT(ends[static_cast<int>(absl::StatusCode::kInternal)], 0);
}

// Cancelled all at once, again and again: what comes next is answered.
TEST(Storm, AProbeSucceedsAfterEachMassCancel) {
  RigOptions options;
  options.prefill_blocks = 30;
  Rig rig(options);
  for (int round = 0; round < 4; ++round) {
    std::vector<Client*> round_clients;
    for (int i = 0; i < 300; ++i) {
      round_clients.push_back(&rig.Submit(DecodePath::kTwoStage, 50, 60));
    }
    for (Client* client : round_clients) {
      rig.scheduler->Cancel(client->uid, absl::CancelledError("x"));
    }
    rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 50, 60));
  }
  rig.Finish();
}

// The same, over stores that most must be swapped out of, with prompts that
// begin alike, while they are at all points of their way.
TEST(Storm, AProbeSucceedsAfterEachMassCancelWithSwapAndSharedPrefixes) {
  for (const bool is_shared : {true, false}) {
    RigOptions options;
    options.is_shared = is_shared;
    options.prefill_blocks = 60;
    options.decode_blocks = 60;
    options.swap_blocks = {400, is_shared ? 0 : 400};
    Rig rig(options);
    const Request root = rig.MakeRequest(DecodePath::kTwoStage, 24, 60);
    const auto make = [&] {
      Request request = rig.MakeRequest(DecodePath::kTwoStage, 26, 60);
      std::copy(root.prompt_ids.begin(), root.prompt_ids.end(),
                request.prompt_ids.begin());
      request.n = 1 + static_cast<int32_t>(rig.random() % 3);
      return request;
    };
    for (int round = 0; round < 4; ++round) {
      std::vector<Client*> round_clients;
      for (int i = 0; i < 300; ++i) {
        round_clients.push_back(&rig.Submit(make()));
      }
      // Into the midst of it.
      const int64_t before = rig.observer.counts().preemptions;
      while (rig.observer.counts().preemptions < before + 1 + round) {
        std::this_thread::yield();
      }
      for (Client* client : round_clients) {
        rig.scheduler->Cancel(client->uid, absl::CancelledError("x"));
      }
      const absl::Status status = rig.scheduler->CheckIntegrity();
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_EQ(rig.scheduler->Stats().requests.queued, 0);
      rig.ExpectRight(rig.Submit(make()));
    }
    rig.Finish();
    EXPECT_GT(rig.observer.counts().hit_tokens, 0);
  }
}

}  // namespace
}  // namespace overfill
