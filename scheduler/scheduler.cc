#include "scheduler/scheduler.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "scheduler/scheduler_impl.h"

namespace overfill {
namespace {

absl::Status CheckDurations(const SchedulerOptions& options) {
  using std::chrono::nanoseconds;
  // Any of them can be added to any time.
  constexpr nanoseconds kLongest = std::chrono::hours(365 * 24);
  const struct {
    const char* name;
    nanoseconds value;
    nanoseconds least;
  } durations[] = {
      {"itl_target", options.itl_target, nanoseconds(0)},
      {"max_request_duration", options.max_request_duration, nanoseconds(1)},
      {"priority_ageing", options.priority_ageing, nanoseconds(0)},
      {"transfer_lease", options.transfer_lease, nanoseconds(1)},
  };
  for (const auto& [name, value, least] : durations) {
    if (value < least || value > kLongest) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " of ", value.count(), " ns is not between ",
                       least.count(), " ns and a year"));
    }
  }
  return absl::OkStatus();
}

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
      {"max_queued_bytes", options.max_queued_bytes},
  };
  for (const auto& [name, value] : at_least_one) {
    if (value < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " must be at least 1, not ", value));
    }
  }
  const struct {
    const char* name;
    int64_t value;
  } at_least_zero[] = {
      {"max_sequence_tokens", options.max_sequence_tokens},
      {"max_tenant_queued_requests", options.max_tenant_queued_requests},
      {"max_tenant_queued_tokens", options.max_tenant_queued_tokens},
      {"max_tenant_queued_bytes", options.max_tenant_queued_bytes},
  };
  for (const auto& [name, value] : at_least_zero) {
    if (value < 0) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is negative"));
    }
  }
  return CheckDurations(options);
}

absl::Status CheckSwap(const SchedulerBackend& backend) {
  for (int store = 0; store < 2; ++store) {
    const bool has_swap = backend.swap_blocks[store] > 0;
    if (backend.swap_blocks[store] < 0 ||
        (backend.swap_out[store] != nullptr) != has_swap ||
        (backend.swap_in[store] != nullptr) != has_swap) {
      return absl::InvalidArgumentError(
          "movers out and in belong to swap space, and it to them");
    }
  }
  std::set<const KvMover*> movers;
  for (const KvMover* mover :
       {backend.mover, backend.swap_out[0], backend.swap_out[1],
        backend.swap_in[0], backend.swap_in[1], backend.fork[0],
        backend.fork[1]}) {
    if (mover != nullptr && !movers.insert(mover).second) {
      return absl::InvalidArgumentError("a mover serves two pairs of stores");
    }
  }
  if (backend.decode_blocks == 0 &&
      (backend.swap_blocks[1] > 0 || backend.fork[1] != nullptr)) {
    return absl::InvalidArgumentError(
        "swap space or a mover of a decode store that there is not");
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
  return CheckSwap(backend);
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
