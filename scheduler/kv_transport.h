// How KV gets from one store to another: a prompt's to the pool that goes on
// with it, a preempted sequence's to its swap space and back, a partial block's
// to another sample's. The scheduler names blocks and positions; it never sees
// a byte.
#ifndef OVERFILL_SCHEDULER_KV_TRANSPORT_H_
#define OVERFILL_SCHEDULER_KV_TRANSPORT_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "scheduler/stores.h"

namespace overfill {

// Absolute positions [begin, end) of a sequence.
struct TokenRange {
  int32_t begin = 0;
  int32_t end = 0;
  bool operator==(const TokenRange&) const = default;
};

// A transfer is told from all others, earlier ones of its sequence included,
// by (uid, epoch). The epochs of one uid ascend, whatever stores they are
// between.
struct KvTransfer {
  uint64_t uid = 0;
  uint32_t epoch = 0;
  int32_t from_store = kPrefillStore;  // see stores.h
  int32_t to_store = kDecodeStore;     // the same: the copy of a shared block
  TokenRange coverage;
  int32_t block_tokens = 0;
  // Blocks of the two stores, by position: entry i holds the positions
  // [i * block_tokens, (i + 1) * block_tokens) within the coverage.
  std::vector<int32_t> source = {};
  std::vector<int32_t> destination = {};
};

// What has arrived; all but uid and epoch is meaningless on an error.
struct KvCommit {
  uint64_t uid = 0;
  uint32_t epoch = 0;
  absl::Status status;
  TokenRange coverage;
  int64_t num_blocks = 0;
  // See KvMoveResult. Unset where the KV changes on the way.
  std::optional<uint64_t> sent_digest = std::nullopt;
  std::optional<uint64_t> received_digest = std::nullopt;
};

// Called from the transport's threads, several at once, with no lock held.
struct KvTransportEvents {
  std::function<void(const KvCommit&)> on_commit;
  // No byte of the transfer is written, or read, from now on.
  std::function<void(uint64_t uid, uint32_t epoch)> on_fenced;
};

// Both tables' blocks stay what they are until the transfer's end, whoever has
// lost interest meanwhile. The end of a transfer is one of: its commit, an
// accepted Abandon, on_fenced. A faulty transport may send a commit never, late
// or more than once: TransferTable tells which one counts.
//
// Thread-safe. Nothing here blocks but the destructor: each may be called with
// a lock that the events take.
class KvTransport {
 public:
  virtual ~KvTransport() = default;
  // Once, before the first Send.
  virtual void Start(KvTransportEvents events) = 0;
  // A commit follows, unless Abandon or Fence comes first.
  virtual void Send(KvTransfer transfer) = 0;
  // True when the transfer had not begun and never will: nothing follows.
  // False: its end is still to come.
  virtual bool Abandon(uint64_t uid, uint32_t epoch) = 0;
  // The transfer's lease has passed. Its endpoint is reset so that no byte of
  // it can be written any more; then on_fenced follows, exactly once for each
  // call, also for a transfer whose commit is on its way or that is not known.
  // A commit that crosses the call is to be discarded.
  virtual void Fence(uint64_t uid, uint32_t epoch) = 0;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_KV_TRANSPORT_H_
