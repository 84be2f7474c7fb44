// Planner and ledger together, without models and threads.
#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/kv_ledger.h"
#include "scheduler/step_planner.h"
#include "tests/scheduler/rig.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

constexpr DecodePath kPaths[] = {DecodePath::kTwoStage, DecodePath::kFull,
                                 DecodePath::kPruned};

// ---- Planner and ledger together, without models and threads: thousands of
// schedules, each of which must come to its end.

class Simulation {
 public:
  explicit Simulation(std::mt19937_64& random)
      : random_(random),
        stores_{Pick(1, 5), Pick(1, 12), random() % 2 ? Pick(1, 12) : 0, {}},
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
      for (const auto& live : live_) all.push_back(live.sequence);
      const absl::Status status = ledger_.CheckIntegrity(all);
      ASSERT_TRUE(status.ok()) << status;
      // Either pool may have nothing to do; both for ever is a deadlock.
      ASSERT_LT(idle, 100);
    }
    EXPECT_EQ(Available(), stores_.Total());
    EXPECT_EQ(slots_[0], budget_.max_sequences);
    EXPECT_EQ(slots_[1], budget_.max_sequences);
  }

 private:
  struct Live {
    LivePtr request;
    Sequence* sequence = nullptr;
    Resources needs = {};
    int32_t tokens = 0;
  };

  std::array<int32_t, 2> Available() const {
    return {ledger_.Available(0), ledger_.Available(1)};
  }

  int32_t Pick(int32_t least, int32_t most) {
    return least + static_cast<int32_t>(random_() % (most - least + 1));
  }

  void Add() {
    Request request;
    request.path = kPaths[random_() % 3];
    request.prompt_ids.resize(Pick(1, 25), 0);
    request.stop_rules.max_tokens = Pick(1, 12);
    request.priority = Pick(0, 2);
    Live live{.request = std::make_shared<LiveRequest>(
                  next_uid_++, std::move(request), nullptr, &TestTokenizer())};
    live.sequence = &live.request->first();
    const Sequence& s = *live.sequence;
    const int32_t max_tokens = s.request().stop_rules.max_tokens;
    const auto blocks =
        stores_.WorstCase(live.request->route, s.prompt_tokens(), max_tokens);
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
      input.prefill.push_back(
          {.priority = s.request().priority,
           .order = s.uid,
           .remaining_rows = s.prompt_tokens() - s.num_computed,
           .is_started = is_started,
           .needs = live.needs,
           .is_here = s.prompt_pool() == pool});
      prompts.push_back(&live);
    }
    input.num_decode_rows = static_cast<int32_t>(answers.size());
    input.available = {Available(), slots_};
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
      for (int i = 0; i < 2; ++i) ledger_.Reserve(s, i, live.needs.blocks[i]);
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
    if (++live.tokens < s.request().stop_rules.max_tokens && random_() % 16) {
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
