// The way of a sequence through the pools: plan, apply, migrate.
#include <algorithm>
#include <chrono>
#include <span>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "scheduler/scheduler_impl.h"
#include "scheduler/transfer_rules.h"

namespace overfill {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(SteadyTime from, SteadyTime to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

std::unique_ptr<Step> SchedulerImpl::Plan(PoolId pool) {
  std::unique_ptr<Step> step;
  mu_.Lock();
  while (!is_stopping_) {
    Expire(Clock::now());
    if (!ready_.empty()) {
      mu_.Unlock();
      DeliverReady();
      mu_.Lock();
      continue;
    }
    step = BuildStep(pool);
    if (step) break;
    changed_.Wait(&mu_);
  }
  mu_.Unlock();
  return step;
}

std::unique_ptr<Step> SchedulerImpl::BuildStep(PoolId pool) {
  std::vector<SequencePtr> prompts;
  const StepPlan plan = PlanStep(MakeInput(pool, prompts));
  if (plan.empty()) return nullptr;
  auto step = std::make_unique<Step>();
  step->pool = pool;
  for (const SequencePtr& sequence : At(pool).decoding) {
    AddRows(sequence, /*prompt_rows=*/0, *step);
  }
  for (const PrefillShare& share : plan.prefill) {
    const SequencePtr& sequence = prompts[share.candidate];
    if (sequence->state == SequenceState::kQueued) Start(sequence);
    AddRows(sequence, share.rows, *step);
  }
  std::vector<int32_t> blocks;
  for (const std::vector<int32_t>& table : step->tables) {
    blocks.insert(blocks.end(), table.begin(), table.end());
  }
  step->pin = ledger_.Pin(stores_.StoreOf(pool), blocks,
                          absl::StrCat("a ", PoolName(pool), " step"));
  At(pool).is_stepping = true;
  return step;
}

PlanInput SchedulerImpl::MakeInput(PoolId pool,
                                   std::vector<SequencePtr>& prompts) const {
  PlanInput input;
  input.num_decode_rows = static_cast<int32_t>(At(pool).decoding.size());
  input.budget = At(pool).budget;
  input.available = {
      .blocks = ledger_.Available(),
      .slots = {pools_[0].free_slots, pools_[1].free_slots},
  };
  const auto add = [&](const SequencePtr& sequence) {
    const bool is_started = sequence->state != SequenceState::kQueued;
    input.prefill.push_back({
        .priority = sequence->request.priority,
        .order = sequence->uid,
        .remaining_rows = sequence->prompt_tokens() - sequence->num_computed,
        .is_started = is_started,
        .needs = is_started ? Resources{} : NeedsOf(*sequence),
        .is_here = sequence->prompt_pool() == pool,
    });
    prompts.push_back(sequence);
  };
  for (const SequencePtr& sequence : At(pool).prefilling) add(sequence);
  for (const SequencePtr& sequence : queued_) add(sequence);
  return input;
}

Resources SchedulerImpl::NeedsOf(const Sequence& sequence) const {
  const int32_t max_tokens = sequence.request.stop_rules.max_tokens;
  const auto blocks =
      stores_.WorstCase(sequence.route, sequence.prompt_tokens(), max_tokens);
  Resources needs;
  for (int store = 0; store < 2; ++store) {
    // Admission compared it with the store's size.
    needs.blocks[store] = static_cast<int32_t>(blocks[store]);
  }
  needs.slots[static_cast<int>(sequence.prompt_pool())] = 1;
  if (max_tokens > 1) needs.slots[static_cast<int>(sequence.answer_pool())] = 1;
  return needs;
}

void SchedulerImpl::Start(const SequencePtr& sequence) {
  const Resources needs = NeedsOf(*sequence);
  ledger_.Reserve(*sequence, needs.blocks);
  for (int pool = 0; pool < 2; ++pool) {
    if (needs.slots[pool] == 0) continue;
    OVERFILL_CHECK_GE(--pools_[pool].free_slots, 0);
    sequence->has_slot[pool] = true;
  }
  queued_.erase(sequence);
  admission_.Started(sequence->request);
  Wake(sequence->prompt_pool());
  SetState(*sequence, SequenceState::kPrefilling);
  sequence->started = Clock::now();
  At(sequence->prompt_pool()).prefilling.push_back(sequence);
}

void SchedulerImpl::AddRows(const SequencePtr& sequence, int32_t prompt_rows,
                            Step& step) {
  const bool is_decode = prompt_rows == 0;
  const int32_t begin = sequence->num_computed;
  const int32_t rows = is_decode ? 1 : prompt_rows;
  ledger_.Cover(*sequence, step.pool, begin + rows);
  // A copy: a cancelled sequence loses its own while the step runs.
  step.tables.push_back(sequence->holdings[stores_.StoreOf(step.pool)].table);
  const bool samples = is_decode || begin + rows == sequence->prompt_tokens();
  step.batch.sequences.push_back({
      .token_ids =
          is_decode
              ? std::span<const int32_t>(&sequence->last_token, 1)
              : std::span(sequence->request.prompt_ids).subspan(begin, rows),
      .start_position = begin,
      .block_table = step.tables.back(),
      .draws = samples ? std::span<const SamplingState* const>(sequence->draws)
                       : std::span<const SamplingState* const>(),
  });
  step.sequences.push_back(sequence);
  (is_decode ? step.num_decode_rows : step.num_prompt_rows) += rows;
}

void SchedulerImpl::Apply(std::unique_ptr<Step> step,
                          absl::StatusOr<StepResult> result, double seconds) {
  const size_t num_sequences = step->sequences.size();
  size_t num_draws = 0;
  for (const SequenceStep& rows : step->batch.sequences) {
    num_draws += rows.draws.size();
  }
  if (result.ok() && result->tokens.size() != num_draws) {
    result = absl::InternalError("the step's result has another shape");
  }
  if (!result.ok()) {
    LogError(absl::StrCat("a ", PoolName(step->pool),
                          " step failed: ", result.status().ToString()));
  }
  observer_->OnStep(step->pool, seconds, step->num_prompt_rows,
                    step->num_decode_rows, static_cast<int32_t>(num_sequences));
  {
    MutexLock lock(&mu_);
    const SteadyTime now = Clock::now();
    ledger_.Unpin(stores_.StoreOf(step->pool), step->pin);
    At(step->pool).is_stepping = false;
    At(step->pool).last_step = now;
    Expire(now);
    size_t next_token = 0;
    for (size_t i = 0; i < num_sequences; ++i) {
      const SequencePtr& sequence = step->sequences[i];
      const SequenceStep& rows = step->batch.sequences[i];
      const size_t token = next_token;
      next_token += rows.draws.size();
      if (sequence->state == SequenceState::kEnded) continue;
      if (!result.ok()) {
        End(sequence, absl::InternalError("the model failed on this step"));
        continue;
      }
      sequence->num_computed += static_cast<int32_t>(rows.token_ids.size());
      if (!rows.draws.empty()) TakeToken(sequence, result->tokens[token], now);
    }
    // The other pool, too: what this step held may be free now.
    changed_.NotifyAll();
  }
  DeliverReady();
}

void SchedulerImpl::TakeToken(const SequencePtr& sequence,
                              const SampledToken& token, SteadyTime now) {
  absl::Status status = token.status;
  if (status.ok() && token.token_id < 0) {
    status = absl::InternalError("a token without an id");
  }
  if (!status.ok()) {
    LogError(absl::StrCat("request ", sequence->uid,
                          " failed: ", status.ToString()));
    End(sequence, absl::InternalError("the model failed on this request"));
    return;
  }
  // One owner of each token index, and none twice.
  OVERFILL_CHECK(sequence->sampling.token_index() ==
                 static_cast<uint32_t>(sequence->output.num_tokens()));
  sequence->sampling.Accept(token.token_id);
  OutputStream::Output output = sequence->output.Accept(token);
  sequence->last_token = token.token_id;
  TellToken(*sequence, now);
  Post(sequence, std::move(output.delta));
  if (output.end) {
    End(sequence, absl::OkStatus(), &*output.end);
  } else if (sequence->state == SequenceState::kPrefilling) {
    LeavePrompt(sequence, now);
  }
}

void SchedulerImpl::TellToken(Sequence& sequence, SteadyTime now) {
  const Request& request = sequence.request;
  if (sequence.output.num_tokens() == 1) {
    sequence.first_token = now;
    observer_->OnFirstToken(request.path, Seconds(request.arrival, now),
                            Seconds(request.arrival, sequence.started));
  } else {
    observer_->OnToken(request.path, Seconds(sequence.last_token_time, now));
  }
  sequence.last_token_time = now;
}

void SchedulerImpl::LeavePrompt(const SequencePtr& sequence, SteadyTime now) {
  std::erase(At(sequence->prompt_pool()).prefilling, sequence);
  if (sequence->answer_pool() == sequence->prompt_pool()) {
    BeginDecode(sequence);
    return;
  }
  FreeSlot(*sequence, sequence->prompt_pool());
  ++sequence->epoch;
  sequence->migration_started = now;
  if (!stores_.is_shared()) {
    BeginCopy(sequence);
    return;
  }
  ledger_.HandOver(*sequence, sequence->answer_pool());
  sequence->migration_seconds = Seconds(now, Clock::now());
  observer_->OnMigration(sequence->migration_seconds, 0, /*copied=*/false);
  BeginDecode(sequence);
}

void SchedulerImpl::BeginDecode(const SequencePtr& sequence) {
  Wake(sequence->answer_pool());
  SetState(*sequence, SequenceState::kDecoding);
  At(sequence->answer_pool()).decoding.push_back(sequence);
  changed_.NotifyAll();
}

void SchedulerImpl::BeginCopy(const SequencePtr& sequence) {
  const int from = stores_.StoreOf(sequence->prompt_pool());
  const int to = stores_.StoreOf(sequence->answer_pool());
  ledger_.Cover(*sequence, sequence->answer_pool(), sequence->num_computed);
  Migration migration{
      .sequence = sequence,
      .transfer = {.uid = sequence->uid,
                   .epoch = sequence->epoch,
                   .from_store = from,
                   .to_store = to,
                   .coverage = {0, sequence->num_computed},
                   .block_tokens = stores_.block_tokens,
                   .source = sequence->holdings[from].table,
                   .destination = sequence->holdings[to].table},
  };
  const std::string what = absl::StrCat("the copy of request ", sequence->uid);
  migration.source_pin = ledger_.Pin(from, migration.transfer.source, what);
  migration.destination_pin =
      ledger_.Pin(to, migration.transfer.destination, what);
  Wake(sequence->answer_pool());
  SetState(*sequence, SequenceState::kMigrating);
  transport_->Send(migration.transfer);
  migrations_.emplace(sequence->uid, std::move(migration));
}

void SchedulerImpl::OnCommit(const KvCommit& commit) {
  {
    MutexLock lock(&mu_);
    const auto it = migrations_.find(commit.uid);
    if (it == migrations_.end() || it->second.transfer.epoch != commit.epoch) {
      LogError("a commit of an unknown migration is ignored");
      return;
    }
    const Migration migration = std::move(it->second);
    migrations_.erase(it);
    Unpin(migration);
    Expire(Clock::now());
    Commit(migration, commit);
    changed_.NotifyAll();
  }
  DeliverReady();
}

void SchedulerImpl::Commit(const Migration& migration, const KvCommit& commit) {
  const SequencePtr& sequence = migration.sequence;
  if (sequence->state == SequenceState::kEnded) return;
  const absl::Status status = CheckCommit(migration.transfer, commit);
  if (!status.ok()) {
    LogError(absl::StrCat("the migration of request ", sequence->uid,
                          " failed: ", status.ToString()));
    End(sequence, absl::InternalError("the prompt's migration failed"));
    return;
  }
  // Decode begins on all positions that the prompt has, no more, no fewer.
  OVERFILL_CHECK_EQ(commit.coverage.begin, 0);
  OVERFILL_CHECK_EQ(commit.coverage.end, sequence->prompt_tokens());
  ledger_.Release(*sequence, stores_.StoreOf(sequence->prompt_pool()));
  sequence->migration_seconds =
      Seconds(sequence->migration_started, Clock::now());
  observer_->OnMigration(sequence->migration_seconds,
                         commit.num_blocks * backend_.decode_block_bytes,
                         /*copied=*/true);
  BeginDecode(sequence);
}

}  // namespace overfill
