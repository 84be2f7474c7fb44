// The transfers that are not over, and which message about one counts.
#ifndef OVERFILL_SCHEDULER_TRANSFER_TABLE_H_
#define OVERFILL_SCHEDULER_TRANSFER_TABLE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "scheduler/kv_transport.h"
#include "scheduler/request.h"

namespace overfill {

struct TransferCounts {
  int32_t sending = 0;
  int32_t fencing = 0;
  // Messages without effect, ever since: commits of transfers that are being
  // fenced; commits of none that lives (stale, sent twice, invented); fences
  // that nobody waits for.
  int64_t commits_while_fencing = 0;
  int64_t unknown_commits = 0;
  int64_t unknown_fences = 0;
};

// A transfer is
//   sending  from Begin on; its commit may come
//   fencing  its lease has passed: no commit counts any more, and only the
//            fence ends it
// Until it is over, its blocks of both stores stay pinned. What becomes of its
// sequence is the caller's, and need not wait: a new epoch may be sending while
// an old one is fencing.
//
// No thread, no clock; copyable. Not thread-safe.
class TransferTable {
 public:
  // CHECKs that the epoch is above all of this uid's that are not over. The
  // caller sees to it that it is above those that are, too.
  void Begin(KvTransfer transfer, SteadyTime lease_end);

  // OK: all of the transfer has arrived, as it was sent. Else it has failed;
  // over it is in either case.
  struct Finished {
    KvTransfer transfer;
    absl::Status status;
    // Of what has arrived, where there is one; see CheckSwappedIn.
    std::optional<uint64_t> digest;
  };
  // Nothing: the message has no effect, and is counted.
  std::optional<Finished> OnCommit(const KvCommit& commit);
  // The transfer that is over with this. Nothing: as OnCommit.
  std::optional<KvTransfer> OnFenced(uint64_t uid, uint32_t epoch);

  // Those whose lease has passed are fencing from now on; the caller calls
  // KvTransport::Fence for each.
  std::vector<KvTransfer> Expire(SteadyTime now);
  // The transport has accepted an Abandon; CHECKs that the transfer is there.
  KvTransfer Abandoned(uint64_t uid, uint32_t epoch);

  // The first lease that will pass; SteadyTime::max() without one.
  SteadyTime NextLease() const;
  const TransferCounts& counts() const { return counts_; }
  // Blocks of a store that wait for a fence.
  int64_t NumFencingBlocks(int32_t store) const;

  // INTERNAL names what does not add up: a count, a lease, a block that two
  // transfers write, or that one writes and another reads.
  absl::Status CheckIntegrity() const;

 private:
  using Id = std::pair<uint64_t, uint32_t>;  // uid, epoch
  struct Entry {
    KvTransfer transfer;
    SteadyTime lease_end;
    bool is_fencing = false;
  };
  KvTransfer Remove(std::map<Id, Entry>::iterator it);
  absl::Status CheckBlocks() const;

  std::map<Id, Entry> entries_;
  std::set<std::pair<SteadyTime, Id>> leases_;  // of the sending ones
  TransferCounts counts_;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_TRANSFER_TABLE_H_
