// One step of one pool's model: what goes in, what comes out, and the seam
// behind which the scheduler does not look. The scheduler's tests put a model
// of arithmetic behind it; ModelRunner is the real one.
#ifndef OVERFILL_ENGINE_STEP_H_
#define OVERFILL_ENGINE_STEP_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/sampling.h"

namespace overfill {

// One sequence's rows in a step: a prefill chunk, or a decode row.
struct SequenceStep {
  // Inputs [num_rows] of consecutive positions from start_position.
  std::span<const int32_t> token_ids;
  int32_t start_position = 0;
  // Blocks of the pool's store, covering [0, start_position + num_rows).
  std::span<const int32_t> block_table;
  // Each draws a token from the last row's logits: one for every sample that
  // continues here. Empty: none is drawn. None is null; not changed.
  std::span<const SamplingState* const> draws = {};
};

// The spans, and the states they point at, stay alive until Run returns.
struct StepBatch {
  std::vector<SequenceStep> sequences;
  // Once true, nobody wants the results: Run may end early, with CANCELLED.
  // May change while it runs. Null: they are wanted.
  const std::atomic<bool>* is_abandoned = nullptr;
};

struct SampledToken {
  int32_t token_id = -1;
  float logprob = 0;                                    // if asked for
  std::vector<std::pair<int32_t, float>> top_logprobs;  // best first
  // Not OK: this draw alone failed, or its row did (its logits were not
  // finite) with all draws from it.
  absl::Status status;
};

struct StepResult {
  // One for each draw, in the order of the sequences and of their draws.
  std::vector<SampledToken> tokens;
};

// What one step may hold at most.
struct StepLimits {
  int32_t max_rows = 0;             // over all sequences
  int32_t max_sequences = 0;        // also the draws of all sequences together
  int32_t max_sequence_tokens = 0;  // positions of one sequence
};

class StepRunner {
 public:
  virtual ~StepRunner() = default;
  virtual StepLimits limits() const = 0;
  // Writes the rows' KV and samples. Blocks; one thread at a time. An error is
  // the whole step's: none of its KV or tokens can be used.
  virtual absl::StatusOr<StepResult> Run(const StepBatch& batch) = 0;
};

// Digests of the moved positions' KV (see kv_digest.h), where bytes are copied:
// of what was read, and of what is there after the copy, each read for itself.
// Unset where the bytes change on the way (kv_map's projection).
struct KvMoveResult {
  std::optional<uint64_t> sent_digest;
  std::optional<uint64_t> received_digest;
};

// How KV gets from one store to another, or from block to block within one: a
// prompt's to the decode pool where the pools do not share a store (kv_map's
// projection, two devices), a preempted sequence's to host memory and back, a
// shared block's to the one who goes on to write it. Blocks; one thread at a
// time; safe beside Run of either pool when the blocks are not in its batch.
class KvMover {
 public:
  virtual ~KvMover() = default;
  // Fills the destination store's blocks from the source store's. Each of
  // `blocks` but the last is full; the first begins at `first_position` of its
  // sequence. In one store, no destination is a source.
  virtual absl::StatusOr<KvMoveResult> Move(std::span<const BlockCopy> blocks,
                                            int32_t first_position) = 0;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_STEP_H_
