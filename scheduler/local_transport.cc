#include "scheduler/local_transport.h"

#include <utility>

#include "scheduler/migration.h"

namespace overfill {

LocalTransport::LocalTransport(KvMover* mover,
                               std::function<void(const KvCommit&)> on_commit)
    : mover_(mover),
      on_commit_(std::move(on_commit)),
      thread_([this] { Loop(); }) {}

LocalTransport::~LocalTransport() {
  {
    MutexLock lock(&mu_);
    is_stopping_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

void LocalTransport::Send(KvTransfer transfer) {
  {
    MutexLock lock(&mu_);
    waiting_.push_back(std::move(transfer));
  }
  changed_.NotifyAll();
}

bool LocalTransport::Abandon(uint64_t uid, uint32_t epoch) {
  MutexLock lock(&mu_);
  return std::erase_if(waiting_, [&](const KvTransfer& transfer) {
           return transfer.uid == uid && transfer.epoch == epoch;
         }) > 0;
}

void LocalTransport::Loop() {
  while (true) {
    KvTransfer transfer;
    bool is_stopping;
    {
      MutexLock lock(&mu_);
      while (waiting_.empty() && !is_stopping_) changed_.Wait(&mu_);
      if (waiting_.empty()) return;
      transfer = std::move(waiting_.front());
      waiting_.pop_front();
      is_stopping = is_stopping_;
    }
    if (is_stopping) {
      on_commit_({.uid = transfer.uid,
                  .epoch = transfer.epoch,
                  .status = absl::UnavailableError("shutting down"),
                  .coverage = {},
                  .num_blocks = 0});
    } else {
      on_commit_(Copy(transfer));
    }
  }
}

KvCommit LocalTransport::Copy(const KvTransfer& transfer) {
  KvCommit commit{.uid = transfer.uid,
                  .epoch = transfer.epoch,
                  .status = absl::OkStatus(),
                  .coverage = {},
                  .num_blocks = 0};
  const auto copies = PlanCopies(transfer);
  commit.status = copies.ok() ? mover_->Move(*copies) : copies.status();
  if (!commit.status.ok()) return commit;
  // What was moved, not what was asked for.
  commit.coverage = {transfer.coverage.begin, transfer.coverage.begin};
  for (const BlockCopy& copy : *copies) commit.coverage.end += copy.num_tokens;
  commit.num_blocks = static_cast<int64_t>(copies->size());
  return commit;
}

}  // namespace overfill
