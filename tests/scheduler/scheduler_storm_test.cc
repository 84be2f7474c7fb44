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
    const int32_t before = rig.Blocks(0).free;
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
    EXPECT_EQ(rig.Blocks(0).free, before);
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

// ---- Planner and ledger together, without models and threads: thousands of
// schedules, each of which must come to its end.

class Simulation {
 public:
  explicit Simulation(std::mt19937_64& random)
      : random_(random),
        stores_{Pick(1, 5), Pick(1, 12), random() % 2 ? Pick(1, 12) : 0},
        ledger_(stores_),
        budget_{.max_rows = Pick(4, 20),
                .max_sequences = Pick(1, 4),
                .max_prefill_rows = Pick(1, 12)},
        slots_{budget_.max_sequences, budget_.max_sequences} {
    for (int i = 0; i < 12; ++i) Add();
  }

  // One step of each pool in turn, until all have ended.
  void Run() {
    int idle = 0;
    while (!live_.empty()) {
      const auto pool = static_cast<PoolId>(random_() % 2);
      idle = Step(pool) ? 0 : idle + 1;
      std::vector<const Sequence*> all;
      for (const auto& live : live_) all.push_back(live.sequence.get());
      const absl::Status status = ledger_.CheckIntegrity(all);
      ASSERT_TRUE(status.ok()) << status;
      // Either pool may have nothing to do; both for ever is a deadlock.
      ASSERT_LT(idle, 100);
    }
    EXPECT_EQ(ledger_.Available(), stores_.Total());
    EXPECT_EQ(slots_[0], budget_.max_sequences);
    EXPECT_EQ(slots_[1], budget_.max_sequences);
  }

 private:
  struct Live {
    SequencePtr sequence;
    Resources needs;
    int32_t tokens = 0;
  };

  int32_t Pick(int32_t least, int32_t most) {
    return least + static_cast<int32_t>(random_() % (most - least + 1));
  }

  void Add() {
    Request request;
    request.path = kPaths[random_() % 3];
    request.prompt_ids.resize(Pick(1, 25), 0);
    request.stop_rules.max_tokens = Pick(1, 12);
    request.priority = Pick(0, 2);
    Live live{.sequence = std::make_shared<Sequence>(
                  next_uid_++, std::move(request), nullptr, &TestTokenizer()),
              .needs = {}};
    const Sequence& s = *live.sequence;
    const int32_t max_tokens = s.request.stop_rules.max_tokens;
    const auto blocks =
        stores_.WorstCase(s.route, s.prompt_tokens(), max_tokens);
    for (int i = 0; i < 2; ++i) {
      if (blocks[i] > stores_.Total()[i]) return;  // refused
      live.needs.blocks[i] = static_cast<int32_t>(blocks[i]);
    }
    live.needs.slots[static_cast<int>(s.prompt_pool())] = 1;
    if (max_tokens > 1) live.needs.slots[static_cast<int>(s.answer_pool())] = 1;
    live_.push_back(std::move(live));
  }

  bool Step(PoolId pool) {
    PlanInput input;
    std::vector<Live*> prompts;
    std::vector<Live*> answers;
    for (Live& live : live_) {
      const Sequence& s = *live.sequence;
      if (s.state == SequenceState::kDecoding) {
        if (s.answer_pool() == pool) answers.push_back(&live);
        continue;
      }
      const bool is_started = s.state == SequenceState::kPrefilling;
      if (is_started && s.prompt_pool() != pool) continue;
      input.prefill.push_back({s.request.priority, s.uid,
                               s.prompt_tokens() - s.num_computed, is_started,
                               live.needs, s.prompt_pool() == pool});
      prompts.push_back(&live);
    }
    input.num_decode_rows = static_cast<int32_t>(answers.size());
    input.available = {ledger_.Available(), slots_};
    input.budget = budget_;
    const StepPlan plan = PlanStep(input);
    for (const PrefillShare& share : plan.prefill) {
      Read(*prompts[share.candidate], share.rows);
    }
    for (Live* live : answers) Write(*live);
    std::erase_if(live_, [](const Live& live) {
      return live.sequence->state == SequenceState::kEnded;
    });
    return !plan.empty();
  }

  void Read(Live& live, int32_t rows) {
    Sequence& s = *live.sequence;
    if (s.state == SequenceState::kQueued) {
      ledger_.Reserve(s, live.needs.blocks);
      for (int i = 0; i < 2; ++i) slots_[i] -= live.needs.slots[i];
      s.state = SequenceState::kPrefilling;
    }
    s.num_computed += rows;
    ledger_.Cover(s, s.prompt_pool(), s.num_computed);
    if (s.num_computed < s.prompt_tokens()) return;
    s.state = SequenceState::kDecoding;
    if (!TakeToken(live) || s.prompt_pool() == s.answer_pool()) return;
    --live.needs.slots[static_cast<int>(s.prompt_pool())];
    ++slots_[static_cast<int>(s.prompt_pool())];
    if (stores_.is_shared()) {
      ledger_.HandOver(s, s.answer_pool());
    } else {
      ledger_.Cover(s, s.answer_pool(), s.num_computed);
      ledger_.Release(s, stores_.StoreOf(s.prompt_pool()));
    }
  }

  void Write(Live& live) {
    Sequence& s = *live.sequence;
    ledger_.Cover(s, s.answer_pool(), ++s.num_computed);
    TakeToken(live);
  }

  // Whether the answer goes on: to max_tokens, or shorter, as it comes.
  bool TakeToken(Live& live) {
    Sequence& s = *live.sequence;
    if (++live.tokens < s.request.stop_rules.max_tokens && random_() % 16) {
      return true;
    }
    ledger_.ReleaseAll(s);
    for (int i = 0; i < 2; ++i) slots_[i] += live.needs.slots[i];
    s.state = SequenceState::kEnded;
    return false;
  }

  std::mt19937_64& random_;
  const KvStores stores_;
  KvLedger ledger_;
  const StepBudget budget_;
  std::array<int32_t, 2> slots_;
  uint64_t next_uid_ = 1;
  std::vector<Live> live_;
};

TEST(Simulation, ThousandsOfSchedulesEnd) {
  std::mt19937_64 random(TestSeed() + 2);
  for (int schedule = 0; schedule < 4000; ++schedule) {
    Simulation simulation(random);
    ASSERT_NO_FATAL_FAILURE(simulation.Run()) << "schedule " << schedule;
  }
}

}  // namespace
}  // namespace overfill
