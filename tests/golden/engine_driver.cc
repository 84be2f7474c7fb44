#include "tests/golden/engine_driver.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/checked_math.h"
#include "base/status_macros.h"

namespace overfill {

struct EngineDriver::Live {
  const DrivenRequest* request = nullptr;
  SamplingParams params;
  std::unique_ptr<SamplingState> sampling;
  const SamplingState* draw = nullptr;  // the same one
  std::vector<int32_t> inputs;  // the prompt, then the answer as it grows
  int32_t num_done = 0;         // of inputs
  Side side = kPrefill;
  // Blocks in each side's store; one table where they share it.
  std::vector<int32_t> tables[2];
  DrivenAnswer answer;
  bool finished = false;

  int32_t num_pending() const {
    return static_cast<int32_t>(inputs.size()) - num_done;
  }
};

EngineDriver::Side EngineDriver::PromptSide(const DrivenRun& run) {
  return run.path == "pruned" ? kDecode : kPrefill;
}

EngineDriver::Side EngineDriver::AnswerSide(const DrivenRun& run) {
  return run.path == "full" ? kPrefill : kDecode;
}

absl::StatusOr<std::vector<DrivenAnswer>> EngineDriver::Run(
    const DrivenRun& run) {
  random_.seed(run.schedule_seed);
  // Blocks lie in no order, so that a table is more than a number.
  std::vector<int32_t> free[2];
  for (Side side : {kPrefill, kDecode}) {
    free[side].resize(Pool(side).num_blocks);
    std::iota(free[side].begin(), free[side].end(), 0);
    std::shuffle(free[side].begin(), free[side].end(), random_);
  }

  std::vector<Live> live(run.requests.size());
  for (size_t r = 0; r < live.size(); ++r) {
    Live& sequence = live[r];
    sequence.request = &run.requests[r];
    sequence.params.temperature = 0;
    sequence.params.seed = r + 1;
    sequence.inputs = sequence.request->prompt;
    sequence.side = PromptSide(run);
    sequence.sampling = std::make_unique<SamplingState>(
        &sequence.params, sequence.inputs, /*sample_index=*/0);
    sequence.draw = sequence.sampling.get();
    const int64_t num_blocks =
        CeilDiv(static_cast<int64_t>(sequence.inputs.size()) + run.max_tokens,
                pools_.block_tokens);
    for (Side side : {kPrefill, kDecode}) {
      if (side == kDecode && pools_.mover == nullptr) {
        sequence.tables[kDecode] = sequence.tables[kPrefill];
        continue;
      }
      if (static_cast<int64_t>(free[side].size()) < num_blocks) {
        return absl::ResourceExhaustedError("the test's store is too small");
      }
      for (int64_t b = 0; b < num_blocks; ++b) {
        sequence.tables[side].push_back(free[side].back());
        free[side].pop_back();
      }
    }
  }

  const auto finished = [](const Live& l) { return l.finished; };
  while (!std::all_of(live.begin(), live.end(), finished)) {
    RETURN_IF_ERROR(Step(run, kPrefill, live));
    RETURN_IF_ERROR(Step(run, kDecode, live));
  }
  std::vector<DrivenAnswer> answers;
  for (Live& sequence : live) answers.push_back(std::move(sequence.answer));
  return answers;
}

absl::Status EngineDriver::Step(const DrivenRun& run, Side side,
                                std::vector<Live>& live) {
  StepBatch batch;
  std::vector<Live*> rows;
  int32_t rows_left = limits_.max_rows;
  if (run.max_step_rows > 0) rows_left = std::min(rows_left, run.max_step_rows);
  for (Live& sequence : live) {
    if (sequence.finished || sequence.side != side || rows_left == 0) continue;
    if (static_cast<int32_t>(rows.size()) == limits_.max_sequences) break;
    int32_t num_rows = std::min(sequence.num_pending(), rows_left);
    if (run.schedule_seed != 0) {
      if (random_() % 4 == 0) continue;  // sits this step out
      num_rows = 1 + static_cast<int32_t>(random_() % num_rows);
    }
    const bool draws = run.sample_chunks || num_rows == sequence.num_pending();
    batch.sequences.push_back({
        .token_ids = std::span<const int32_t>(sequence.inputs)
                         .subspan(sequence.num_done, num_rows),
        .start_position = sequence.num_done,
        .block_table = sequence.tables[side],
        .draws = std::span(&sequence.draw, draws ? 1 : 0),
    });
    rows.push_back(&sequence);
    rows_left -= num_rows;
    if (run.schedule_seed == 0) break;  // one at a time
  }
  if (rows.empty()) return absl::OkStatus();

  ASSIGN_OR_RETURN(const StepResult result, Pool(side).runner->Run(batch));
  const LogitsTable& logits = *Pool(side).logits;
  size_t next_token = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    Live& sequence = *rows[i];
    sequence.num_done +=
        static_cast<int32_t>(batch.sequences[i].token_ids.size());
    if (batch.sequences[i].draws.empty()) continue;
    sequence.answer.logits_positions.push_back(sequence.num_done - 1);
    sequence.answer.logits.push_back(logits[i]);
    RETURN_IF_ERROR(Finish(run, sequence, result.tokens.at(next_token++)));
  }
  OVERFILL_CHECK_EQ(next_token, result.tokens.size());
  return absl::OkStatus();
}

absl::Status EngineDriver::Finish(const DrivenRun& run, Live& sequence,
                                  const SampledToken& token) {
  RETURN_IF_ERROR(token.status);
  if (sequence.num_pending() > 0) return absl::OkStatus();  // a chunk's end
  std::vector<int32_t>& tokens = sequence.answer.tokens;
  const std::vector<int32_t>& forced = sequence.request->answer;
  const int32_t next =
      forced.empty() ? token.token_id : forced.at(tokens.size());
  tokens.push_back(token.token_id);
  if (static_cast<int32_t>(tokens.size()) == run.max_tokens) {
    sequence.finished = true;
    return absl::OkStatus();
  }
  sequence.sampling->Accept(next);
  sequence.inputs.push_back(next);
  if (sequence.side == AnswerSide(run)) return absl::OkStatus();
  sequence.side = AnswerSide(run);
  return Migrate(sequence);
}

absl::Status EngineDriver::Migrate(Live& sequence) {
  if (pools_.mover == nullptr) return absl::OkStatus();
  std::vector<BlockCopy> blocks;
  for (int32_t begin = 0; begin < sequence.num_done;
       begin += pools_.block_tokens) {
    blocks.push_back({.source = sequence.tables[kPrefill][blocks.size()],
                      .destination = sequence.tables[kDecode][blocks.size()],
                      .num_tokens = std::min(pools_.block_tokens,
                                             sequence.num_done - begin)});
  }
  return pools_.mover->Move(blocks, /*first_position=*/0).status();
}

}  // namespace overfill
