// Names of prompt prefixes, by which blocks of KV are found again.
#ifndef OVERFILL_SCHEDULER_PREFIX_KEYS_H_
#define OVERFILL_SCHEDULER_PREFIX_KEYS_H_

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/strings/string_view.h"

namespace overfill {

// The content of one block of prompt KV: which model made it, for whom, from
// which tokens up to the block's last.
using BlockKey = std::array<uint8_t, 32>;

// The keys of the first `num_blocks` blocks of a prompt. Each is a SHA-256 over
//   a domain tag with a version, `model_digest` (the content of the model that
//   computes the KV), `tenant` (authenticated, never what a client claims),
//   `block_tokens`, the key of the block before (empty for the first), and the
//   block's own token ids,
// each field with its length before it, so that no two inputs are one string
// of bytes. Blocks have one key only where all of this is the same; a tenant
// cannot find, or time, what another has asked.
//
// CHECKs that the blocks are full: num_blocks * block_tokens <= tokens.size().
std::vector<BlockKey> PrefixKeys(absl::string_view model_digest,
                                 absl::string_view tenant,
                                 std::span<const int32_t> tokens,
                                 int32_t block_tokens, int32_t num_blocks);

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_PREFIX_KEYS_H_
