#include "tests/golden/golden_pair.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

constexpr StepLimits kLimits = {
    .max_rows = 256, .max_sequences = 16, .max_sequence_tokens = 256};
// Of each store.
constexpr int64_t kStoreTokens = 2048;

absl::StatusOr<DType> ReadDType(const Json& job, const char* key) {
  const std::string name = job.at(key).get<std::string>();
  if (name == "f32") return DType::kF32;
  if (name == "bf16") return DType::kBF16;
  return absl::InvalidArgumentError(absl::StrCat(key, ": ", name));
}

absl::StatusOr<std::unique_ptr<KvStore>> MakeStore(Device& device,
                                                   const ModelConfig& config,
                                                   DType dtype,
                                                   int32_t block_tokens) {
  const KvLayout layout = KvLayoutOf(config, dtype, block_tokens);
  ASSIGN_OR_RETURN(const int64_t block_bytes, KvBlockBytes(layout));
  return KvStore::Create(device, layout,
                         kStoreTokens / block_tokens * block_bytes);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GoldenPair>> GoldenPair::Load(Device& device,
                                                             const Json& job) {
  ASSIGN_OR_RETURN(const DType dtype, ReadDType(job, "weights"));
  ASSIGN_OR_RETURN(const DType kv_dtype, ReadDType(job, "kv"));
  const bool has_decode = job.contains("decode");
  const auto full_dir = job.at("full").get<std::string>();
  std::unique_ptr<GoldenPair> pair(new GoldenPair(device));
  ASSIGN_OR_RETURN(
      pair->pair_,
      Pair::Load(device, {.prefill_model_dir = full_dir,
                          .decode_model_dir = job.value("decode", full_dir),
                          .kv_map_file = job.value("kv_map", std::string()),
                          .load_format = LoadFormat::kSafetensors,
                          .prefill_weights = dtype,
                          .decode_weights = dtype}));
  RETURN_IF_ERROR(pair->MakeStores(job, kv_dtype));
  RETURN_IF_ERROR(pair->MakeRunner(pair->pair_->full().weights, *pair->store_,
                                   {}, pair->prefill_));
  if (has_decode) {
    RETURN_IF_ERROR(pair->MakeRunner(pair->pair_->pruned().weights,
                                     pair->decode_store(), pair->decode_layers_,
                                     pair->decode_));
  }
  return pair;
}

absl::Status GoldenPair::MakeStores(const Json& job, DType kv_dtype) {
  const auto block_tokens = job.at("block_tokens").get<int32_t>();
  ASSIGN_OR_RETURN(store_, MakeStore(device_, pair_->full().weights.config,
                                     kv_dtype, block_tokens));
  const KvMap& map = pair_->kv_map();
  kept_layers_ = map.source_layers;
  decode_layers_ = kept_layers_;
  if (!job.value("copy", false) && map.k_maps.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(decode_store_,
                   MakeStore(device_, pair_->pruned().weights.config, kv_dtype,
                             block_tokens));
  std::iota(decode_layers_.begin(), decode_layers_.end(), 0);
  KvMoveRules rules{.source_layers = kept_layers_};
  for (const auto& k_map : map.k_maps) rules.k_maps.push_back(k_map.get());
  for (const auto& v_map : map.v_maps) rules.v_maps.push_back(v_map.get());
  ASSIGN_OR_RETURN(mover_, BlockMover::Create(device_, *store_, *decode_store_,
                                              std::move(rules)));
  return absl::OkStatus();
}

absl::Status GoldenPair::MakeRunner(const ModelWeights& weights,
                                    const KvStore& store,
                                    std::vector<int32_t> kv_layers,
                                    Half& half) {
  half.logits.resize(kLimits.max_sequences);
  ModelRunnerOptions options;
  options.limits = limits();
  options.kv_layers = std::move(kv_layers);
  options.logits_hook = [&half](int32_t sequence, std::span<const float> row) {
    half.logits[sequence].assign(row.begin(), row.end());
  };
  ASSIGN_OR_RETURN(half.runner, ModelRunner::Create(device_, weights, store,
                                                    std::move(options)));
  return absl::OkStatus();
}

StepLimits GoldenPair::limits() const { return kLimits; }

DrivenPools GoldenPair::Pools(StepRunner* prefill, StepRunner* decode) const {
  const Half& decode_half = decode_.runner ? decode_ : prefill_;
  return {.prefill = {.runner = prefill,
                      .logits = &prefill_.logits,
                      .num_blocks = prefill_store().num_blocks()},
          .decode = {.runner = decode,
                     .logits = &decode_half.logits,
                     .num_blocks = decode_store().num_blocks()},
          .mover = mover_.get(),
          .block_tokens = store_->layout().block_tokens};
}

absl::Status GoldenPair::PoisonStores() {
  auto stream = device_.NewStream(StreamPriority::kLow);
  for (const KvStore* store : {store_.get(), decode_store_.get()}) {
    if (store == nullptr) continue;
    const int64_t bytes = store->num_blocks() * store->block_bytes();
    const std::vector<uint8_t> nan(bytes, 0xff);
    stream->CopyToDevice(store->view().data, nan.data(), bytes);
    RETURN_IF_ERROR(stream->Synchronize());
  }
  return absl::OkStatus();
}

}  // namespace overfill
