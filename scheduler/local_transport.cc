#include "scheduler/local_transport.h"

#include <set>

#include "base/check.h"
#include "scheduler/transfer_rules.h"

namespace overfill {

LocalTransport::LocalTransport(const Movers& movers) {
  std::set<KvMover*> distinct;
  MutexLock lock(&mu_);
  for (const auto& [stores, mover] : movers) {
    OVERFILL_CHECK(mover != nullptr && distinct.insert(mover).second)
        << "a link without a mover of its own";
    links_[stores].mover = mover;
  }
}

void LocalTransport::Start(KvTransportEvents events) {
  MutexLock lock(&mu_);
  OVERFILL_CHECK(!fence_thread_.joinable()) << "started twice";
  events_ = std::move(events);
  for (auto& [stores, link] : links_) {
    link.thread = std::thread([this, at = &link] { LinkLoop(at); });
  }
  fence_thread_ = std::thread([this] { FenceLoop(); });
}

LocalTransport::~LocalTransport() {
  std::vector<std::thread> threads;
  {
    MutexLock lock(&mu_);
    is_stopping_ = true;
    for (auto& [stores, link] : links_) {
      threads.push_back(std::move(link.thread));
    }
  }
  changed_.NotifyAll();
  for (std::thread& thread : threads) {
    if (thread.joinable()) thread.join();
  }
  // Last, for the last commits may have led to fences.
  {
    MutexLock lock(&mu_);
    is_last_fence_known_ = true;
  }
  changed_.NotifyAll();
  if (fence_thread_.joinable()) fence_thread_.join();
}

void LocalTransport::Send(KvTransfer transfer) {
  {
    MutexLock lock(&mu_);
    const auto link = links_.find({transfer.from_store, transfer.to_store});
    OVERFILL_CHECK(link != links_.end())
        << "no link from store " << transfer.from_store << " to store "
        << transfer.to_store;
    OVERFILL_CHECK(fence_thread_.joinable()) << "not started";
    link->second.waiting.push_back(std::move(transfer));
  }
  changed_.NotifyAll();
}

bool LocalTransport::EraseWaiting(Id id) {
  size_t num_erased = 0;
  for (auto& [stores, link] : links_) {
    num_erased += std::erase_if(link.waiting, [&](const KvTransfer& transfer) {
      return transfer.uid == id.first && transfer.epoch == id.second;
    });
  }
  return num_erased > 0;
}

bool LocalTransport::Abandon(uint64_t uid, uint32_t epoch) {
  MutexLock lock(&mu_);
  return EraseWaiting({uid, epoch});
}

void LocalTransport::Fence(uint64_t uid, uint32_t epoch) {
  const Id id(uid, epoch);
  {
    MutexLock lock(&mu_);
    for (auto& [stores, link] : links_) {
      if (link.moving != id) continue;
      ++link.num_fences;
      return;
    }
    EraseWaiting(id);
    fenced_.push_back(id);
  }
  changed_.NotifyAll();
}

void LocalTransport::LinkLoop(Link* link) {
  while (true) {
    KvTransfer transfer;
    KvMover* mover;
    bool is_stopping;
    {
      MutexLock lock(&mu_);
      while (link->waiting.empty() && !is_stopping_) changed_.Wait(&mu_);
      if (link->waiting.empty()) return;
      transfer = std::move(link->waiting.front());
      link->waiting.pop_front();
      link->moving = Id(transfer.uid, transfer.epoch);
      mover = link->mover;
      is_stopping = is_stopping_;
    }
    if (is_stopping) {
      Finish(link, {.uid = transfer.uid,
                    .epoch = transfer.epoch,
                    .status = absl::UnavailableError("shutting down"),
                    .coverage = {}});
    } else {
      Finish(link, Copy(mover, transfer));
    }
  }
}

void LocalTransport::Finish(Link* link, const KvCommit& commit) {
  int num_fences;
  {
    MutexLock lock(&mu_);
    link->moving.reset();
    num_fences = std::exchange(link->num_fences, 0);
  }
  if (num_fences == 0) events_.on_commit(commit);
  for (int i = 0; i < num_fences; ++i) {
    events_.on_fenced(commit.uid, commit.epoch);
  }
}

void LocalTransport::FenceLoop() {
  while (true) {
    Id id;
    {
      MutexLock lock(&mu_);
      while (fenced_.empty() && !is_last_fence_known_) changed_.Wait(&mu_);
      if (fenced_.empty()) return;
      id = fenced_.front();
      fenced_.pop_front();
    }
    events_.on_fenced(id.first, id.second);
  }
}

KvCommit LocalTransport::Copy(KvMover* mover, const KvTransfer& transfer) {
  KvCommit commit{.uid = transfer.uid,
                  .epoch = transfer.epoch,
                  .status = absl::OkStatus(),
                  .coverage = {}};
  const auto copies = PlanCopies(transfer);
  if (!copies.ok()) {
    commit.status = copies.status();
    return commit;
  }
  const auto moved = mover->Move(*copies, transfer.coverage.begin);
  if (!moved.ok()) {
    commit.status = moved.status();
    return commit;
  }
  // What was moved, not what was asked for.
  commit.coverage = {transfer.coverage.begin, transfer.coverage.begin};
  for (const BlockCopy& copy : *copies) commit.coverage.end += copy.num_tokens;
  commit.num_blocks = static_cast<int64_t>(copies->size());
  commit.sent_digest = moved->sent_digest;
  commit.received_digest = moved->received_digest;
  return commit;
}

}  // namespace overfill
