// The rules of a migration, as pure functions: which blocks are copied, and
// what a commit must say.
#ifndef OVERFILL_SCHEDULER_MIGRATION_H_
#define OVERFILL_SCHEDULER_MIGRATION_H_

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

// OK only when the commit is this transfer's and says that exactly its
// coverage has arrived.
absl::Status CheckCommit(const KvTransfer& transfer, const KvCommit& commit);

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_MIGRATION_H_
