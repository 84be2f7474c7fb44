#include "tests/scheduler/fake_model.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/checked_math.h"

namespace overfill {
namespace {

uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9e3779b97f4a7c15 + b + 0x632be59bd9b4e019;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t Bits(float value) {
  uint32_t bits;
  static_assert(sizeof(bits) == sizeof(value));
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

uint64_t FakeCell(uint64_t model, int32_t position, int32_t token) {
  return Mix(Mix(model, position), token);
}

uint64_t FakeDigest(uint64_t digest, uint64_t cell) {
  return Mix(digest, cell);
}

int32_t FakeNext(uint64_t model, uint64_t digest, const SamplingState& sampling,
                 int32_t vocab_size) {
  std::vector<TokenAdjustment> adjustments;
  const SampleParams params = sampling.Fill(adjustments);
  uint64_t x = Mix(Mix(Mix(model, digest), params.seed), params.token_index);
  x = Mix(x, params.sample_index);
  std::set<int32_t> banned;
  for (const TokenAdjustment& a : adjustments) {
    x = Mix(Mix(x, a.token_id), Mix(Bits(a.bias), a.output_count));
    x = Mix(x, a.seen);
    if (a.banned) banned.insert(a.token_id);
  }
  auto token = static_cast<int32_t>(x % vocab_size);
  while (banned.contains(token)) token = (token + 1) % vocab_size;
  return token;
}

absl::StatusOr<StepResult> FakeModel::Run(const StepBatch& batch) {
  if (++num_running_ > 1) Violate("two steps at once");
  Check(batch);
  gate_.Pass();
  absl::Status status;
  if (before_run) status = before_run(batch);
  StepResult result;
  if (status.ok()) {
    const size_t count = batch.sequences.size();
    for (const SequenceStep& step : batch.sequences) WriteRows(step);
    for (size_t i = 0; i < count; ++i) {
      const SequenceStep& step = batch.sequences[i];
      if (step.draws.empty()) continue;
      SequenceStep read = step;
      if (fault == Fault::kTablesExchanged) {
        const auto& other = batch.sequences[(i + 1) % count];
        if (other.block_table.size() >= step.block_table.size()) {
          read.block_table = other.block_table;
        }
      }
      const uint64_t digest = Read(step, read);
      for (const SamplingState* draw : step.draws) {
        std::optional<SampledToken> scripted;
        if (script) scripted = script(step, *draw);
        result.tokens.push_back(scripted ? *scripted : Draw(digest, *draw));
      }
    }
  }
  ++num_steps_;
  --num_running_;
  if (!status.ok()) return status;
  return result;
}

void FakeModel::WriteRows(const SequenceStep& step) {
  for (size_t row = 0; row < step.token_ids.size(); ++row) {
    const bool is_last = row + 1 == step.token_ids.size();
    if (fault == Fault::kPromptKvDropped && row > 0 && is_last) continue;
    const int32_t position = step.start_position + static_cast<int32_t>(row);
    const int32_t block = step.block_table[position / store_->block_tokens];
    store_->At(block, position % store_->block_tokens) =
        FakeCell(salt_, position + (fault == Fault::kPositionOffByOne),
                 step.token_ids[row]);
  }
}

uint64_t FakeModel::Read(const SequenceStep& step,
                         const SequenceStep& read) const {
  const int32_t end =
      step.start_position + static_cast<int32_t>(step.token_ids.size());
  uint64_t digest = 0;
  for (int32_t position = 0; position < end; ++position) {
    const int32_t block = read.block_table[position / store_->block_tokens];
    uint64_t cell = store_->At(block, position % store_->block_tokens);
    if (fault == Fault::kStaleToken && position == end - 1 &&
        step.token_ids.size() == 1) {
      cell = FakeCell(salt_, position, step.token_ids[0] + 1);
    }
    digest = FakeDigest(digest, cell);
  }
  return digest;
}

SampledToken FakeModel::Draw(uint64_t digest, const SamplingState& draw) const {
  const SamplingState fresh(&draw.params(), {}, 0);
  const SamplingState& sampling =
      fault == Fault::kStateForgotten ? fresh : draw;
  SampledToken token;
  token.token_id = FakeNext(salt_, digest, sampling, vocab_size_);
  if (sampling.params().num_logprobs >= 0) {
    token.logprob = -static_cast<float>(token.token_id);
    token.top_logprobs.resize(sampling.params().num_logprobs,
                              {token.token_id, token.logprob});
  }
  return token;
}

void FakeModel::Check(const StepBatch& batch) {
  int64_t rows = 0;
  int64_t draws = 0;
  for (const SequenceStep& step : batch.sequences) {
    const auto count = static_cast<int64_t>(step.token_ids.size());
    const int64_t end = step.start_position + count;
    rows += count;
    draws += std::ssize(step.draws);
    if (count == 0) Violate("a sequence without rows");
    if (end > limits_.max_sequence_tokens) Violate("too long a sequence");
    if (static_cast<int64_t>(step.block_table.size()) !=
        CeilDiv(end, store_->block_tokens)) {
      Violate("a table that does not cover the positions exactly");
    }
    for (int32_t block : step.block_table) {
      if (block < 0 || block >= store_->num_blocks) {
        Violate("a block outside the store");
      }
    }
    for (const SamplingState* draw : step.draws) {
      if (draw == nullptr) Violate("a draw without a state");
    }
  }
  CheckWrites(batch);
  if (batch.sequences.empty()) Violate("an empty step");
  if (rows > limits_.max_rows) Violate("too many rows");
  if (static_cast<int64_t>(batch.sequences.size()) > limits_.max_sequences) {
    Violate("too many sequences");
  }
  if (draws > limits_.max_sequences) Violate("too many draws");
}

void FakeModel::CheckWrites(const StepBatch& batch) {
  std::map<int32_t, int> tables_of;
  for (const SequenceStep& step : batch.sequences) {
    for (int32_t block :
         std::set<int32_t>(step.block_table.begin(), step.block_table.end())) {
      ++tables_of[block];
    }
  }
  for (const SequenceStep& step : batch.sequences) {
    const auto first =
        static_cast<size_t>(step.start_position / store_->block_tokens);
    std::set<int32_t> own;
    for (size_t i = 0; i < step.block_table.size(); ++i) {
      const int32_t block = step.block_table[i];
      if (!own.insert(block).second) Violate("a block twice in a table");
      if (i >= first && tables_of[block] > 1) {
        Violate("a block that one sequence writes in another's table");
      }
    }
  }
}

void FakeModel::Violate(const std::string& what) {
  MutexLock lock(&mu_);
  if (violation_.empty()) violation_ = what;
}

std::string FakeModel::violation() const {
  MutexLock lock(&mu_);
  return violation_;
}

void Gate::Pass() {
  MutexLock lock(&mu_);
  while (is_closed_) {
    is_at_gate_ = true;
    changed_.NotifyAll();
    changed_.Wait(&mu_);
  }
  is_at_gate_ = false;
}

void Gate::Close() {
  MutexLock lock(&mu_);
  is_closed_ = true;
}

void Gate::Open() {
  MutexLock lock(&mu_);
  is_closed_ = false;
  changed_.NotifyAll();
}

void Gate::AwaitArrival() {
  MutexLock lock(&mu_);
  for (int seconds = 0; !is_at_gate_; ++seconds) {
    OVERFILL_CHECK(seconds < 60) << "nobody comes to the gate";
    changed_.WaitFor(&mu_, std::chrono::seconds(1));
  }
}

absl::StatusOr<KvMoveResult> FakeMover::Move(std::span<const BlockCopy> blocks,
                                             int32_t first_position) {
  gate_.Pass();
  if (before_move) before_move(blocks);
  ++num_moves;
  if (num_failures_to_come > 0) {
    --num_failures_to_come;
    return absl::DataLossError("the planted failure of dev7 at 0x1234");
  }
  KvMoveResult result;
  if (copies_bytes) result.sent_digest = SourceDigest(blocks, first_position);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const BlockCopy& copy = blocks[i];
    if (fault == Fault::kCopyDropsPartial &&
        copy.num_tokens < source_->block_tokens) {
      continue;
    }
    size_t to = i;
    if (fault == Fault::kCopyShifted) to = (i + 1) % blocks.size();
    for (int32_t slot = 0; slot < copy.num_tokens; ++slot) {
      destination_->At(blocks[to].destination, slot) =
          source_->At(copy.source, slot);
    }
  }
  if (copies_bytes) {
    result.received_digest = DestinationDigest(blocks, first_position);
  }
  return result;
}

uint64_t FakeMover::SourceDigest(std::span<const BlockCopy> blocks,
                                 int32_t first_position) const {
  uint64_t digest = first_position;
  for (const BlockCopy& copy : blocks) {
    for (int32_t slot = 0; slot < copy.num_tokens; ++slot) {
      digest = FakeDigest(digest, source_->At(copy.source, slot));
    }
  }
  return digest;
}

uint64_t FakeMover::DestinationDigest(std::span<const BlockCopy> blocks,
                                      int32_t first_position) const {
  std::vector<BlockCopy> back(blocks.begin(), blocks.end());
  for (BlockCopy& copy : back) std::swap(copy.source, copy.destination);
  return FakeMover(destination_, source_).SourceDigest(back, first_position);
}

std::vector<int32_t> FakeAnswer(const Request& request, uint64_t prompt_model,
                                uint64_t answer_model, int32_t vocab_size,
                                uint32_t sample_index) {
  uint64_t digest = 0;
  int32_t position = 0;
  for (int32_t token : request.prompt_ids) {
    digest = FakeDigest(digest, FakeCell(prompt_model, position++, token));
  }
  SamplingState sampling(&request.sampling, request.prompt_ids, sample_index);
  const StopRules& rules = request.stop_rules;
  std::vector<int32_t> answer;
  uint64_t model = prompt_model;
  while (true) {
    const int32_t token = FakeNext(model, digest, sampling, vocab_size);
    answer.push_back(token);
    sampling.Accept(token);
    if (Contains(rules.eos_ids, token) ||
        Contains(rules.stop_token_ids, token) ||
        static_cast<int32_t>(answer.size()) == rules.max_tokens) {
      return answer;
    }
    model = answer_model;
    digest = FakeDigest(digest, FakeCell(model, position++, token));
  }
}

}  // namespace overfill
