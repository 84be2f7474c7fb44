#include "scheduler/scheduler.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "scheduler/scheduler_impl.h"

namespace overfill {
namespace {

absl::Status CheckOptions(const SchedulerOptions& options) {
  const struct {
    const char* name;
    int64_t value;
  } at_least_one[] = {
      {"block_tokens", options.block_tokens},
      {"prefill_chunk_tokens", options.prefill_chunk_tokens},
      {"max_decode_batch", options.max_decode_batch},
      {"max_queued_requests", options.max_queued_requests},
      {"max_queued_tokens", options.max_queued_tokens},
  };
  for (const auto& [name, value] : at_least_one) {
    if (value < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " must be at least 1, not ", value));
    }
  }
  if (options.max_sequence_tokens < 0) {
    return absl::InvalidArgumentError("max_sequence_tokens is negative");
  }
  return absl::OkStatus();
}

absl::Status CheckBackend(const SchedulerBackend& backend) {
  if (!backend.prefill || !backend.decode || !backend.tokenizer) {
    return absl::InvalidArgumentError("a model or the tokenizer is missing");
  }
  if (backend.prefill == backend.decode) {
    return absl::InvalidArgumentError(
        "the pools need a runner each: both run at once");
  }
  if (backend.prefill_blocks < 1 || backend.decode_blocks < 0 ||
      backend.decode_block_bytes < 0) {
    return absl::InvalidArgumentError("a KV store without blocks");
  }
  if ((backend.decode_blocks > 0) != (backend.mover != nullptr)) {
    return absl::InvalidArgumentError(
        "a mover belongs to a decode store of its own");
  }
  return absl::OkStatus();
}

absl::StatusOr<StepBudget> BudgetOf(const SchedulerOptions& options,
                                    const StepLimits& limits) {
  if (limits.max_rows < 1 || limits.max_sequences < 1) {
    return absl::InvalidArgumentError("a step without rows");
  }
  if (options.max_sequence_tokens > limits.max_sequence_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_sequence_tokens ", options.max_sequence_tokens,
        " passes a model's limit of ", limits.max_sequence_tokens));
  }
  return StepBudget{
      .max_rows = limits.max_rows,
      // Each sequence of a step can have a row.
      .max_sequences = std::min(
          {options.max_decode_batch, limits.max_sequences, limits.max_rows}),
      .max_prefill_rows = options.prefill_chunk_tokens,
  };
}

}  // namespace

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Create(
    const SchedulerOptions& options, const SchedulerBackend& backend,
    SchedulerObserver* observer) {
  RETURN_IF_ERROR(CheckOptions(options));
  RETURN_IF_ERROR(CheckBackend(backend));
  SchedulerOptions complete = options;
  if (complete.max_sequence_tokens == 0) {
    complete.max_sequence_tokens =
        std::min(backend.prefill->limits().max_sequence_tokens,
                 backend.decode->limits().max_sequence_tokens);
  }
  if (complete.max_sequence_tokens < 2) {
    return absl::InvalidArgumentError("a sequence has at least two tokens");
  }
  std::array<StepBudget, 2> budgets;
  ASSIGN_OR_RETURN(budgets[0], BudgetOf(complete, backend.prefill->limits()));
  ASSIGN_OR_RETURN(budgets[1], BudgetOf(complete, backend.decode->limits()));
  return std::make_unique<SchedulerImpl>(complete, backend, budgets, observer);
}

}  // namespace overfill
