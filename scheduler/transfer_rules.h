// The rules of a transfer, as pure functions: which blocks are copied, and what
// a commit must say.
#ifndef OVERFILL_SCHEDULER_TRANSFER_RULES_H_
#define OVERFILL_SCHEDULER_TRANSFER_RULES_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/step.h"
#include "scheduler/kv_transport.h"

namespace overfill {

// The copies that carry the coverage, each position once, block to block by
// position. INTERNAL when a table is shorter or longer than the coverage, or
// when the coverage begins within a block.
absl::StatusOr<std::vector<BlockCopy>> PlanCopies(const KvTransfer& transfer);

// OK only when the commit is this transfer's and says that exactly its coverage
// has arrived, and as it was sent: the digests are equal, where there are any.
absl::Status CheckCommit(const KvTransfer& transfer, const KvCommit& commit);

// Of a swap-in whose commit has passed CheckCommit: whether what came back is
// what went out. `swapped_out` is the received_digest of the swap-out, of the
// same coverage. DATA_LOSS when host memory did not keep it.
absl::Status CheckSwappedIn(std::optional<uint64_t> swapped_out,
                            const KvCommit& swapped_in);

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_TRANSFER_RULES_H_
