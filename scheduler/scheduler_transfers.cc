// The way of KV between the stores: migrations, forks, preemption and return.
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/checked_math.h"
#include "base/log.h"
#include "scheduler/scheduler_impl.h"
#include "scheduler/transfer_rules.h"

namespace overfill {
namespace {

using Clock = std::chrono::steady_clock;

// A transfer that failed is sent again so many times in all. Its source is
// still what it was, so that another try gives the same answer.
constexpr int32_t kMaxAttempts = 3;

double Seconds(SteadyTime from, SteadyTime to) {
  return std::chrono::duration<double>(to - from).count();
}

std::string What(SequenceState state) {
  switch (state) {
    case SequenceState::kMigrating:
      return "the prompt's migration";
    case SequenceState::kForking:
      return "the copy of the prompt's last block";
    default:
      return "a preempted answer's way to or from the swap space";
  }
}

}  // namespace

void SchedulerImpl::Fork(const SequencePtr& carrier,
                         const SequencePtr& sample) {
  const PoolId pool = carrier->answer_pool();
  const int32_t num_tokens = carrier->num_computed;
  const auto copy = ledger_.Fork(*carrier, *sample, pool, num_tokens);
  sample->num_computed = num_tokens;
  if (!copy) {
    BeginDecode(sample);
    return;
  }
  const int store = StoreOf(pool);
  Wake(pool);
  sample->state = SequenceState::kForking;
  sample->num_attempts = 0;
  Send(sample, {.from_store = store,
                .to_store = store,
                .coverage = {num_tokens - copy->num_tokens, num_tokens},
                .source = {copy->source},
                .destination = {copy->destination}});
}

void SchedulerImpl::Preempt(const SequencePtr& sequence) {
  const PoolId pool = sequence->answer_pool();
  const int store = StoreOf(pool);
  sequence->is_to_leave = false;
  if (!ledger_.CoverSwap(*sequence, SwapStoreOf(store),
                         sequence->num_computed)) {
    End(Find(*sequence),
        absl::ResourceExhaustedError(
            "the server ran out of memory for running answers"));
    return;
  }
  std::erase(At(pool).decoding, sequence);
  FreeSlot(*sequence, pool);
  ledger_.Unreserve(*sequence, store);
  observer_->OnPreemption();
  changed_.NotifyAll();
  MoveAll(sequence, SequenceState::kLeaving, store, SwapStoreOf(store));
}

void SchedulerImpl::Return(const SequencePtr& sequence) {
  const PoolId pool = sequence->answer_pool();
  const int store = StoreOf(pool);
  const Resources needs = NeedsToReturn(*sequence);
  swapped_.erase(sequence->uid);
  ledger_.Reserve(*sequence, store, needs.blocks[store]);
  OVERFILL_CHECK_GE(--At(pool).free_slots, 0);
  sequence->has_slot[static_cast<int>(pool)] = true;
  ledger_.Cover(*sequence, pool, sequence->num_computed);
  MoveAll(sequence, SequenceState::kReturning, SwapStoreOf(store), store);
}

void SchedulerImpl::MoveAll(const SequencePtr& sequence, SequenceState state,
                            int from, int to) {
  Wake(sequence->answer_pool());
  sequence->state = state;
  sequence->num_attempts = 0;
  sequence->transfer_started = Clock::now();
  const auto num_blocks = static_cast<size_t>(
      CeilDiv(int64_t{sequence->num_computed}, stores_.block_tokens));
  // A table may be a block ahead of what has been computed.
  const auto part = [&](int store) {
    const std::vector<int32_t>& table = sequence->holdings[store].table;
    OVERFILL_CHECK_GE(table.size(), num_blocks);
    return std::vector<int32_t>(table.begin(), table.begin() + num_blocks);
  };
  Send(sequence, {.from_store = from,
                  .to_store = to,
                  .coverage = {0, sequence->num_computed},
                  .source = part(from),
                  .destination = part(to)});
}

void SchedulerImpl::Send(const SequencePtr& sequence, KvTransfer transfer) {
  ++sequence->num_attempts;
  transfer.uid = sequence->uid;
  transfer.epoch = ++sequence->epoch;
  transfer.block_tokens = stores_.block_tokens;
  const std::string what =
      absl::StrCat("transfer ", transfer.epoch, " of request ", transfer.uid);
  pins_[{transfer.uid, transfer.epoch}] = {
      .sequence = sequence,
      .source = ledger_.Pin(transfer.from_store, transfer.source, what),
      .destination = ledger_.Pin(transfer.to_store, transfer.destination, what),
  };
  transfers_.Begin(transfer, Clock::now() + options_.transfer_lease);
  transport_->Send(std::move(transfer));
  tick_.NotifyAll();
}

SequencePtr SchedulerImpl::Unpin(const KvTransfer& transfer) {
  const auto it = pins_.find({transfer.uid, transfer.epoch});
  OVERFILL_CHECK(it != pins_.end()) << "a transfer without pins";
  const Pins pins = std::move(it->second);
  pins_.erase(it);
  ledger_.Unpin(transfer.from_store, pins.source);
  ledger_.Unpin(transfer.to_store, pins.destination);
  return pins.sequence;
}

void SchedulerImpl::Abandon(const Sequence& sequence) {
  if (transport_->Abandon(sequence.uid, sequence.epoch)) {
    Unpin(transfers_.Abandoned(sequence.uid, sequence.epoch));
  }
}

void SchedulerImpl::OnCommit(const KvCommit& commit) {
  {
    MutexLock lock(&mu_);
    const auto finished = transfers_.OnCommit(commit);
    if (!finished) return;
    const SequencePtr sequence = Unpin(finished->transfer);
    Expire(Clock::now());
    if (sequence->is_moving()) FinishTransfer(sequence, *finished, commit);
    changed_.NotifyAll();
  }
  DeliverReady();
}

void SchedulerImpl::OnFenced(uint64_t uid, uint32_t epoch) {
  MutexLock lock(&mu_);
  if (const auto transfer = transfers_.OnFenced(uid, epoch)) Unpin(*transfer);
  changed_.NotifyAll();
}

void SchedulerImpl::ExpireLeases(SteadyTime now) {
  for (const KvTransfer& transfer : transfers_.Expire(now)) {
    const auto it = pins_.find({transfer.uid, transfer.epoch});
    // The end of a request ends the transfers of all its samples.
    if (it == pins_.end()) continue;
    const SequencePtr sequence = it->second.sequence;
    const bool is_wanted =
        sequence->is_moving() && sequence->epoch == transfer.epoch;
    if (transport_->Abandon(transfer.uid, transfer.epoch)) {
      // It waited behind others: nothing is wrong with it.
      Unpin(transfers_.Abandoned(transfer.uid, transfer.epoch));
      --sequence->num_attempts;
      if (is_wanted) Send(sequence, transfer);
      continue;
    }
    Complain(absl::StrCat("request ", sequence->live->uid, ": transfer ",
                          transfer.epoch, " passed its lease and is fenced"));
    if (is_wanted) {
      End(Find(*sequence), absl::UnavailableError(absl::StrCat(
                               What(sequence->state), " took too long")));
    }
    transport_->Fence(transfer.uid, transfer.epoch);
  }
}

void SchedulerImpl::FinishTransfer(const SequencePtr& sequence,
                                   const TransferTable::Finished& finished,
                                   const KvCommit& commit) {
  const KvTransfer& transfer = finished.transfer;
  OVERFILL_CHECK_EQ(sequence->epoch, transfer.epoch);
  absl::Status status = finished.status;
  if (status.ok() && sequence->state == SequenceState::kLeaving) {
    sequence->swapped_digest = finished.digest;
  }
  if (status.ok() && sequence->state == SequenceState::kReturning) {
    status = CheckSwappedIn(sequence->swapped_digest, commit);
  }
  if (status.ok()) {
    Arrive(sequence, transfer);
    return;
  }
  if (sequence->num_attempts < kMaxAttempts) {
    Complain(absl::StrCat("request ", sequence->live->uid, ": ",
                          What(sequence->state),
                          " failed and is tried again: ", status.ToString()));
    observer_->OnTransferRetry();
    Send(sequence, transfer);
    return;
  }
  Complain(absl::StrCat("request ", sequence->live->uid, ": ",
                        What(sequence->state), " failed: ", status.ToString()));
  End(Find(*sequence),
      absl::InternalError(absl::StrCat(What(sequence->state), " failed")));
}

void SchedulerImpl::Arrive(const SequencePtr& sequence,
                           const KvTransfer& transfer) {
  // On all positions that there are, no more, no fewer.
  OVERFILL_CHECK_EQ(transfer.coverage.end, sequence->num_computed);
  switch (sequence->state) {
    case SequenceState::kMigrating:
      ledger_.Release(*sequence, transfer.from_store);
      sequence->live->migration_seconds =
          Seconds(sequence->transfer_started, Clock::now());
      observer_->OnMigration(sequence->live->migration_seconds,
                             static_cast<int64_t>(transfer.source.size()) *
                                 backend_.decode_block_bytes,
                             /*copied=*/true);
      BeginAnswers(sequence);
      return;
    case SequenceState::kForking:
      ledger_.ReturnLent(*sequence, transfer.to_store);
      BeginDecode(sequence);
      return;
    case SequenceState::kLeaving:
      ledger_.Release(*sequence, transfer.from_store);
      sequence->state = SequenceState::kSwapped;
      swapped_[sequence->uid] = sequence;
      return;
    case SequenceState::kReturning:
      ledger_.Release(*sequence, transfer.from_store);
      BeginDecode(sequence);
      return;
    default:
      OVERFILL_CHECK(false) << SequenceStateName(sequence->state);
  }
}

}  // namespace overfill
