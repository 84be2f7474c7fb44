// What one pool does in its next step: a pure function of host data.
#ifndef OVERFILL_SCHEDULER_STEP_PLANNER_H_
#define OVERFILL_SCHEDULER_STEP_PLANNER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace overfill {

// What a request needs before it may start, and what is left of it: blocks of
// each store in the worst case, and places in each pool's batch.
struct Resources {
  std::array<int32_t, 2> blocks{};  // by store
  std::array<int32_t, 2> slots{};   // by PoolId
};

// A prompt that is not read to its end, or a sequence that was preempted.
struct PrefillCandidate {
  int32_t priority = 0;        // higher goes first
  uint64_t order = 0;          // of arrival, unique
  int32_t remaining_rows = 0;  // of the prompt, >= 1; 0 for a return
  bool is_started = false;     // it holds its resources
  Resources needs;             // looked at only before the start
  // A preempted sequence: it has no prompt to read, and comes back as soon as
  // what it needs is available.
  bool is_return = false;
  // False: it may never fit, so later ones need not wait for it.
  bool is_blocking = true;
  int32_t tenant = 0;  // those of one tenant have one number
  // False: another pool reads this prompt, or takes this sequence back. It gets
  // nothing here, but what it needs is not given to later ones.
  bool is_here = true;
};

struct StepBudget {
  int32_t max_rows = 0;          // of all sequences
  int32_t max_sequences = 0;     // prompts and answers
  int32_t max_prefill_rows = 0;  // of prompts
};

struct PlanInput {
  // Sequences that write an answer; no more than the budget's sequences and
  // rows.
  int32_t num_decode_rows = 0;
  std::vector<PrefillCandidate> prefill;  // in any order
  Resources available;
  StepBudget budget;
};

struct PrefillShare {
  size_t candidate;  // index in PlanInput::prefill
  int32_t rows;      // the prompt's next ones, >= 1
};

// Every sequence that writes an answer has one row in each step; what the
// budget leaves is for prompts. A candidate with a share and without its
// resources starts now: all that start, and all that return, fit into what is
// available together.
struct StepPlan {
  int32_t num_decode_rows = 0;
  std::vector<PrefillShare> prefill;
  std::vector<size_t> returns;  // indices in PlanInput::prefill
  // No rows. Sequences may return all the same.
  bool empty() const { return num_decode_rows == 0 && prefill.empty(); }
};

// Prompts go by priority, then arrival. A request that cannot start keeps
// later ones from what it waits for, so that small ones cannot starve a large
// one; it holds up nobody who needs other things. Among prompts of one
// priority the first has half of the rows and the shortest have the other
// half, so that a long prompt neither starves short ones nor is starved; the
// tenants take turns at that half, each with its shortest prompts first.
StepPlan PlanStep(const PlanInput& input);

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_STEP_PLANNER_H_
