#include "tests/support/faulty_transport.h"

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace overfill {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kStallInterval(200);
constexpr std::chrono::seconds kLongestWait(1);

// The slots that entry `i` of a transfer's tables has in use.
int32_t TokensOfBlock(const KvTransfer& transfer, size_t i) {
  const int64_t left = int64_t{transfer.coverage.end} -
                       transfer.coverage.begin -
                       static_cast<int64_t>(i) * transfer.block_tokens;
  return static_cast<int32_t>(std::min<int64_t>(left, transfer.block_tokens));
}

}  // namespace

TransferFault DrawFault(const FaultRates& rates, std::mt19937_64& random) {
  const std::pair<double, TransferFault> table[] = {
      {rates.delay, TransferFault::kDelay},
      {rates.drop, TransferFault::kDrop},
      {rates.duplicate, TransferFault::kDuplicate},
      {rates.reorder, TransferFault::kReorder},
      {rates.truncate, TransferFault::kTruncate},
      {rates.flip, TransferFault::kFlip},
      {rates.stall, TransferFault::kStall},
      {rates.fail, TransferFault::kFail},
  };
  // 53 bits: exact in a double, and the same on every platform.
  double at = static_cast<double>(random() >> 11) * 0x1p-53;
  for (const auto& [rate, fault] : table) {
    if (at < rate) return fault;
    at -= rate;
  }
  return TransferFault::kNone;
}

void FlipBit(const KvView& kv, int32_t block, int32_t num_tokens,
             uint64_t random) {
  const auto draw = [&random](int64_t count) {
    const auto drawn =
        static_cast<int64_t>(random % static_cast<uint64_t>(count));
    random /= static_cast<uint64_t>(count);
    return static_cast<int32_t>(drawn);
  };
  const int32_t layer = draw(kv.num_layers);
  const int32_t half = draw(2);
  const int32_t head = draw(kv.num_kv_heads);
  const int64_t element = kv.TileOffset(block, layer, half, head) +
                          draw(int64_t{num_tokens} * kv.head_dim);
  const auto element_bytes = static_cast<int64_t>(DTypeBytes(kv.dtype));
  auto* byte = static_cast<uint8_t*>(kv.data) + element * element_bytes +
               draw(element_bytes);
  *byte ^= static_cast<uint8_t>(1 << draw(8));
}

FaultyTransport::FaultyTransport(std::unique_ptr<KvTransport> inner,
                                 Options options)
    : options_(std::move(options)),
      random_(options_.seed),
      delay_random_(options_.seed + 1),
      inner_(std::move(inner)) {}

FaultyTransport::~FaultyTransport() {
  inner_.reset();
  {
    MutexLock lock(&mu_);
    is_stopping_ = true;
    for (auto& [id, faulted] : alive_) {
      if (faulted.fault != TransferFault::kStall) continue;
      Hold(
          {.due = Clock::now(),
           .commit = KvCommit{.uid = id.first,
                              .epoch = id.second,
                              .status = absl::UnavailableError("shutting down"),
                              .coverage = {}}});
    }
    alive_.clear();
  }
  changed_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

void FaultyTransport::Start(KvTransportEvents events) {
  events_ = std::move(events);
  thread_ = std::thread([this] { Loop(); });
  inner_->Start(
      {.on_commit = [this](const KvCommit& c) { OnInnerCommit(c); },
       .on_fenced = [this](uint64_t uid,
                           uint32_t epoch) { OnInnerFenced(uid, epoch); }});
}

void FaultyTransport::Send(KvTransfer transfer) {
  {
    MutexLock lock(&mu_);
    ++counts_.transfers;
    const TransferFault fault = DrawFault(options_.rates, random_);
    const Faulted& faulted =
        alive_
            .insert_or_assign(Id(transfer.uid, transfer.epoch),
                              Faulted{fault, random_(), transfer})
            .first->second;
    if (fault == TransferFault::kStall) {
      ++counts_.stalled;
      changed_.NotifyAll();
      return;
    }
    if (fault == TransferFault::kTruncate) Truncate(faulted.random, transfer);
  }
  inner_->Send(std::move(transfer));
}

bool FaultyTransport::Truncate(uint64_t random, KvTransfer& transfer) {
  const int32_t last_tokens =
      TokensOfBlock(transfer, transfer.source.size() - 1);
  if (last_tokens > 1 && random % 2 == 0) {
    --transfer.coverage.end;
    return true;
  }
  if (transfer.source.size() < 2) return false;
  transfer.source.pop_back();
  transfer.destination.pop_back();
  transfer.coverage.end -= last_tokens;
  return true;
}

bool FaultyTransport::Abandon(uint64_t uid, uint32_t epoch) {
  if (!inner_->Abandon(uid, epoch)) return false;
  MutexLock lock(&mu_);
  alive_.erase({uid, epoch});
  return true;
}

void FaultyTransport::Fence(uint64_t uid, uint32_t epoch) {
  {
    // No byte of it is touched from here on: that happens with this lock, to
    // what is alive.
    MutexLock lock(&mu_);
    alive_.erase({uid, epoch});
  }
  inner_->Fence(uid, epoch);
}

void FaultyTransport::OnInnerCommit(KvCommit commit) {
  {
    MutexLock lock(&mu_);
    const auto it = alive_.find({commit.uid, commit.epoch});
    if (it != alive_.end()) {
      const Faulted faulted = std::move(it->second);
      alive_.erase(it);
      if (!commit.status.ok()) {
        ++counts_.unharmed;
      } else if (!Change(faulted, commit)) {
        return;
      }
    }
  }
  Deliver({.due = {}, .commit = std::move(commit)});
}

bool FaultyTransport::Change(const Faulted& faulted, KvCommit& commit) {
  Message later{.due = Clock::now() + DrawDelay(), .commit = commit};
  switch (faulted.fault) {
    case TransferFault::kNone:
    case TransferFault::kStall:
      ++counts_.unharmed;
      return true;
    case TransferFault::kDelay:
      ++counts_.delayed;
      Hold(std::move(later));
      return false;
    case TransferFault::kDrop:
      ++counts_.dropped;
      return false;
    case TransferFault::kDuplicate:
      ++counts_.duplicated;
      Hold(std::move(later));
      return true;
    case TransferFault::kReorder:
      ++counts_.reordered;
      later.due = Clock::now() + options_.max_delay;
      later.goes_after_next_commit = true;
      Hold(std::move(later));
      return false;
    case TransferFault::kTruncate:
      ++counts_.truncated;
      // Of one token nothing is left.
      if (commit.coverage == faulted.transfer.coverage) {
        commit.coverage.end = commit.coverage.begin;
        commit.num_blocks = 0;
      }
      return true;
    case TransferFault::kFlip:
      ++(Flip(faulted, commit) ? counts_.flipped : counts_.unharmed);
      return true;
    case TransferFault::kFail:
      ++counts_.failed;
      commit.status = absl::UnavailableError("a planted failure");
      return true;
  }
  return true;
}

bool FaultyTransport::Flip(const Faulted& faulted, KvCommit& commit) {
  if (!commit.received_digest) return false;
  const KvTransfer& transfer = faulted.transfer;
  if (!options_.hooks.flip || !options_.hooks.received_digest) {
    *commit.received_digest ^= 1;
    return true;
  }
  const size_t i = faulted.random % transfer.destination.size();
  options_.hooks.flip(transfer.to_store, transfer.destination[i],
                      TokensOfBlock(transfer, i), faulted.random >> 8);
  commit.received_digest = options_.hooks.received_digest(transfer);
  return true;
}

void FaultyTransport::OnInnerFenced(uint64_t uid, uint32_t epoch) {
  Message message{.due = {}, .commit = std::nullopt, .fenced = {uid, epoch}};
  {
    MutexLock lock(&mu_);
    if (static_cast<double>(delay_random_() >> 11) * 0x1p-53 <
        options_.rates.late_fence) {
      ++counts_.late_fences;
      message.due = Clock::now() + DrawDelay();
      Hold(std::move(message));
      return;
    }
  }
  Deliver(message);
}

std::chrono::nanoseconds FaultyTransport::DrawDelay() {
  const auto most = static_cast<uint64_t>(options_.max_delay.count());
  return std::chrono::nanoseconds(delay_random_() % (most + 1));
}

void FaultyTransport::Hold(Message message) {
  held_.push_back(std::move(message));
  changed_.NotifyAll();
}

void FaultyTransport::Deliver(const Message& message) {
  if (!message.commit) {
    events_.on_fenced(message.fenced.first, message.fenced.second);
    return;
  }
  events_.on_commit(*message.commit);
  MutexLock lock(&mu_);
  for (Message& held : held_) {
    if (held.goes_after_next_commit) held.due = {};
  }
  changed_.NotifyAll();
}

void FaultyTransport::WriteStalled() {
  if (!options_.hooks.flip) return;
  for (auto& [id, faulted] : alive_) {
    if (faulted.fault != TransferFault::kStall) continue;
    const std::vector<int32_t>& blocks = faulted.transfer.destination;
    const size_t i = faulted.random % blocks.size();
    options_.hooks.flip(faulted.transfer.to_store, blocks[i],
                        TokensOfBlock(faulted.transfer, i),
                        faulted.random >> 8);
    // Another place the next time.
    faulted.random = NextRandom(faulted.random);
  }
}

void FaultyTransport::Loop() {
  mu_.Lock();
  while (!is_stopping_ || !held_.empty()) {
    const SteadyTime now = is_stopping_ ? SteadyTime::max() : Clock::now();
    WriteStalled();
    const auto due = std::find_if(
        held_.begin(), held_.end(),
        [&](const Message& message) { return message.due <= now; });
    if (due != held_.end()) {
      const Message message = std::move(*due);
      held_.erase(due);
      mu_.Unlock();
      Deliver(message);
      mu_.Lock();
      continue;
    }
    std::chrono::nanoseconds wait = kLongestWait;
    for (const Message& message : held_) {
      wait = std::min<std::chrono::nanoseconds>(wait, message.due - now);
    }
    const bool is_writing =
        options_.hooks.flip &&
        std::any_of(alive_.begin(), alive_.end(), [](const auto& entry) {
          return entry.second.fault == TransferFault::kStall;
        });
    if (is_writing) {
      wait = std::min<std::chrono::nanoseconds>(wait, kStallInterval);
    }
    changed_.WaitFor(&mu_, wait);
  }
  mu_.Unlock();
}

FaultCounts FaultyTransport::counts() const {
  MutexLock lock(&mu_);
  return counts_;
}

}  // namespace overfill
