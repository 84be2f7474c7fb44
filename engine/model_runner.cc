#include "engine/model_runner.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/checked_math.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

constexpr int64_t kArrayAlignment = 64;
// Room for penalties and biases before the first growth.
constexpr int64_t kAdjustmentRoomBytes = 64 << 10;

absl::Status Invalid(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("step: ", what));
}

// Appends an array at an aligned offset, and returns the offset.
template <typename T>
int64_t Append(std::vector<std::byte>& packed, const std::vector<T>& values) {
  const int64_t offset =
      RoundUp(static_cast<int64_t>(packed.size()), kArrayAlignment);
  const size_t bytes = values.size() * sizeof(T);
  packed.resize(static_cast<size_t>(offset) + bytes);
  if (bytes > 0) std::memcpy(packed.data() + offset, values.data(), bytes);
  return offset;
}

absl::Status CheckFit(const ModelConfig& config, const KvStore& store,
                      const ModelRunnerOptions& options) {
  const KvLayout& layout = store.layout();
  if (layout.num_kv_heads != config.num_kv_heads ||
      layout.head_dim != config.head_dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("the KV store has ", layout.num_kv_heads,
                     " KV heads of head_dim ", layout.head_dim, ", the model ",
                     config.num_kv_heads, " of ", config.head_dim));
  }
  if (options.kv_layers.size() != static_cast<size_t>(config.num_layers)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the KV map names ", options.kv_layers.size(),
                     " layers, the model has ", config.num_layers));
  }
  std::vector<int32_t> sorted = options.kv_layers;
  std::sort(sorted.begin(), sorted.end());
  if (sorted.front() < 0 || sorted.back() >= layout.num_layers ||
      std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the KV map's layers are not distinct layers of the ",
                     layout.num_layers, " in the KV store"));
  }
  const StepLimits& limits = options.limits;
  if (limits.max_rows < 1 || limits.max_sequences < 1 ||
      limits.max_sequence_tokens < 1) {
    return absl::InvalidArgumentError("step limits must be at least 1");
  }
  if (limits.max_sequence_tokens > config.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "sequences of ", limits.max_sequence_tokens,
        " tokens exceed the model's ", config.max_positions, " positions"));
  }
  return absl::OkStatus();
}

absl::Status OutcomeStatus(const SampleResult& sampled, int32_t vocab_size) {
  switch (sampled.outcome) {
    case SampleOutcome::kNonFinite:
      return absl::InternalError("the model's logits are not finite");
    case SampleOutcome::kNoCandidate:
      return absl::InternalError("every token is banned at this position");
    case SampleOutcome::kOk:
      break;
  }
  if (sampled.token_id < 0 || sampled.token_id >= vocab_size) {
    return absl::InternalError("the sampler left the vocabulary");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(
    Device& device, const ModelWeights& weights, const KvStore& store,
    ModelRunnerOptions options) {
  const ModelConfig& config = weights.config;
  if (options.kv_layers.empty()) {
    options.kv_layers.resize(config.num_layers);
    std::iota(options.kv_layers.begin(), options.kv_layers.end(), 0);
  }
  RETURN_IF_ERROR(CheckFit(config, store, options));

  std::unique_ptr<ModelRunner> runner(
      new ModelRunner(device, weights, store, std::move(options)));
  const StepLimits& limits = runner->options_.limits;
  ASSIGN_OR_RETURN(
      runner->transformer_,
      Transformer::Create(device, weights, limits.max_rows,
                          limits.max_sequences, runner->options_.kv_layers));
  const int64_t max_blocks =
      CeilDiv(limits.max_sequence_tokens, store.layout().block_tokens);
  const int64_t input_bytes =
      int64_t{limits.max_rows} * 3 * sizeof(int32_t) +
      int64_t{limits.max_sequences} *
          ((max_blocks + 2) * sizeof(int32_t) + sizeof(SampleParams)) +
      8 * kArrayAlignment + kAdjustmentRoomBytes;
  ASSIGN_OR_RETURN(runner->inputs_, device.Allocate(input_bytes));
  ASSIGN_OR_RETURN(
      runner->results_,
      device.Allocate(int64_t{limits.max_sequences} * sizeof(SampleResult)));
  if (runner->options_.logits_hook) {
    ASSIGN_OR_RETURN(runner->raw_logits_,
                     device.Allocate(int64_t{limits.max_sequences} *
                                     config.vocab_size * sizeof(float)));
  }
  return runner;
}

ModelRunner::ModelRunner(Device& device, const ModelWeights& weights,
                         const KvStore& store, ModelRunnerOptions options)
    : device_(device),
      weights_(weights),
      store_(store),
      options_(std::move(options)),
      stream_(device.NewStream(options_.priority)) {}

absl::StatusOr<StepResult> ModelRunner::Run(const StepBatch& batch) {
  RETURN_IF_ERROR(Check(batch));
  StepResult result;
  if (batch.sequences.empty()) return result;

  BatchView view;
  SampleBatch samples;
  Stage(batch, view, samples, result);
  {
    stream_->StopWhen(batch.is_abandoned);
    StreamScope scope(*stream_);
    RETURN_IF_ERROR(Send(view, samples));
    auto* sampled = static_cast<SampleResult*>(results_->data());
    auto* logits = raw_logits_ == nullptr
                       ? nullptr
                       : static_cast<float*>(raw_logits_->data());
    transformer_->Forward(*stream_, view, samples, store_.view(), logits,
                          sampled);
    stream_->CopyToHost(staging_.results.data(), sampled,
                        staging_.results.size() * sizeof(SampleResult));
    if (logits != nullptr) {
      stream_->CopyToHost(staging_.raw_logits.data(), logits,
                          staging_.raw_logits.size() * sizeof(float));
    }
  }
  RETURN_IF_ERROR(stream_->Synchronize());
  Collect(result);
  return result;
}

absl::Status ModelRunner::Check(const StepBatch& batch) const {
  const StepLimits& limits = options_.limits;
  if (batch.sequences.size() > static_cast<size_t>(limits.max_sequences)) {
    return Invalid(absl::StrCat(batch.sequences.size(), " sequences, over ",
                                limits.max_sequences));
  }
  size_t num_rows = 0;
  size_t num_draws = 0;
  for (const SequenceStep& sequence : batch.sequences) {
    num_rows += sequence.token_ids.size();
    num_draws += sequence.draws.size();
    RETURN_IF_ERROR(CheckSequence(sequence));
  }
  if (num_rows > static_cast<size_t>(limits.max_rows)) {
    return Invalid(absl::StrCat(num_rows, " rows, over ", limits.max_rows));
  }
  if (num_draws > static_cast<size_t>(limits.max_sequences)) {
    return Invalid(
        absl::StrCat(num_draws, " draws, over ", limits.max_sequences));
  }
  return absl::OkStatus();
}

absl::Status ModelRunner::CheckSequence(const SequenceStep& sequence) const {
  const int64_t end = int64_t{sequence.start_position} +
                      static_cast<int64_t>(sequence.token_ids.size());
  if (sequence.token_ids.empty() || sequence.start_position < 0) {
    return Invalid("a sequence without rows, or before position 0");
  }
  if (end > options_.limits.max_sequence_tokens) {
    return Invalid(absl::StrCat("a sequence of ", end, " tokens, over ",
                                options_.limits.max_sequence_tokens));
  }
  const int64_t num_blocks = CeilDiv(end, store_.layout().block_tokens);
  if (static_cast<int64_t>(sequence.block_table.size()) < num_blocks) {
    return Invalid(absl::StrCat(sequence.block_table.size(), " blocks for ",
                                end, " tokens"));
  }
  for (int32_t block : sequence.block_table) {
    if (block < 0 || block >= store_.num_blocks()) {
      return Invalid(absl::StrCat("block ", block, " of a store of ",
                                  store_.num_blocks()));
    }
  }
  for (int32_t id : sequence.token_ids) {
    if (id < 0 || id >= weights_.config.vocab_size) {
      return Invalid(absl::StrCat("token ", id, " outside the vocabulary of ",
                                  weights_.config.vocab_size));
    }
  }
  for (const SamplingState* draw : sequence.draws) {
    if (draw == nullptr) return Invalid("a draw without a sampling state");
  }
  return absl::OkStatus();
}

void ModelRunner::Stage(const StepBatch& batch, BatchView& view,
                        SampleBatch& samples, StepResult& result) {
  staging_.token_ids.clear();
  staging_.positions.clear();
  staging_.row_sequence.clear();
  staging_.row_begin.assign(1, 0);
  staging_.sample_rows.clear();
  staging_.sample_sequence.clear();
  staging_.sample_token.clear();
  staging_.params.clear();
  staging_.adjustments.clear();

  const int32_t block_tokens = store_.layout().block_tokens;
  size_t num_draws = 0;
  for (const SequenceStep& sequence : batch.sequences) {
    num_draws += sequence.draws.size();
    const auto num_rows = static_cast<int32_t>(sequence.token_ids.size());
    const int32_t end = sequence.start_position + num_rows;
    view.max_sequence_rows = std::max(view.max_sequence_rows, num_rows);
    view.max_kv_tokens = std::max(view.max_kv_tokens, end);
  }
  result.tokens.reserve(num_draws);
  view.num_sequences = static_cast<int32_t>(batch.sequences.size());
  view.max_blocks =
      static_cast<int32_t>(CeilDiv(view.max_kv_tokens, block_tokens));
  staging_.block_tables.assign(
      static_cast<size_t>(view.num_sequences) * view.max_blocks, 0);

  for (int32_t s = 0; s < view.num_sequences; ++s) {
    const SequenceStep& sequence = batch.sequences[s];
    const auto num_rows = static_cast<int32_t>(sequence.token_ids.size());
    staging_.token_ids.insert(staging_.token_ids.end(),
                              sequence.token_ids.begin(),
                              sequence.token_ids.end());
    staging_.row_sequence.insert(staging_.row_sequence.end(), num_rows, s);
    for (int32_t i = 0; i < num_rows; ++i) {
      staging_.positions.push_back(sequence.start_position + i);
    }
    const int32_t row_end = staging_.row_begin.back() + num_rows;
    staging_.row_begin.push_back(row_end);
    // The table may cover more than this step reads.
    const size_t num_blocks =
        std::min<size_t>(sequence.block_table.size(), view.max_blocks);
    std::copy_n(sequence.block_table.begin(), num_blocks,
                staging_.block_tables.begin() +
                    static_cast<int64_t>(s) * view.max_blocks);
    for (const SamplingState* draw : sequence.draws) {
      StageDraw(*draw, s, row_end - 1, result);
    }
  }
  view.num_rows = staging_.row_begin.back();
  samples.num_rows = static_cast<int32_t>(staging_.sample_rows.size());
  staging_.results.resize(staging_.sample_rows.size());
  if (raw_logits_ != nullptr) {
    staging_.raw_logits.resize(staging_.sample_rows.size() *
                               weights_.config.vocab_size);
  }
}

void ModelRunner::StageDraw(const SamplingState& draw, int32_t sequence,
                            int32_t row, StepResult& result) {
  std::vector<TokenAdjustment>& adjustments = staging_.adjustments;
  const auto index = static_cast<int32_t>(result.tokens.size());
  SampledToken& token = result.tokens.emplace_back();
  const SampleParams params = draw.Fill(adjustments);
  // An id outside the vocabulary would write into a neighbour's logits.
  for (int32_t i = params.adjustments_begin; i < params.adjustments_end; ++i) {
    const int32_t id = adjustments[i].token_id;
    if (id >= 0 && id < weights_.config.vocab_size) continue;
    token.status = absl::InternalError(
        absl::StrCat("sampling names token ", id, " outside the vocabulary"));
  }
  if (params.num_logprobs > kMaxTopLogprobs) {
    token.status = absl::InternalError("sampling asks for too many logprobs");
  }
  if (!token.status.ok()) {
    adjustments.resize(params.adjustments_begin);
    return;
  }
  staging_.sample_rows.push_back(row);
  staging_.sample_sequence.push_back(sequence);
  staging_.sample_token.push_back(index);
  staging_.params.push_back(params);
}

absl::Status ModelRunner::Send(BatchView& view, SampleBatch& samples) {
  std::vector<std::byte>& packed = staging_.packed;
  packed.clear();
  const int64_t token_ids = Append(packed, staging_.token_ids);
  const int64_t positions = Append(packed, staging_.positions);
  const int64_t row_sequence = Append(packed, staging_.row_sequence);
  const int64_t row_begin = Append(packed, staging_.row_begin);
  const int64_t sample_rows = Append(packed, staging_.sample_rows);
  const int64_t params = Append(packed, staging_.params);
  const int64_t block_tables = Append(packed, staging_.block_tables);
  const int64_t adjustments = Append(packed, staging_.adjustments);

  const auto packed_bytes = static_cast<int64_t>(packed.size());
  if (packed_bytes > inputs_->bytes()) {
    // Long lists of biases or penalties; the stream is idle between steps.
    ASSIGN_OR_RETURN(inputs_, device_.Allocate(2 * packed_bytes));
  }
  stream_->CopyToDevice(inputs_->data(), packed.data(), packed_bytes);

  const auto* base = static_cast<const std::byte*>(inputs_->data());
  const auto ints = [base](int64_t offset) {
    return reinterpret_cast<const int32_t*>(base + offset);
  };
  view.token_ids = ints(token_ids);
  view.positions = ints(positions);
  view.row_sequence = ints(row_sequence);
  view.row_begin = ints(row_begin);
  view.block_tables = ints(block_tables);
  samples.rows = ints(sample_rows);
  samples.params = reinterpret_cast<const SampleParams*>(base + params);
  samples.adjustments =
      reinterpret_cast<const TokenAdjustment*>(base + adjustments);
  return absl::OkStatus();
}

void ModelRunner::Collect(StepResult& result) const {
  const int32_t vocab_size = weights_.config.vocab_size;
  for (size_t r = 0; r < staging_.results.size(); ++r) {
    const SampleResult& sampled = staging_.results[r];
    SampledToken& token = result.tokens[staging_.sample_token[r]];
    token.status = OutcomeStatus(sampled, vocab_size);
    if (options_.logits_hook) {
      options_.logits_hook(staging_.sample_sequence[r],
                           std::span(staging_.raw_logits)
                               .subspan(r * static_cast<size_t>(vocab_size),
                                        static_cast<size_t>(vocab_size)));
    }
    if (!token.status.ok()) continue;
    token.token_id = sampled.token_id;
    if (staging_.params[r].num_logprobs < 0) continue;
    token.logprob = sampled.logprob;
    const int32_t num_top = std::clamp(sampled.num_top, 0, kMaxTopLogprobs);
    for (int32_t i = 0; i < num_top; ++i) {
      token.top_logprobs.emplace_back(sampled.top_ids[i],
                                      sampled.top_logprobs[i]);
    }
  }
}

}  // namespace overfill
