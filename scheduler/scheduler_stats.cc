// What can be seen of the scheduler from outside.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "scheduler/scheduler_impl.h"

namespace overfill {
namespace {

// Where a request is: queued, being read, and then where the sample is that
// has come farthest.
void Count(const LiveRequest& live, RequestCounts& counts) {
  bool is_decoding = false;
  bool is_swapped = false;
  for (const Sequence& sample : live.samples) {
    switch (sample.state) {
      case SequenceState::kQueued:
        ++counts.queued;
        return;
      case SequenceState::kPrefilling:
        ++counts.prefilling;
        return;
      case SequenceState::kDecoding:
        is_decoding = true;
        break;
      case SequenceState::kLeaving:
      case SequenceState::kSwapped:
      case SequenceState::kReturning:
        is_swapped = true;
        break;
      default:
        break;
    }
  }
  ++(is_decoding  ? counts.decoding
     : is_swapped ? counts.swapped
                  : counts.migrating);
}

}  // namespace

SchedulerStats SchedulerImpl::Stats() const {
  MutexLock lock(&mu_);
  SchedulerStats stats;
  for (const auto& [uid, live] : live_) Count(*live, stats.requests);
  const TransferCounts& transfers = transfers_.counts();
  stats.transfers = {
      .sending = transfers.sending,
      .fencing = transfers.fencing,
      .discarded_commits =
          transfers.commits_while_fencing + transfers.unknown_commits,
  };
  stats.prefill_chunk_rows = BudgetNow(PoolId::kPrefill).max_prefill_rows;
  stats.queued_tokens = admission_.queued_tokens();
  stats.stores = ledger_.Counts();
  for (int pool = 0; pool < 2; ++pool) {
    // A pool that waits for blocks or places which the other one uses is as
    // alive as that one.
    stats.last_step[pool] =
        pools_[pool].running_step
            ? pools_[pool].last_step
            : std::max(pools_[0].last_step, pools_[1].last_step);
    stats.has_work[pool] = HasWork(static_cast<PoolId>(pool));
    stats.running_steps[pool] = pools_[pool].running_step;
  }
  return stats;
}

absl::Status SchedulerImpl::CheckIntegrity() const {
  MutexLock lock(&mu_);
  return CheckIntegrityLocked();
}

absl::Status SchedulerImpl::CheckIntegrityLocked() const {
  std::vector<const Sequence*> sequences;
  std::array<int32_t, 2> slots{};
  size_t num_moving = 0;
  for (const auto& [uid, live] : live_) {
    int32_t num_running = 0;
    for (const Sequence& sample : live->samples) {
      num_running += sample.state != SequenceState::kEnded;
      num_moving += sample.is_moving();
      sequences.push_back(&sample);
      for (int pool = 0; pool < 2; ++pool) slots[pool] += sample.has_slot[pool];
    }
    if (live->has_ended || num_running != live->num_running ||
        num_running == 0) {
      return absl::InternalError(
          absl::StrCat("request ", uid, " counts ", live->num_running,
                       " running samples and has ", num_running));
    }
  }
  RETURN_IF_ERROR(ledger_.CheckIntegrity(sequences));
  RETURN_IF_ERROR(transfers_.CheckIntegrity());
  for (int pool = 0; pool < 2; ++pool) {
    const PoolState& state = pools_[pool];
    if (slots[pool] + state.free_slots != state.budget.max_sequences) {
      return absl::InternalError(absl::StrCat(
          PoolName(static_cast<PoolId>(pool)), " pool: ", slots[pool],
          " places taken + ", state.free_slots, " free, of ",
          state.budget.max_sequences));
    }
  }
  const TransferCounts& transfers = transfers_.counts();
  if (pins_.size() !=
          static_cast<size_t>(transfers.sending + transfers.fencing) ||
      num_moving > static_cast<size_t>(transfers.sending)) {
    return absl::InternalError(
        absl::StrCat(num_moving, " sequences move, ", pins_.size(),
                     " transfers hold blocks, ", transfers.sending,
                     " send and ", transfers.fencing, " are being fenced"));
  }
  return absl::OkStatus();
}

}  // namespace overfill
