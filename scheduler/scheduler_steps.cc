// What a step has done: its tokens, and where its sequences go from here.
#include <algorithm>
#include <chrono>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "scheduler/scheduler_impl.h"

namespace overfill {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(SteadyTime from, SteadyTime to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

void SchedulerImpl::Apply(std::unique_ptr<Step> step,
                          absl::StatusOr<StepResult> result, double seconds) {
  const size_t num_sequences = step->sequences.size();
  size_t num_draws = 0;
  for (const auto& draws : step->draws) num_draws += draws.size();
  if (result.ok() && result->tokens.size() != num_draws) {
    result = absl::InternalError("the step's result has another shape");
  }
  if (!result.ok() &&
      !(step->is_abandoned && absl::IsCancelled(result.status()))) {
    LogError(absl::StrCat("a ", PoolName(step->pool),
                          " step failed: ", result.status().ToString()));
  }
  observer_->OnStep(step->pool, seconds, step->num_prompt_rows,
                    step->num_decode_rows, static_cast<int32_t>(num_sequences));
  {
    MutexLock lock(&mu_);
    const SteadyTime now = Clock::now();
    ledger_.Unpin(StoreOf(step->pool), step->pin);
    Account(*step, result.ok(), now);
    Expire(now);
    size_t next_token = 0;
    for (size_t i = 0; i < num_sequences; ++i) {
      const SequencePtr& sequence = step->sequences[i];
      const size_t count = step->draws[i].size();
      const size_t first = next_token;
      next_token += count;
      if (sequence->state == SequenceState::kEnded) continue;
      if (!result.ok()) {
        ledger_.Withdraw(*sequence);
        End(Find(*sequence),
            absl::InternalError("the model failed on this step"));
        continue;
      }
      ApplyTo(*step, i, std::span(result->tokens).subspan(first, count), now);
    }
    // The other pool, too: what this step held may be free now.
    changed_.NotifyAll();
  }
  DeliverReady();
}

void SchedulerImpl::Account(const Step& step, bool is_whole, SteadyTime now) {
  PoolState& pool = At(step.pool);
  pool.running_step.reset();
  pool.step = nullptr;
  pool.last_step = now;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    Sequence& sequence = *step.sequences[i];
    sequence.is_in_step = false;
    if (!sequence.live->has_ended) {
      share_.Charge(sequence.request().tenant, 0,
                    static_cast<int64_t>(step.draws[i].size()));
    }
  }
  if (step.num_decode_rows == 0) return;
  const bool is_mixed = step.num_prompt_rows >= pool.prompt_rows_since;
  const int32_t prompt_rows =
      std::max(step.num_prompt_rows, pool.prompt_rows_since);
  // One that failed or was abandoned took less than it would have.
  if (is_whole && pool.last_decode_step != SteadyTime()) {
    governor_.OnGap({.answers_in = step.pool,
                     .num_decode_rows = step.num_decode_rows,
                     .prompt_rows = prompt_rows,
                     .prompts_in = is_mixed ? step.pool : OtherPool(step.pool),
                     .seconds = Seconds(pool.last_decode_step, now)});
    if (prompt_rows == 0) EndPauses(now, now - pool.last_decode_step);
  }
  pool.last_decode_step = is_whole ? now : SteadyTime();
  const auto& other = At(OtherPool(step.pool)).running_step;
  pool.prompt_rows_since = other ? other->num_prompt_rows : 0;
}

void SchedulerImpl::ApplyTo(const Step& step, size_t index,
                            std::span<const SampledToken> tokens,
                            SteadyTime now) {
  const SequencePtr& sequence = step.sequences[index];
  sequence->num_computed +=
      static_cast<int32_t>(step.batch.sequences[index].token_ids.size());
  for (const SampledToken& token : tokens) {
    if (!CheckToken(sequence, token)) return;
  }
  if (sequence->state == SequenceState::kPrefilling) {
    if (!tokens.empty()) LeavePrompt(Find(*sequence), tokens, now);
    return;
  }
  if (const auto end = TakeToken(sequence, tokens[0], now)) {
    FinishSample(sequence, *end);
  } else if (sequence->is_to_leave) {
    Preempt(sequence);
  }
}

bool SchedulerImpl::CheckToken(const SequencePtr& sequence,
                               const SampledToken& token) {
  absl::Status status = token.status;
  if (status.ok() && token.token_id < 0) {
    status = absl::InternalError("a token without an id");
  }
  if (status.ok()) return true;
  EndBroken(sequence, status, "the model failed on this request");
  return false;
}

std::optional<OutputStream::End> SchedulerImpl::TakeToken(
    const SequencePtr& sequence, const SampledToken& token, SteadyTime now) {
  // One owner of each token index, and none twice.
  OVERFILL_CHECK(sequence->sampling.token_index() ==
                 static_cast<uint32_t>(sequence->output.num_tokens()));
  sequence->sampling.Accept(token.token_id);
  OutputStream::Output output = sequence->output.Accept(token);
  sequence->last_token = token.token_id;
  const Request& request = sequence->request();
  if (sequence->output.num_tokens() > 1) {
    observer_->OnToken(request.path, Seconds(sequence->last_token_time, now));
  } else {
    sequence->first_token = now;
    observer_->OnFirstToken(request.path, Seconds(request.arrival, now),
                            Seconds(request.arrival, sequence->live->started));
  }
  sequence->last_token_time = now;
  output.delta.index = sequence->index;
  Post(*sequence->live, std::move(output.delta));
  return std::move(output.end);
}

void SchedulerImpl::LeavePrompt(const LivePtr& live,
                                std::span<const SampledToken> tokens,
                                SteadyTime now) {
  const SequencePtr reader = PtrOf(live, 0);
  std::erase(At(reader->prompt_pool()).prefilling, reader);
  reader->state = SequenceState::kWaiting;
  if (!live->prefix_keys.empty()) {
    ledger_.Publish(*reader, reader->prompt_pool(), live->prefix_keys);
  }
  std::vector<std::pair<SequencePtr, OutputStream::End>> ended;
  SequencePtr carrier;  // the first that goes on has the prompt's KV
  for (int32_t i = 0; i < live->request.n; ++i) {
    const SequencePtr sample = PtrOf(live, i);
    if (auto end = TakeToken(sample, tokens[i], now)) {
      ended.emplace_back(sample, *std::move(end));
    } else if (!carrier) {
      carrier = sample;
    }
  }
  if (carrier && carrier != reader) {
    ledger_.Exchange(*reader, *carrier);
    carrier->num_computed = reader->num_computed;
  }
  for (const auto& [sample, end] : ended) FinishSample(sample, end);
  if (!carrier) return;
  if (carrier->answer_pool() == carrier->prompt_pool()) {
    BeginAnswers(carrier);
    return;
  }
  for (Sequence& sample : live->samples) {
    FreeSlot(sample, sample.prompt_pool());
  }
  Migrate(carrier, now);
}

void SchedulerImpl::Migrate(const SequencePtr& sequence, SteadyTime now) {
  if (!stores_.is_shared()) {
    ledger_.Cover(*sequence, sequence->answer_pool(), sequence->num_computed);
    MoveAll(sequence, SequenceState::kMigrating,
            StoreOf(sequence->prompt_pool()), StoreOf(sequence->answer_pool()));
    return;
  }
  ledger_.HandOver(*sequence, sequence->answer_pool());
  sequence->live->migration_seconds = Seconds(now, Clock::now());
  observer_->OnMigration(sequence->live->migration_seconds, 0,
                         /*copied=*/false);
  BeginAnswers(sequence);
}

void SchedulerImpl::BeginAnswers(const SequencePtr& carrier) {
  const LivePtr live = Find(*carrier);
  for (int32_t i = 0; i < live->request.n; ++i) {
    const SequencePtr sample = PtrOf(live, i);
    if (sample == carrier || sample->state != SequenceState::kWaiting) continue;
    Fork(carrier, sample);
  }
  BeginDecode(carrier);
}

void SchedulerImpl::BeginDecode(const SequencePtr& sequence) {
  const PoolId pool = sequence->answer_pool();
  Wake(pool);
  sequence->state = SequenceState::kDecoding;
  // The gap before its first step here says nothing about the model.
  if (At(pool).decoding.empty()) At(pool).last_decode_step = SteadyTime();
  At(pool).decoding.push_back(sequence);
  changed_.NotifyAll();
}

}  // namespace overfill
