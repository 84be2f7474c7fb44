// How a prompt's KV gets from the pool that made it to the pool that goes on
// with it. The scheduler names blocks and positions; it never sees a byte.
#ifndef OVERFILL_SCHEDULER_KV_TRANSPORT_H_
#define OVERFILL_SCHEDULER_KV_TRANSPORT_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace overfill {

// Absolute positions [begin, end) of a sequence.
struct TokenRange {
  int32_t begin = 0;
  int32_t end = 0;
  bool operator==(const TokenRange&) const = default;
};

// A migration is told from all others, earlier ones of its sequence included,
// by (uid, epoch).
struct KvTransfer {
  uint64_t uid = 0;
  uint32_t epoch = 0;
  TokenRange coverage;
  int32_t block_tokens = 0;
  // Blocks of the two stores, by position: entry i holds the positions
  // [i * block_tokens, (i + 1) * block_tokens) within the coverage.
  std::vector<int32_t> source = {};
  std::vector<int32_t> destination = {};
};

// The one answer to a transfer.
struct KvCommit {
  uint64_t uid = 0;
  uint32_t epoch = 0;
  absl::Status status;
  TokenRange coverage;  // what has arrived; meaningless on an error
  int64_t num_blocks = 0;
};

// Both tables' blocks stay what they are until the commit, whoever has lost
// interest meanwhile.
class KvTransport {
 public:
  virtual ~KvTransport() = default;
  // Does not block. Exactly one KvCommit follows, from another thread.
  virtual void Send(KvTransfer transfer) = 0;
  // True when the transfer had not begun and never will: no commit follows.
  // False: the commit is still to come.
  virtual bool Abandon(uint64_t uid, uint32_t epoch) = 0;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_KV_TRANSPORT_H_
