#include "scheduler/transfer_rules.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/checked_math.h"
#include "base/status_macros.h"

namespace overfill {

absl::StatusOr<std::vector<BlockCopy>> PlanCopies(const KvTransfer& transfer) {
  const auto [begin, end] = transfer.coverage;
  const int32_t block_tokens = transfer.block_tokens;
  OVERFILL_CHECK_GE(block_tokens, 1);
  if (begin < 0 || begin >= end || begin % block_tokens != 0) {
    return absl::InternalError(
        absl::StrCat("a transfer of positions [", begin, ", ", end, ")"));
  }
  const auto num_blocks =
      static_cast<size_t>(CeilDiv(int64_t{end} - begin, block_tokens));
  if (transfer.source.size() != num_blocks ||
      transfer.destination.size() != num_blocks) {
    return absl::InternalError(absl::StrCat(
        "a transfer of ", num_blocks, " blocks from ", transfer.source.size(),
        " to ", transfer.destination.size()));
  }
  std::vector<BlockCopy> copies;
  for (size_t i = 0; i < num_blocks; ++i) {
    const int64_t first = begin + static_cast<int64_t>(i) * block_tokens;
    copies.push_back({
        .source = transfer.source[i],
        .destination = transfer.destination[i],
        .num_tokens =
            static_cast<int32_t>(std::min<int64_t>(block_tokens, end - first)),
    });
  }
  return copies;
}

absl::Status CheckCommit(const KvTransfer& transfer, const KvCommit& commit) {
  if (commit.uid != transfer.uid || commit.epoch != transfer.epoch) {
    return absl::InternalError("a commit of another transfer");
  }
  RETURN_IF_ERROR(commit.status);
  if (commit.coverage != transfer.coverage) {
    return absl::InternalError(
        absl::StrCat("a commit of positions [", commit.coverage.begin, ", ",
                     commit.coverage.end, "), not [", transfer.coverage.begin,
                     ", ", transfer.coverage.end, ")"));
  }
  if (commit.num_blocks != static_cast<int64_t>(transfer.source.size())) {
    return absl::InternalError(absl::StrCat("a commit of ", commit.num_blocks,
                                            " blocks, not ",
                                            transfer.source.size()));
  }
  if (commit.sent_digest != commit.received_digest) {
    const bool is_compared = commit.sent_digest && commit.received_digest;
    return absl::DataLossError(is_compared
                                   ? "what has arrived is not what was sent"
                                   : "a commit with only one of the digests");
  }
  return absl::OkStatus();
}

absl::Status CheckSwappedIn(std::optional<uint64_t> swapped_out,
                            const KvCommit& swapped_in) {
  if (swapped_out && swapped_out == swapped_in.received_digest) {
    return absl::OkStatus();
  }
  return absl::DataLossError("what was swapped in is not what was swapped out");
}

}  // namespace overfill
