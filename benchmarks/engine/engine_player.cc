#include "benchmarks/engine/engine_player.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/checked_math.h"
#include "base/status_macros.h"
#include "benchmarks/engine/machine_rates.h"
#include "engine/model_config.h"

namespace overfill {
namespace {

constexpr int32_t kBlockTokens = 16;
constexpr uint64_t kSeed = 1;
constexpr int64_t kMaxBytes = int64_t{1} << 36;
constexpr int64_t kMaxProductSide = 1 << 17;

// A whole number of the command within [1, max].
absl::StatusOr<int64_t> Number(const Json& command, const char* key,
                               int64_t max) {
  ASSIGN_OR_RETURN(const auto number, JsonInt(command, key, 1, max, "command"));
  if (number) return *number;
  return absl::InvalidArgumentError(absl::StrCat("command: ", key, " needed"));
}

double Since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
      .count();
}

// Token ids that repeat nothing that a cache could like.
std::vector<int32_t> Tokens(int64_t count, int32_t vocab_size) {
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>((i + 1) * 2654435761u % vocab_size);
  }
  return ids;
}

const SamplingParams& GreedyParams() {
  static const SamplingParams params = [] {
    SamplingParams greedy;
    greedy.temperature = 0;
    return greedy;
  }();
  return params;
}

}  // namespace

struct EnginePlayer::Model {
  ModelWeights weights;
  std::unique_ptr<ModelRunner> runner;

  // What a step reads of the weights; of a tied table once.
  int64_t bytes() const {
    int64_t sum = 0;
    for (const auto& linear : weights.linears) {
      if (linear.get() == weights.embedding &&
          weights.head.lm_head != weights.embedding) {
        continue;
      }
      sum += linear->bytes();
    }
    return sum;
  }
};

EnginePlayer::EnginePlayer(const EnginePlayerOptions& options)
    : options_(options) {}
EnginePlayer::~EnginePlayer() = default;

absl::StatusOr<std::unique_ptr<EnginePlayer>> EnginePlayer::Create(
    const EnginePlayerOptions& options) {
  if (options.models.empty()) {
    return absl::InvalidArgumentError("--model: needed");
  }
  std::unique_ptr<EnginePlayer> player(new EnginePlayer(options));
  ASSIGN_OR_RETURN(player->device_, MakeDevice("cpu", options.device));
  RETURN_IF_ERROR(player->LoadModels());
  RETURN_IF_ERROR(player->MakeStore());
  return player;
}

absl::Status EnginePlayer::LoadModels() {
  for (const PlayedModel& played : options_.models) {
    auto model = std::make_unique<Model>();
    ASSIGN_OR_RETURN(const ModelConfig config,
                     LoadModelConfig(played.directory));
    ASSIGN_OR_RETURN(
        model->weights,
        MakeDummyWeights(*device_, config, played.weights, {}, kSeed));
    models_[played.name] = std::move(model);
  }
  return absl::OkStatus();
}

absl::Status EnginePlayer::MakeStore() {
  const int64_t blocks_each = CeilDiv(options_.max_tokens, kBlockTokens);
  const int64_t num_blocks = blocks_each * options_.max_batch;
  const KvLayout layout = KvLayoutOf(models_.begin()->second->weights.config,
                                     DType::kBF16, kBlockTokens);
  ASSIGN_OR_RETURN(const int64_t block_bytes, KvBlockBytes(layout));
  ASSIGN_OR_RETURN(store_,
                   KvStore::Create(*device_, layout, num_blocks * block_bytes));
  // Some KV, so that attention over what no prompt has filled is of numbers.
  std::fill_n(static_cast<uint16_t*>(store_->view().data),
              store_->num_blocks() * store_->view().block_elements(),
              BFloat16FromFloat(0.01f));
  blocks_.resize(num_blocks);
  std::iota(blocks_.begin(), blocks_.end(), 0);
  for (auto& [name, model] : models_) {
    ModelRunnerOptions runner;
    runner.limits = {
        .max_rows = std::max(options_.chunk_tokens, options_.max_batch),
        .max_sequences = options_.max_batch,
        .max_sequence_tokens = options_.max_tokens};
    auto made = ModelRunner::Create(*device_, model->weights, *store_, runner);
    if (!made.ok()) {
      return absl::Status(made.status().code(),
                          absl::StrCat(name, ": ", made.status().message()));
    }
    model->runner = *std::move(made);
  }
  return absl::OkStatus();
}

absl::StatusOr<EnginePlayer::Model*> EnginePlayer::Find(const Json& command,
                                                        const char* key) {
  ASSIGN_OR_RETURN(const auto name, JsonString(command, key, "command"));
  const auto found = models_.find(name.value_or(""));
  if (found == models_.end()) {
    return absl::NotFoundError(
        absl::StrCat(key, ": no model \"", name.value_or(""), "\""));
  }
  return found->second.get();
}

absl::StatusOr<Json> EnginePlayer::Play(const Json& command) {
  ASSIGN_OR_RETURN(const auto op, JsonString(command, "op", "command"));
  if (op == "prefill") return Prefill(command);
  if (op == "decode") return Decode(command);
  if (op == "request") return Request(command);
  if (op == "read") return Read(command);
  if (op == "product") return Product(command);
  if (op == "info") return Info();
  return absl::InvalidArgumentError("no such op");
}

std::span<const int32_t> EnginePlayer::BlocksOf(int32_t sequence,
                                                int32_t num_tokens) const {
  const int64_t each = CeilDiv(options_.max_tokens, kBlockTokens);
  return std::span(blocks_).subspan(sequence * each,
                                    CeilDiv(num_tokens, kBlockTokens));
}

absl::StatusOr<int32_t> EnginePlayer::Feed(Model& model,
                                           std::span<const int32_t> tokens) {
  const SamplingState state(&GreedyParams(), {}, 0);
  const SamplingState* const draw = &state;
  const auto total = static_cast<int32_t>(tokens.size());
  for (int32_t begin = 0;; begin += options_.chunk_tokens) {
    const int32_t end = std::min(begin + options_.chunk_tokens, total);
    SequenceStep step{.token_ids = tokens.subspan(begin, end - begin),
                      .start_position = begin,
                      .block_table = BlocksOf(0, end)};
    if (end == total) step.draws = {&draw, 1};
    ASSIGN_OR_RETURN(const StepResult result,
                     model.runner->Run({.sequences = {step}}));
    if (end < total) continue;
    RETURN_IF_ERROR(result.tokens[0].status);
    return result.tokens[0].token_id;
  }
}

absl::Status EnginePlayer::Step(Model& model, int32_t position,
                                std::vector<int32_t>& tokens) {
  const SamplingState state(&GreedyParams(), {}, 0);
  const SamplingState* const draw = &state;
  StepBatch batch;
  for (size_t i = 0; i < tokens.size(); ++i) {
    batch.sequences.push_back(
        {.token_ids = {&tokens[i], 1},
         .start_position = position,
         .block_table = BlocksOf(static_cast<int32_t>(i), position + 1),
         .draws = {&draw, 1}});
  }
  ASSIGN_OR_RETURN(const StepResult result, model.runner->Run(batch));
  for (size_t i = 0; i < tokens.size(); ++i) {
    RETURN_IF_ERROR(result.tokens[i].status);
    tokens[i] = result.tokens[i].token_id;
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> EnginePlayer::Prefill(const Json& command) {
  ASSIGN_OR_RETURN(Model * model, Find(command, "model"));
  ASSIGN_OR_RETURN(const int64_t tokens,
                   Number(command, "tokens", options_.max_tokens));
  const std::vector<int32_t> prompt =
      Tokens(tokens, model->weights.config.vocab_size);
  const auto begin = Clock::now();
  RETURN_IF_ERROR(Feed(*model, prompt).status());
  return Json{{"seconds", Since(begin)}};
}

absl::StatusOr<Json> EnginePlayer::Decode(const Json& command) {
  ASSIGN_OR_RETURN(Model * model, Find(command, "model"));
  ASSIGN_OR_RETURN(const int64_t batch,
                   Number(command, "batch", options_.max_batch));
  ASSIGN_OR_RETURN(const int64_t context,
                   Number(command, "context", options_.max_tokens - 2));
  ASSIGN_OR_RETURN(const int64_t steps,
                   Number(command, "steps", options_.max_tokens - context - 1));
  std::vector<int32_t> tokens = Tokens(batch, model->weights.config.vocab_size);
  // Not timed: the weights' pages, and the team awake.
  RETURN_IF_ERROR(Step(*model, static_cast<int32_t>(context), tokens));
  Json seconds = Json::array();
  for (int64_t i = 1; i <= steps; ++i) {
    const auto begin = Clock::now();
    RETURN_IF_ERROR(Step(*model, static_cast<int32_t>(context + i), tokens));
    seconds.push_back(Since(begin));
  }
  return Json{{"seconds", seconds}};
}

absl::StatusOr<Json> EnginePlayer::Request(const Json& command) {
  ASSIGN_OR_RETURN(Model * model, Find(command, "model"));
  ASSIGN_OR_RETURN(Model * decode_model, Find(command, "decode_model"));
  ASSIGN_OR_RETURN(const int64_t prompt,
                   Number(command, "prompt", options_.max_tokens - 1));
  ASSIGN_OR_RETURN(const int64_t answer,
                   Number(command, "answer", options_.max_tokens - prompt));
  const std::vector<int32_t> ids =
      Tokens(prompt, model->weights.config.vocab_size);
  const auto begin = Clock::now();
  std::vector<int32_t> last(1);
  ASSIGN_OR_RETURN(last[0], Feed(*model, ids));
  const double first_token_seconds = Since(begin);
  for (int64_t i = 1; i < answer; ++i) {
    const auto position = static_cast<int32_t>(prompt + i - 1);
    RETURN_IF_ERROR(Step(*decode_model, position, last));
  }
  return Json{{"seconds", Since(begin)},
              {"first_token_seconds", first_token_seconds}};
}

absl::StatusOr<Json> EnginePlayer::Read(const Json& command) {
  ASSIGN_OR_RETURN(const int64_t bytes, Number(command, "bytes", kMaxBytes));
  Json rates = Json::object();
  for (const ReadRate& rate :
       MeasureReadRates(device_->info().num_threads, bytes)) {
    rates[rate.kernel] = rate.bytes_per_second;
  }
  return Json{{"rates", rates}};
}

absl::StatusOr<Json> EnginePlayer::Product(const Json& command) {
  ASSIGN_OR_RETURN(const int64_t rows,
                   Number(command, "rows", kMaxProductSide));
  ASSIGN_OR_RETURN(const int64_t in, Number(command, "in", kMaxProductSide));
  ASSIGN_OR_RETURN(const int64_t out, Number(command, "out", kMaxProductSide));
  auto& weight = products_[{in, out}];
  if (weight == nullptr) {
    const std::vector<float> values(in * out, 0.01f);
    const HostTensor tensor{reinterpret_cast<const std::byte*>(values.data()),
                            DType::kF32,
                            {out, in}};
    ASSIGN_OR_RETURN(weight,
                     device_->ops().MakeLinear({&tensor, 1}, {}, DType::kBF16));
  }
  ASSIGN_OR_RETURN(auto x, device_->Allocate(rows * in * 4));
  ASSIGN_OR_RETURN(auto y, device_->Allocate(rows * out * 4));
  auto stream = device_->NewStream(StreamPriority::kHigh);
  double seconds = 0;
  for (int pass = 0; pass < 2; ++pass) {  // the second one is warm
    const auto begin = Clock::now();
    StreamScope scope(*stream);
    device_->ops().Linear(*stream, {x->data(), DType::kF32, rows, in, in},
                          *weight, {y->data(), DType::kF32, rows, out, out},
                          /*accumulate=*/false);
    seconds = Since(begin);
  }
  RETURN_IF_ERROR(stream->Synchronize());
  return Json{{"seconds", seconds}};
}

Json EnginePlayer::Info() const {
  Json bytes = Json::object();
  for (const auto& [name, model] : models_) bytes[name] = model->bytes();
  return Json{{"device", device_->info().description},
              {"threads", device_->info().num_threads},
              {"kv_token_bytes", store_->token_bytes()},
              {"weight_bytes", bytes}};
}

}  // namespace overfill
