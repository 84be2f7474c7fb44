// A model of arithmetic behind the scheduler's seam. Its KV is one number per
// position, made of the position, the token and the model that wrote it; its
// next token is made of all the numbers that it reads back through the block
// table. So a wrong block, position, table, token, model or sampling state
// shows as a wrong token.
#ifndef OVERFILL_TESTS_SCHEDULER_FAKE_MODEL_H_
#define OVERFILL_TESTS_SCHEDULER_FAKE_MODEL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "engine/step.h"
#include "scheduler/request.h"

namespace overfill {

// Cells without any lock: the thread sanitizer sees two threads at one block.
struct FakeStore {
  FakeStore(int32_t blocks, int32_t tokens)
      : num_blocks(blocks),
        block_tokens(tokens),
        cells(static_cast<size_t>(blocks) * tokens, 0xdeadbeef) {}
  uint64_t& At(int32_t block, int32_t slot) {
    return cells[static_cast<size_t>(block) * block_tokens + slot];
  }
  const int32_t num_blocks;
  const int32_t block_tokens;
  std::vector<uint64_t> cells;
};

// Bugs that the comparison with the reference must notice.
enum class Fault {
  kNone,
  kPromptKvDropped,   // a prompt chunk's last row is not written
  kPositionOffByOne,  // KV as if one position further
  kTablesExchanged,   // two sequences of a step read each other's blocks
  kStaleToken,        // an answer's row is fed the token before the last one
  kCopyDropsPartial,  // the copy leaves out the last, partial block
  kCopyShifted,       // the copy puts blocks one entry too early
  kStateForgotten,    // sampling as if no token had been accepted
};

// An arithmetic model's constants. Two with one salt are one model.
uint64_t FakeCell(uint64_t model, int32_t position, int32_t token);
int32_t FakeNext(uint64_t model, uint64_t digest, const SamplingState& sampling,
                 int32_t vocab_size);
// Extends a digest of cells by one more.
uint64_t FakeDigest(uint64_t digest, uint64_t cell);

// Where a test makes a thread wait.
class Gate {
 public:
  void Pass();  // waits while the gate is closed
  void Close();
  void Open();
  // Waits until a thread stands at the closed gate; fails after a minute.
  void AwaitArrival();

 private:
  Mutex mu_;
  CondVar changed_;
  bool is_closed_ ABSL_GUARDED_BY(mu_) = false;
  bool is_at_gate_ ABSL_GUARDED_BY(mu_) = false;
};

class FakeModel : public StepRunner {
 public:
  FakeModel(uint64_t salt, FakeStore* store, StepLimits limits,
            int32_t vocab_size)
      : salt_(salt), store_(store), limits_(limits), vocab_size_(vocab_size) {}

  StepLimits limits() const override { return limits_; }
  absl::StatusOr<StepResult> Run(const StepBatch& batch) override;

  // To be set before the scheduler is made. Called within Run, before any row.
  std::function<absl::Status(const StepBatch&)> before_run;
  // Called for each draw; a value replaces the token.
  std::function<std::optional<SampledToken>(const SequenceStep&,
                                            const SamplingState& draw)>
      script;
  std::atomic<Fault> fault = Fault::kNone;

  // Run waits before its work while the gate is closed.
  void CloseGate() { gate_.Close(); }
  void OpenGate() { gate_.Open(); }
  void AwaitAtGate() { gate_.AwaitArrival(); }

  int64_t num_steps() const { return num_steps_; }
  // What the scheduler asked for and must not; "" when there was nothing.
  std::string violation() const;

 private:
  void Check(const StepBatch& batch);
  // A block that a sequence writes is in no other table of the step.
  void CheckWrites(const StepBatch& batch);
  void Violate(const std::string& what);
  void WriteRows(const SequenceStep& step);
  // The digest of what the step's last row reads, through the table of `read`.
  uint64_t Read(const SequenceStep& step, const SequenceStep& read) const;
  SampledToken Draw(uint64_t digest, const SamplingState& draw) const;

  const uint64_t salt_;
  FakeStore* const store_;
  const StepLimits limits_;
  const int32_t vocab_size_;
  std::atomic<int64_t> num_steps_ = 0;
  std::atomic<int> num_running_ = 0;
  Gate gate_;
  mutable Mutex mu_;
  std::string violation_ ABSL_GUARDED_BY(mu_);
};

class FakeMover : public KvMover {
 public:
  FakeMover(FakeStore* source, FakeStore* destination)
      : source_(source), destination_(destination) {}

  absl::StatusOr<KvMoveResult> Move(std::span<const BlockCopy> blocks,
                                    int32_t first_position) override;

  // What a move's digests of these blocks would be now.
  uint64_t SourceDigest(std::span<const BlockCopy> blocks,
                        int32_t first_position) const;
  uint64_t DestinationDigest(std::span<const BlockCopy> blocks,
                             int32_t first_position) const;

  // To be set before the scheduler is made. Called within Move, behind the
  // gate.
  std::function<void(std::span<const BlockCopy>)> before_move;
  // False: as through maps, which give no digests.
  std::atomic<bool> copies_bytes = true;
  std::atomic<Fault> fault = Fault::kNone;
  std::atomic<int> num_failures_to_come = 0;
  std::atomic<int64_t> num_moves = 0;

  // As FakeModel's. The copy reads and writes after the gate.
  void CloseGate() { gate_.Close(); }
  void OpenGate() { gate_.Open(); }
  void AwaitAtGate() { gate_.AwaitArrival(); }

 private:
  FakeStore* const source_;
  FakeStore* const destination_;
  Gate gate_;
};

// The answer that the request must get, made without blocks, steps or threads.
// `prompt_model` reads the prompt and samples token 0.
std::vector<int32_t> FakeAnswer(const Request& request, uint64_t prompt_model,
                                uint64_t answer_model, int32_t vocab_size,
                                uint32_t sample_index = 0);

}  // namespace overfill

#endif  // OVERFILL_TESTS_SCHEDULER_FAKE_MODEL_H_
