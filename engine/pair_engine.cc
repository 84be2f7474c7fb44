#include "engine/pair_engine.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/checked_math.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

constexpr int32_t kMaxBlockTokens = 1024;
constexpr int32_t kMaxChunkTokens = 1 << 20;
constexpr int32_t kMaxDecodeBatch = 1 << 14;

absl::Status CheckRange(absl::string_view name, int64_t value, int64_t min,
                        int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " must be between ", min,
                                                 " and ", max, ", is ", value));
}

absl::Status CheckOptions(const PairEngineOptions& options) {
  RETURN_IF_ERROR(CheckRange("kv_cache_bytes", options.kv_cache_bytes, 0,
                             std::numeric_limits<int64_t>::max()));
  RETURN_IF_ERROR(CheckRange("swap_bytes", options.swap_bytes, -1,
                             std::numeric_limits<int64_t>::max()));
  RETURN_IF_ERROR(
      CheckRange("block_tokens", options.block_tokens, 1, kMaxBlockTokens));
  RETURN_IF_ERROR(CheckRange("max_sequence_tokens", options.max_sequence_tokens,
                             0, std::numeric_limits<int32_t>::max()));
  RETURN_IF_ERROR(CheckRange("prefill_chunk_tokens",
                             options.prefill_chunk_tokens, 1, kMaxChunkTokens));
  return CheckRange("max_decode_batch", options.max_decode_batch, 1,
                    kMaxDecodeBatch);
}

absl::StatusOr<int32_t> ChooseSequenceTokens(const PairEngineOptions& options,
                                             const Pair& pair) {
  const int32_t limit = std::min(pair.full().weights.config.max_positions,
                                 pair.pruned().weights.config.max_positions);
  if (options.max_sequence_tokens == 0) return limit;
  if (options.max_sequence_tokens <= limit) return options.max_sequence_tokens;
  return absl::InvalidArgumentError(absl::StrCat(
      "max_sequence_tokens ", options.max_sequence_tokens,
      " exceeds the max_position_embeddings of the pair, ", limit));
}

// What the weights of a pair take, each counted once.
int64_t WeightBytes(const Pair& pair) {
  int64_t bytes = 0;
  const PairModel* last = nullptr;
  for (const PairModel* model : {&pair.full(), &pair.pruned()}) {
    if (model == std::exchange(last, model)) continue;
    for (const auto& linear : model->weights.linears) bytes += linear->bytes();
    for (const auto& vector : model->weights.vectors) bytes += vector->bytes();
  }
  return bytes;
}

// Bytes for the KV of a full batch of full sequences, but at most half of what
// the weights leave of the device's memory.
int64_t DefaultCacheBytes(const Device& device, const Pair& pair,
                          int64_t block_bytes, int64_t blocks_per_sequence,
                          int32_t max_sequences) {
  const std::array<int64_t, 3> factors = {block_bytes, blocks_per_sequence,
                                          max_sequences};
  const int64_t wanted = static_cast<int64_t>(std::min<uint64_t>(
      CheckedProduct(factors).value_or(std::numeric_limits<int64_t>::max()),
      std::numeric_limits<int64_t>::max()));
  const int64_t left =
      std::max<int64_t>(0, device.info().memory_bytes - WeightBytes(pair));
  return std::min(wanted, left / 2);
}

// What swap_bytes -1 stands for.
int64_t DefaultSwapBytes(const Device& device, const Pair& pair,
                         int64_t store_bytes) {
  const int64_t memory_bytes = device.info().memory_bytes;
  const int64_t left =
      std::max<int64_t>(0, memory_bytes - WeightBytes(pair) - store_bytes);
  return std::min({store_bytes, memory_bytes / 8, left / 2});
}

// Copies all layers of blocks, byte for byte.
absl::StatusOr<std::unique_ptr<BlockMover>> MakeCopier(Device& device,
                                                       const KvStore& from,
                                                       const KvStore& to) {
  KvMoveRules rules;
  rules.source_layers.resize(from.layout().num_layers);
  std::iota(rules.source_layers.begin(), rules.source_layers.end(), 0);
  return BlockMover::Create(device, from, to, std::move(rules));
}

}  // namespace

absl::StatusOr<std::unique_ptr<PairEngine>> PairEngine::Create(
    Device& device, const Pair& pair, const PairEngineOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  std::unique_ptr<PairEngine> engine(new PairEngine());
  RETURN_IF_ERROR(engine->MakeStores(device, pair, options));
  RETURN_IF_ERROR(engine->MakeForks(device));
  RETURN_IF_ERROR(engine->MakeRunners(device, pair, options));
  // Last, so that a lack of memory for it is told by its name.
  RETURN_IF_ERROR(engine->MakeSwapSpace(device, pair, options));
  return engine;
}

absl::Status PairEngine::MakeStores(Device& device, const Pair& pair,
                                    const PairEngineOptions& options) {
  const KvMap& map = pair.kv_map();
  const bool two_stores = map.kind == KvMapKind::kProjection;
  const auto layout = [&](const PairModel& model) {
    return KvLayoutOf(model.weights.config, KvDTypeOf(model.weights.dtype),
                      options.block_tokens);
  };
  ASSIGN_OR_RETURN(const int64_t prefill_bytes,
                   KvBlockBytes(layout(pair.full())));
  ASSIGN_OR_RETURN(const int64_t decode_bytes,
                   KvBlockBytes(layout(pair.pruned())));
  // One block of each store: both stores hold as many tokens.
  const int64_t block_bytes = prefill_bytes + (two_stores ? decode_bytes : 0);

  ASSIGN_OR_RETURN(int32_t max_tokens, ChooseSequenceTokens(options, pair));
  const int64_t needed = CeilDiv(max_tokens, options.block_tokens);
  const int64_t cache_bytes =
      options.kv_cache_bytes > 0
          ? options.kv_cache_bytes
          : DefaultCacheBytes(device, pair, block_bytes, needed,
                              options.max_decode_batch);
  const int64_t num_blocks = std::min<int64_t>(
      cache_bytes / block_bytes, std::numeric_limits<int32_t>::max());
  if (num_blocks < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kv_cache_bytes ", cache_bytes, " does not hold one block of ",
        options.block_tokens, " tokens, which takes ", block_bytes));
  }
  if (num_blocks < needed) {
    if (options.max_sequence_tokens > 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "max_sequence_tokens ", max_tokens, " needs ", needed,
          " KV blocks of ", block_bytes, " bytes, but kv_cache_bytes ",
          cache_bytes, " holds ", num_blocks));
    }
    max_tokens = static_cast<int32_t>(num_blocks * options.block_tokens);
    LogInfo(absl::StrCat("KV cache of ", cache_bytes,
                         " bytes: sequences are limited to ", max_tokens,
                         " tokens"));
  }
  max_sequence_tokens_ = max_tokens;
  ASSIGN_OR_RETURN(prefill_store_, KvStore::Create(device, layout(pair.full()),
                                                   num_blocks * prefill_bytes));
  if (!two_stores) return absl::OkStatus();
  ASSIGN_OR_RETURN(decode_store_, KvStore::Create(device, layout(pair.pruned()),
                                                  num_blocks * decode_bytes));
  KvMoveRules rules{.source_layers = map.source_layers};
  for (const auto& k_map : map.k_maps) rules.k_maps.push_back(k_map.get());
  for (const auto& v_map : map.v_maps) rules.v_maps.push_back(v_map.get());
  ASSIGN_OR_RETURN(mover_,
                   BlockMover::Create(device, *prefill_store_, *decode_store_,
                                      std::move(rules)));
  return absl::OkStatus();
}

absl::Status PairEngine::MakeForks(Device& device) {
  for (int i = 0; i < num_stores(); ++i) {
    ASSIGN_OR_RETURN(forks_[i], MakeCopier(device, store(i), store(i)));
  }
  return absl::OkStatus();
}

absl::Status PairEngine::MakeSwapSpace(Device& device, const Pair& pair,
                                       const PairEngineOptions& options) {
  // Both stores hold as many blocks, and so do their shares of the swap space.
  int64_t block_bytes = 0;
  for (int i = 0; i < num_stores(); ++i) block_bytes += store(i).block_bytes();
  const int64_t store_bytes = block_bytes * prefill_store_->num_blocks();
  const int64_t swap_bytes = options.swap_bytes >= 0
                                 ? options.swap_bytes
                                 : DefaultSwapBytes(device, pair, store_bytes);
  const int64_t num_blocks = std::min<int64_t>(
      swap_bytes / block_bytes, std::numeric_limits<int32_t>::max());
  if (num_blocks == 0) {
    if (options.swap_bytes <= 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("swap_bytes ", swap_bytes, " does not hold one block of ",
                     options.block_tokens, " tokens, which takes ", block_bytes,
                     "; 0 goes without swap space"));
  }
  const absl::Status status = MakeSwapStores(device, num_blocks);
  if (status.ok()) return status;
  const std::string message =
      absl::StrCat("swap_bytes ", swap_bytes, ": ", status.message());
  if (options.swap_bytes >= 0) return absl::Status(status.code(), message);
  // Nobody asked for it.
  LogWarning(absl::StrCat(message, "; going without swap space"));
  for (auto& swap : swaps_) swap.reset();
  return absl::OkStatus();
}

absl::Status PairEngine::MakeSwapStores(Device& device, int64_t num_blocks) {
  for (int i = 0; i < num_stores(); ++i) {
    ASSIGN_OR_RETURN(swaps_[i],
                     KvStore::Create(device, store(i).layout(),
                                     num_blocks * store(i).block_bytes()));
  }
  for (int i = 0; i < num_stores(); ++i) {
    ASSIGN_OR_RETURN(swap_outs_[i], MakeCopier(device, store(i), *swaps_[i]));
    ASSIGN_OR_RETURN(swap_ins_[i], MakeCopier(device, *swaps_[i], store(i)));
  }
  return absl::OkStatus();
}

int32_t PairEngine::swap_blocks(int number) const {
  return swaps_[number] ? swaps_[number]->num_blocks() : 0;
}

absl::Status PairEngine::MakeRunners(Device& device, const Pair& pair,
                                     const PairEngineOptions& options) {
  // A step holds one prompt chunk beside a row of every running stream.
  const StepLimits limits = {
      .max_rows = options.prefill_chunk_tokens + options.max_decode_batch,
      .max_sequences = options.max_decode_batch,
      .max_sequence_tokens = max_sequence_tokens_};
  ModelRunnerOptions prefill;
  prefill.limits = limits;
  prefill.priority = StreamPriority::kLow;
  ASSIGN_OR_RETURN(prefill_,
                   ModelRunner::Create(device, pair.full().weights,
                                       *prefill_store_, std::move(prefill)));
  ModelRunnerOptions decode;
  decode.limits = limits;
  decode.priority = StreamPriority::kHigh;
  // In a shared store the pruned model reads where the full one wrote.
  if (shares_store()) decode.kv_layers = pair.kv_map().source_layers;
  ASSIGN_OR_RETURN(decode_,
                   ModelRunner::Create(device, pair.pruned().weights,
                                       decode_store(), std::move(decode)));
  return absl::OkStatus();
}

}  // namespace overfill
