#include "scheduler/step_planner.h"

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

PlanInput Roomy() {
  PlanInput input;
  input.available = {.blocks = {1000, 1000}, .slots = {8, 8}};
  input.budget = {.max_rows = 64, .max_sequences = 8, .max_prefill_rows = 16};
  return input;
}

PrefillCandidate Prompt(uint64_t order, int32_t rows) {
  return {.priority = 0,
          .order = order,
          .remaining_rows = rows,
          .is_started = false,
          .needs = {.blocks = {1, 0}, .slots = {1, 0}},
          .is_here = true};
}

// [candidate] its rows.
std::vector<int32_t> Rows(const PlanInput& input) {
  std::vector<int32_t> rows(input.prefill.size(), 0);
  for (const PrefillShare& share : PlanStep(input).prefill) {
    rows[share.candidate] = share.rows;
  }
  return rows;
}

using Expected = std::vector<int32_t>;

TEST(StepPlanner, NothingToDoIsAnEmptyPlan) {
  EXPECT_TRUE(PlanStep(Roomy()).empty());
}

TEST(StepPlanner, AnswersGoOnWhateverPromptsWait) {
  PlanInput input = Roomy();
  input.num_decode_rows = 7;
  input.prefill = {Prompt(1, 500), Prompt(2, 3)};
  EXPECT_EQ(PlanStep(input).num_decode_rows, 7);
  EXPECT_EQ(Rows(input), Expected({8 + 8, 0}));  // one place is left
}

TEST(StepPlanner, PromptRowsAreBoundedByChunkAndStep) {
  PlanInput input = Roomy();
  input.prefill = {Prompt(1, 500)};
  EXPECT_EQ(Rows(input), Expected({16}));
  input.num_decode_rows = 5;
  input.budget.max_rows = 9;
  EXPECT_EQ(Rows(input), Expected({4}));
}

TEST(StepPlanner, ShortPromptsPassALongOneThatGoesOn) {
  PlanInput input = Roomy();
  input.prefill = {Prompt(1, 500), Prompt(2, 100), Prompt(3, 3), Prompt(4, 2)};
  EXPECT_EQ(Rows(input), Expected({8, 3, 3, 2}));
  input.prefill.resize(1);
  input.prefill.push_back(Prompt(2, 3));
  EXPECT_EQ(Rows(input), Expected({13, 3}));
}

TEST(StepPlanner, PriorityGoesBeforeArrival) {
  PlanInput input = Roomy();
  input.prefill = {Prompt(1, 500), Prompt(2, 10)};
  input.prefill[1].priority = 1;
  EXPECT_EQ(Rows(input), Expected({6, 10}));
}

TEST(StepPlanner, WhoCannotStartKeepsLaterOnesFromWhatItWaitsFor) {
  PlanInput input = Roomy();
  input.available.blocks = {5, 5};
  input.prefill = {Prompt(1, 4), Prompt(2, 4), Prompt(3, 4)};
  input.prefill[0].needs.blocks = {6, 0};
  input.prefill[2].needs = {.blocks = {0, 1}, .slots = {0, 1}};
  EXPECT_EQ(Rows(input), Expected({0, 0, 4}));
  input.prefill[0].needs.blocks = {4, 0};
  EXPECT_EQ(Rows(input), Expected({4, 4, 4}));
}

TEST(StepPlanner, AnotherPoolsPromptOnlyClaims) {
  PlanInput input = Roomy();
  input.available.blocks = {5, 5};
  input.prefill = {Prompt(1, 4), Prompt(2, 4)};
  input.prefill[0].is_here = false;
  input.prefill[0].needs.blocks = {4, 0};
  input.prefill[1].needs.blocks = {2, 0};
  EXPECT_EQ(Rows(input), Expected({0, 0}));
  input.prefill[0].needs.blocks = {3, 0};
  EXPECT_EQ(Rows(input), Expected({0, 4}));
}

TEST(StepPlanner, WhoHasStartedNeedsNothingMore) {
  PlanInput input = Roomy();
  input.available = {};
  input.prefill = {Prompt(1, 4), Prompt(2, 4)};
  input.prefill[0].is_started = true;
  EXPECT_EQ(Rows(input), Expected({4, 0}));
}

PlanInput RandomInput(std::mt19937_64& random) {
  const auto upto = [&](int32_t most) {
    return static_cast<int32_t>(random() % (most + 1));
  };
  PlanInput input;
  input.budget.max_sequences = 1 + upto(7);
  input.budget.max_rows = input.budget.max_sequences + upto(30);
  input.budget.max_prefill_rows = 1 + upto(20);
  input.num_decode_rows = upto(input.budget.max_sequences);
  input.available = {.blocks = {upto(20), upto(20)},
                     .slots = {upto(8), upto(8)}};
  const int32_t count = upto(12);
  for (int32_t i = 0; i < count; ++i) {
    input.prefill.push_back({
        .priority = upto(2),
        .order = static_cast<uint64_t>(i),
        .remaining_rows = 1 + upto(40),
        .is_started = random() % 3 == 0,
        .needs = {.blocks = {upto(8), upto(8)}, .slots = {upto(1), upto(1)}},
        .is_here = random() % 4 != 0,
    });
  }
  std::shuffle(input.prefill.begin(), input.prefill.end(), random);
  return input;
}

bool GoesBefore(const PrefillCandidate& a, const PrefillCandidate& b) {
  return a.priority != b.priority ? a.priority > b.priority : a.order < b.order;
}

bool Shares(const Resources& a, const Resources& b) {
  for (int i = 0; i < 2; ++i) {
    if (a.blocks[i] > 0 && b.blocks[i] > 0) return true;
    if (a.slots[i] > 0 && b.slots[i] > 0) return true;
  }
  return false;
}

void CheckBudget(const PlanInput& input, const StepPlan& plan) {
  int32_t rows = 0;
  Resources taken;
  std::set<size_t> seen;
  for (const PrefillShare& share : plan.prefill) {
    const PrefillCandidate& candidate = input.prefill[share.candidate];
    ASSERT_TRUE(seen.insert(share.candidate).second);
    ASSERT_TRUE(candidate.is_here);
    ASSERT_GE(share.rows, 1);
    ASSERT_LE(share.rows, candidate.remaining_rows);
    rows += share.rows;
    if (candidate.is_started) continue;
    for (int i = 0; i < 2; ++i) {
      taken.blocks[i] += candidate.needs.blocks[i];
      taken.slots[i] += candidate.needs.slots[i];
    }
  }
  for (int i = 0; i < 2; ++i) {
    ASSERT_LE(taken.blocks[i], input.available.blocks[i]);
    ASSERT_LE(taken.slots[i], input.available.slots[i]);
  }
  ASSERT_EQ(plan.num_decode_rows, input.num_decode_rows);
  ASSERT_LE(rows, input.budget.max_prefill_rows);
  ASSERT_LE(rows + input.num_decode_rows, input.budget.max_rows);
  ASSERT_LE(static_cast<int32_t>(plan.prefill.size()) + input.num_decode_rows,
            input.budget.max_sequences);
}

// No candidate starts on what an earlier one, which could not, waits for; none
// of a lower priority has rows that a higher one could use; the first one that
// has rows has half of them, or all that it wants.
void CheckOrder(const PlanInput& input, const StepPlan& plan) {
  std::vector<int32_t> rows(input.prefill.size(), 0);
  int32_t all = 0;
  for (const PrefillShare& share : plan.prefill) {
    rows[share.candidate] = share.rows;
    all += share.rows;
  }
  size_t first = input.prefill.size();
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] == 0) continue;
    const PrefillCandidate& a = input.prefill[i];
    if (first == rows.size() || GoesBefore(a, input.prefill[first])) first = i;
    for (const PrefillCandidate& b : input.prefill) {
      const size_t j = static_cast<size_t>(&b - input.prefill.data());
      const bool alone_too_large =
          b.needs.blocks[0] > input.available.blocks[0];
      if (!b.is_started && alone_too_large && GoesBefore(b, a) &&
          !a.is_started) {
        ASSERT_FALSE(Shares(a.needs, b.needs));
      }
      if (b.is_started && b.is_here && b.priority > a.priority) {
        ASSERT_EQ(rows[j], b.remaining_rows);
      }
    }
  }
  if (first == rows.size()) return;
  ASSERT_TRUE(rows[first] * 2 >= all ||
              rows[first] == input.prefill[first].remaining_rows);
}

// Rows stay unused only when nobody who has started could use them.
void CheckNothingIsWasted(const PlanInput& input, const StepPlan& plan) {
  std::vector<int32_t> rows(input.prefill.size(), 0);
  int32_t left = std::min(input.budget.max_prefill_rows,
                          input.budget.max_rows - input.num_decode_rows);
  for (const PrefillShare& share : plan.prefill) {
    rows[share.candidate] = share.rows;
    left -= share.rows;
  }
  const auto sequences =
      static_cast<int32_t>(plan.prefill.size()) + input.num_decode_rows;
  if (left == 0 || sequences == input.budget.max_sequences) return;
  for (size_t i = 0; i < rows.size(); ++i) {
    const PrefillCandidate& candidate = input.prefill[i];
    if (!candidate.is_started || !candidate.is_here) continue;
    ASSERT_EQ(rows[i], candidate.remaining_rows);
  }
}

TEST(StepPlanner, RandomStepsKeepTheRules) {
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 20000; ++i) {
    const PlanInput input = RandomInput(random);
    const StepPlan plan = PlanStep(input);
    ASSERT_NO_FATAL_FAILURE(CheckBudget(input, plan));
    ASSERT_NO_FATAL_FAILURE(CheckOrder(input, plan));
    ASSERT_NO_FATAL_FAILURE(CheckNothingIsWasted(input, plan));
  }
}

// A long prompt, and short ones without end: both get through.
TEST(StepPlanner, NobodyStarvesUnderAStreamOfShortPrompts) {
  int32_t long_left = 800;
  uint64_t order = 1;
  int finished = 0;
  std::vector<PrefillCandidate> live = {Prompt(0, long_left)};
  int steps = 0;
  for (; long_left > 0; ++steps) {
    ASSERT_LE(steps, 800 / 8);
    while (live.size() < 8) live.push_back(Prompt(order++, 4));
    PlanInput input = Roomy();
    input.prefill = live;
    const std::vector<int32_t> rows = Rows(input);
    long_left -= rows[0];
    for (size_t i = 0; i < live.size(); ++i) {
      live[i].remaining_rows -= rows[i];
      live[i].is_started = true;
    }
    finished += static_cast<int>(std::erase_if(
        live, [](const auto& c) { return c.remaining_rows == 0; }));
  }
  EXPECT_GE(finished, steps);
}

}  // namespace
}  // namespace overfill
