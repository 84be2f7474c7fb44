// What a pool does next.
#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <span>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "scheduler/make_room.h"
#include "scheduler/scheduler_impl.h"
#include "scheduler/turn_order.h"

namespace overfill {
namespace {

using Clock = std::chrono::steady_clock;

// Of the queue, so many are looked at in one step: more do not start in it.
constexpr size_t kMaxCandidates = 32;

// Prompts wait for so many gaps of running answers at most: the one under way,
// the one that is measured, and as many more.
constexpr int kPauseGaps = 4;
constexpr Clock::duration kLeastPause = std::chrono::milliseconds(10);
constexpr Clock::duration kLongestPause = std::chrono::seconds(1);
// From the beginning of one pause to that of the next.
constexpr int kPauseSpacing = 64;

RunningAnswer AnswerOf(const Sequence& sequence) {
  return {.priority = sequence.request().priority,
          .order = sequence.uid,
          .is_to_leave = sequence.is_to_leave};
}

}  // namespace

std::unique_ptr<Step> SchedulerImpl::Plan(PoolId pool) {
  std::unique_ptr<Step> step;
  mu_.Lock();
  while (!is_stopping_) {
    Expire(Clock::now());
    const SteadyTime begin = Clock::now();
    step = BuildStep(pool);
    if (!ready_.empty()) {
      mu_.Unlock();
      DeliverReady();
      if (step) return step;
      mu_.Lock();
      continue;
    }
    if (step) break;
    // From before the plan: a pause that ran out under it is noticed, too.
    const auto pause = At(pool).pause_until - begin;
    if (pause > pause.zero()) {
      changed_.WaitFor(&mu_, pause);
    } else {
      changed_.Wait(&mu_);
    }
  }
  mu_.Unlock();
  return step;
}

std::unique_ptr<Step> SchedulerImpl::BuildStep(PoolId pool) {
  const std::vector<SequencePtr> answers = Runnable(pool);
  std::vector<SequencePtr> candidates;
  const StepPlan plan = PlanStep(
      MakeInput(pool, static_cast<int32_t>(answers.size()), candidates));
  for (size_t i : plan.returns) Return(candidates[i]);
  if (plan.empty()) return nullptr;
  auto step = std::make_unique<Step>();
  step->pool = pool;
  for (const SequencePtr& sequence : answers) {
    AddRows(sequence, /*prompt_rows=*/0, *step);
  }
  for (const PrefillShare& share : plan.prefill) {
    const SequencePtr& sequence = candidates[share.candidate];
    if (sequence->state == SequenceState::kQueued) Start(Find(*sequence));
    AddRows(sequence, share.rows, *step);
  }
  Launch(*step);
  return step;
}

void SchedulerImpl::Launch(Step& step) {
  RunningStep running{.started = Clock::now(),
                      .num_prompt_rows = step.num_prompt_rows,
                      .num_decode_rows = step.num_decode_rows,
                      .uids = {}};
  std::vector<int32_t> blocks;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    blocks.insert(blocks.end(), step.tables[i].begin(), step.tables[i].end());
    step.sequences[i]->is_in_step = true;
    running.uids.push_back(step.sequences[i]->live->uid);
  }
  step.pin = ledger_.Pin(StoreOf(step.pool), blocks,
                         absl::StrCat("a ", PoolName(step.pool), " step"));
  step.batch.is_abandoned = &step.is_abandoned;
  At(step.pool).step = &step;
  At(step.pool).running_step = std::move(running);
  int32_t& beside = At(OtherPool(step.pool)).prompt_rows_since;
  beside = std::max(beside, step.num_prompt_rows);
}

std::vector<SequencePtr> SchedulerImpl::Runnable(PoolId pool) {
  std::vector<SequencePtr> answers = At(pool).decoding;
  std::sort(answers.begin(), answers.end(),
            [](const SequencePtr& a, const SequencePtr& b) {
              return OutlastsBlocks(AnswerOf(*a), AnswerOf(*b));
            });
  std::vector<SequencePtr> runnable;
  for (const SequencePtr& sequence : answers) {
    // One further up may have taken this one's place.
    if (sequence->state != SequenceState::kDecoding) continue;
    if (ledger_.Grow(*sequence, pool, sequence->num_computed + 1)) {
      runnable.push_back(sequence);
    } else {
      MakeRoom(sequence);
    }
  }
  // One that finds no room in the swap space ends with all of its samples.
  std::erase_if(runnable, [](const SequencePtr& sequence) {
    return sequence->state != SequenceState::kDecoding;
  });
  return runnable;
}

void SchedulerImpl::MakeRoom(const SequencePtr& sequence) {
  const int store = StoreOf(sequence->answer_pool());
  OVERFILL_CHECK(stores_.CanSwap(store)) << "growth without a credit";
  std::vector<SequencePtr> sequences;
  std::vector<RunningAnswer> answers;
  size_t needy = 0;
  for (const PoolState& pool : pools_) {
    for (const SequencePtr& other : pool.decoding) {
      if (StoreOf(other->answer_pool()) != store) continue;
      if (other == sequence) needy = answers.size();
      sequences.push_back(other);
      answers.push_back(AnswerOf(*other));
    }
  }
  const auto index = ChooseVictim(answers, needy, IsRoomComing(store));
  if (!index) return;
  const SequencePtr& victim = sequences[*index];
  if (victim->is_in_step) {
    victim->is_to_leave = true;
  } else {
    Preempt(victim);
  }
}

bool SchedulerImpl::IsRoomComing(int store) const {
  if (ledger_.Quarantined(store) > transfers_.NumFencingBlocks(store)) {
    return true;
  }
  return std::any_of(pins_.begin(), pins_.end(), [&](const auto& entry) {
    const Sequence& moving = *entry.second.sequence;
    return moving.state == SequenceState::kLeaving &&
           StoreOf(moving.answer_pool()) == store;
  });
}

PlanInput SchedulerImpl::MakeInput(PoolId pool, int32_t num_decode_rows,
                                   std::vector<SequencePtr>& candidates) {
  PlanInput input;
  input.num_decode_rows = num_decode_rows;
  const SteadyTime now = Clock::now();
  const Ageing ageing = AgeingNow(pool);
  input.budget = BudgetNow(pool);
  if (IsPausing(pool, num_decode_rows, now)) input.budget.max_prefill_rows = 0;
  input.available = AvailableNow();
  std::map<absl::string_view, int32_t> tenants;
  // What has begun ages as what waits does: it came earlier, and stays before
  // what came later with its priority.
  const auto add = [&](const SequencePtr& sequence,
                       PrefillCandidate candidate) {
    mu_.AssertHeld();
    const Request& request = sequence->request();
    candidate.priority =
        EffectivePriority(request.priority, request.arrival, now, ageing);
    const auto next = static_cast<int32_t>(tenants.size());
    candidate.tenant = tenants.emplace(request.tenant, next).first->second;
    candidate.is_blocking = FitsBesideFenced(candidate.needs);
    input.prefill.push_back(candidate);
    candidates.push_back(sequence);
  };
  for (const SequencePtr& sequence : At(pool).prefilling) {
    add(sequence,
        {.order = sequence->uid,
         .remaining_rows = sequence->prompt_tokens() - sequence->num_computed,
         .is_started = true,
         .needs = {}});
  }
  for (const auto& [uid, sequence] : swapped_) {
    add(sequence, {.order = uid,
                   .needs = NeedsToReturn(*sequence),
                   .is_return = true,
                   .is_here = sequence->answer_pool() == pool});
  }
  // Behind all that have begun.
  uint64_t order = next_uid_;
  for (const LivePtr& live : NextQueued(now, ageing)) {
    const SequencePtr sequence = PtrOf(live, 0);
    const KvLedger::Prefix& prefix = PrefixOf(*live);
    add(sequence,
        {.order = order++,
         .remaining_rows =
             sequence->prompt_tokens() -
             static_cast<int32_t>(prefix.blocks.size()) * stores_.block_tokens,
         .needs = NeedsToStart(*live, prefix),
         .is_here = sequence->prompt_pool() == pool});
  }
  return input;
}

StepBudget SchedulerImpl::BudgetNow(PoolId pool) const {
  StepBudget budget = At(pool).budget;
  budget.max_prefill_rows = governor_.MaxPromptRows(
      pool, {static_cast<int32_t>(pools_[0].decoding.size()),
             static_cast<int32_t>(pools_[1].decoding.size())});
  return budget;
}

bool SchedulerImpl::IsPausing(PoolId pool, int32_t num_decode_rows,
                              SteadyTime now) {
  PoolState& state = At(pool);
  if (num_decode_rows == 0 && At(OtherPool(pool)).decoding.empty()) {
    state.is_pause_open = false;
    state.pause_until = {};
    return false;
  }
  if (now < state.pause_until) return true;
  // The answers whose gap is to be measured: of a step's own, or else those of
  // the other pool.
  PoolId answers_in = pool;
  int32_t num_answers = num_decode_rows;
  if (num_answers == 0 || !governor_.WantsUndisturbed(pool, num_answers)) {
    answers_in = OtherPool(pool);
    num_answers = static_cast<int32_t>(At(answers_in).decoding.size());
  }
  if (num_answers == 0 ||
      !governor_.WantsUndisturbed(answers_in, num_answers) ||
      now < state.next_pause) {
    return false;
  }
  const double gap_seconds =
      governor_.UndisturbedSeconds(answers_in, num_answers);
  const auto usual =
      std::clamp(kPauseGaps * std::chrono::duration_cast<Clock::duration>(
                                  std::chrono::duration<double>(gap_seconds)),
                 kLeastPause, kLongestPause);
  // Where the last one brought nothing, gaps are longer than was known.
  const bool is_known = gap_seconds > 0 && !state.is_pause_open;
  const auto length = is_known ? usual : kLongestPause;
  state.is_pause_open = true;
  state.pause_until = now + length;
  state.next_pause = now + kPauseSpacing * length;
  return true;
}

void SchedulerImpl::EndPauses(SteadyTime now, Clock::duration gap) {
  for (PoolState& pool : pools_) {
    if (!pool.is_pause_open) continue;
    pool.is_pause_open = false;
    pool.pause_until = {};
    pool.next_pause = std::min(pool.next_pause, now + kPauseSpacing * gap);
  }
}

Resources SchedulerImpl::AvailableNow() const {
  Resources available;
  for (int i = 0; i < 2; ++i) {
    available.slots[i] = pools_[i].free_slots;
    available.blocks[i] = ledger_.Available(i);
    if (!stores_.CanSwap(i)) continue;
    int32_t num_answers = 0;
    for (int pool = 0; pool < 2; ++pool) {
      if (StoreOf(static_cast<PoolId>(pool)) == i) {
        num_answers += static_cast<int32_t>(pools_[pool].decoding.size());
      }
    }
    available.blocks[i] = AvailableForStarts(available.blocks[i], num_answers);
  }
  return available;
}

Ageing SchedulerImpl::AgeingNow(PoolId pool) const {
  Ageing ageing{.period = options_.priority_ageing,
                .top = std::numeric_limits<int32_t>::min()};
  const auto add = [&ageing](const Request& request) {
    ageing.top = std::max(ageing.top, request.priority);
  };
  for (const SequencePtr& sequence : At(pool).prefilling) {
    add(sequence->request());
  }
  // Of both pools: they wait for each other's blocks.
  for (const auto& [uid, sequence] : swapped_) add(sequence->request());
  for (const auto& [uid, live] : queued_) add(live->request);
  return ageing;
}

std::vector<LivePtr> SchedulerImpl::NextQueued(SteadyTime now,
                                               const Ageing& ageing) const {
  std::vector<const LivePtr*> requests;
  std::vector<Waiting> waiting;
  for (const auto& [uid, live] : queued_) {
    requests.push_back(&live);
    waiting.push_back({.priority = live->request.priority,
                       .arrival = live->request.arrival,
                       .order = uid,
                       .tenant = live->request.tenant,
                       .cost_tokens = live->first().prompt_tokens()});
  }
  std::vector<LivePtr> next;
  for (size_t i : TurnOrder(waiting, share_, now, ageing, kMaxCandidates)) {
    next.push_back(*requests[i]);
  }
  return next;
}

Resources SchedulerImpl::NeedsToStart(const LiveRequest& live,
                                      const KvLedger::Prefix& prefix) const {
  const Request& request = live.request;
  const int32_t max_tokens = request.stop_rules.max_tokens;
  const Sequence& first = live.first();
  const auto blocks = stores_.BlocksFor(
      live.route, first.prompt_tokens(),
      stores_.AnswerTokensAtStart(live.route, max_tokens), request.n);
  Resources needs;
  for (int store = 0; store < 2; ++store) {
    // Admission compared it with the store's size.
    needs.blocks[store] = static_cast<int32_t>(blocks[store]);
  }
  needs.blocks[StoreOf(first.prompt_pool())] -= prefix.num_held;
  needs.slots[static_cast<int>(first.prompt_pool())] = request.n;
  if (max_tokens > 1) {
    needs.slots[static_cast<int>(first.answer_pool())] = request.n;
  }
  return needs;
}

Resources SchedulerImpl::NeedsToReturn(const Sequence& sequence) const {
  const PoolId pool = sequence.answer_pool();
  Resources needs;
  needs.blocks[StoreOf(pool)] =
      (sequence.num_computed + stores_.block_tokens) / stores_.block_tokens;
  needs.slots[static_cast<int>(pool)] = 1;
  return needs;
}

const KvLedger::Prefix& SchedulerImpl::PrefixOf(LiveRequest& live) const {
  const int store = StoreOf(live.first().prompt_pool());
  const uint64_t version = ledger_.prefix_version(store);
  if (live.prefix_version == version) return live.prefix;
  // The last position is always computed: its logits are what is wanted.
  const size_t num_keys = std::min<size_t>(
      live.prefix_keys.size(),
      (live.first().prompt_tokens() - 1) / stores_.block_tokens);
  live.prefix =
      ledger_.FindPrefix(store, std::span(live.prefix_keys).first(num_keys));
  live.prefix_version = version;
  return live.prefix;
}

bool SchedulerImpl::FitsBesideFenced(const Resources& needs) const {
  for (int store = 0; store < 2; ++store) {
    const int64_t room =
        int64_t{stores_.Total()[store]} - transfers_.NumFencingBlocks(store);
    if (needs.blocks[store] > room) return false;
  }
  return true;
}

void SchedulerImpl::Start(const LivePtr& live) {
  Sequence& first = live->first();
  // Earlier starts of this step may have evicted what was there for the plan.
  // Only first blocks that somebody holds are free of charge, and those stay:
  // the needs are still within the plan's.
  const KvLedger::Prefix prefix = PrefixOf(*live);
  live->prefix = {};
  const Resources needs = NeedsToStart(*live, prefix);
  const int rest_store = StoreOf(first.answer_pool());
  std::array<int32_t, 2> blocks = needs.blocks;
  const int64_t answer_tokens = stores_.AnswerTokensAtStart(
      live->route, live->request.stop_rules.max_tokens);
  const auto own =
      static_cast<int32_t>(stores_.BlocksFor(live->route, first.prompt_tokens(),
                                             answer_tokens, 2)[rest_store] -
                           stores_.BlocksFor(live->route, first.prompt_tokens(),
                                             answer_tokens, 1)[rest_store]);
  for (Sequence& sample : live->samples) {
    if (sample.index > 0) {
      ledger_.Reserve(sample, rest_store, own);
      blocks[rest_store] -= own;
    }
    for (int pool = 0; pool < 2; ++pool) {
      if (needs.slots[pool] == 0) continue;
      OVERFILL_CHECK_GE(--pools_[pool].free_slots, 0);
      sample.has_slot[pool] = true;
    }
    sample.state = SequenceState::kWaiting;
  }
  for (int store = 0; store < 2; ++store) {
    ledger_.Reserve(first, store, blocks[store]);
  }
  ledger_.AdoptPrefix(first, first.prompt_pool(), prefix);
  first.num_computed =
      static_cast<int32_t>(prefix.blocks.size()) * stores_.block_tokens;
  live->cached_prompt_tokens = first.num_computed;
  if (options_.prefix_cache) {
    observer_->OnPrefixLookup(first.prompt_tokens(), first.num_computed);
  }
  const SteadyTime now = Clock::now();
  admission_.Started(live->request, now);
  share_.Start(live->request.tenant);
  share_.Charge(live->request.tenant,
                first.prompt_tokens() - first.num_computed, 0);
  queued_.erase(live->uid);
  live->started = now;
  Wake(first.prompt_pool());
  first.state = SequenceState::kPrefilling;
  At(first.prompt_pool()).prefilling.push_back(PtrOf(live, 0));
}

void SchedulerImpl::AddRows(const SequencePtr& sequence, int32_t prompt_rows,
                            Step& step) {
  const bool is_decode = prompt_rows == 0;
  const int32_t begin = sequence->num_computed;
  const int32_t rows = is_decode ? 1 : prompt_rows;
  ledger_.Cover(*sequence, step.pool, begin + rows);
  // Copies: a cancelled sequence loses its own while the step runs.
  step.tables.push_back(sequence->holdings[StoreOf(step.pool)].table);
  step.draws.emplace_back();
  if (is_decode) {
    step.draws.back() = {&sequence->sampling};
  } else if (begin + rows == sequence->prompt_tokens()) {
    for (const Sequence& sample : sequence->live->samples) {
      step.draws.back().push_back(&sample.sampling);
    }
  }
  step.batch.sequences.push_back({
      .token_ids =
          is_decode
              ? std::span<const int32_t>(&sequence->last_token, 1)
              : std::span(sequence->request().prompt_ids).subspan(begin, rows),
      .start_position = begin,
      .block_table = step.tables.back(),
      .draws = step.draws.back(),
  });
  step.sequences.push_back(sequence);
  (is_decode ? step.num_decode_rows : step.num_prompt_rows) += rows;
}

}  // namespace overfill
