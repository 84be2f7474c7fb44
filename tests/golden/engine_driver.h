// Decodes requests by calling the two runners step by step, without the
// scheduler: every step a ragged batch that a seed draws.
#ifndef OVERFILL_TESTS_GOLDEN_ENGINE_DRIVER_H_
#define OVERFILL_TESTS_GOLDEN_ENGINE_DRIVER_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/sampling.h"
#include "engine/step.h"

namespace overfill {

// Where a runner leaves the raw logits of its last Run, by sequence.
using LogitsTable = std::vector<std::vector<float>>;

// One model with the store that it reads and writes.
struct DrivenPool {
  StepRunner* runner = nullptr;
  const LogitsTable* logits = nullptr;
  int32_t num_blocks = 0;  // of the store
};

struct DrivenPools {
  DrivenPool prefill;  // the full model
  DrivenPool decode;   // the pruned one
  // Null: both pools read one store, and KV is handed over where it lies.
  KvMover* mover = nullptr;
  int32_t block_tokens = 0;
};

struct DrivenRequest {
  std::vector<int32_t> prompt;
  // Teacher forcing: what follows the prompt whatever was sampled. Empty: the
  // sampled tokens.
  std::vector<int32_t> answer;
};

struct DrivenRun {
  std::string path = "two_stage";  // two_stage, full, pruned
  std::vector<DrivenRequest> requests;
  int32_t max_tokens = 1;
  // 0: one request after the other, whole prompts. Else each step takes some
  // of the requests, prompts in chunks of random length.
  uint64_t schedule_seed = 0;
  // Rows of one step at most; 0: as many as the runner takes.
  int32_t max_step_rows = 0;
  // Samples at the end of every prompt chunk, for its logits' sake.
  bool sample_chunks = false;
};

struct DrivenAnswer {
  std::vector<int32_t> tokens;  // as sampled
  // One row per sampled position, prompt chunks included.
  std::vector<int32_t> logits_positions;
  LogitsTable logits;
};

class EngineDriver {
 public:
  EngineDriver(const DrivenPools& pools, const StepLimits& limits)
      : pools_(pools), limits_(limits) {}
  // All requests to their end. A failed row is an error.
  absl::StatusOr<std::vector<DrivenAnswer>> Run(const DrivenRun& run);

 private:
  struct Live;
  enum Side { kPrefill, kDecode };

  absl::Status Step(const DrivenRun& run, Side side, std::vector<Live>& live);
  absl::Status Finish(const DrivenRun& run, Live& sequence,
                      const SampledToken& token);
  absl::Status Migrate(Live& sequence);
  const DrivenPool& Pool(Side side) const {
    return side == kPrefill ? pools_.prefill : pools_.decode;
  }
  // Which side runs the prompt, and which the answer.
  static Side PromptSide(const DrivenRun& run);
  static Side AnswerSide(const DrivenRun& run);

  const DrivenPools pools_;
  const StepLimits limits_;
  std::mt19937_64 random_;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_GOLDEN_ENGINE_DRIVER_H_
