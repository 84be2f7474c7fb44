#include "tests/golden/golden_pair.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "tests/golden/plain_loader.h"

namespace overfill {
namespace {

constexpr StepLimits kLimits = {
    .max_rows = 256, .max_sequences = 16, .max_sequence_tokens = 256};
// Of each store.
constexpr int64_t kStoreTokens = 2048;
constexpr uint64_t kMaxMapBytes = 1 << 20;

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
  std::unique_ptr<GoldenPair> pair(new GoldenPair(device));
  RETURN_IF_ERROR(pair->LoadHalf(job.at("full"), dtype, pair->prefill_));
  if (job.contains("decode")) {
    RETURN_IF_ERROR(pair->LoadHalf(job.at("decode"), dtype, pair->decode_));
  }
  RETURN_IF_ERROR(pair->MakeStores(job, kv_dtype));
  RETURN_IF_ERROR(pair->MakeRunner(pair->prefill_, *pair->store_, {}));
  if (pair->decode_.weights) {
    RETURN_IF_ERROR(pair->MakeRunner(pair->decode_, pair->decode_store(),
                                     pair->decode_layers_));
  }
  return pair;
}

absl::Status GoldenPair::LoadHalf(const std::string& directory, DType dtype,
                                  Half& half) {
  ASSIGN_OR_RETURN(half.weights,
                   LoadPlainCheckpoint(device_, directory, dtype));
  return absl::OkStatus();
}

absl::Status GoldenPair::ReadKvMap(const std::string& path,
                                   KvMoveRules& rules) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxMapBytes));
  ASSIGN_OR_RETURN(const Json map, ParseJsonObject(text, path));
  kept_layers_ = map.at("layers").get<std::vector<int32_t>>();
  if (map.at("kind") != "projection") return absl::OkStatus();
  const std::string folder = path.substr(0, path.rfind('/') + 1);
  ASSIGN_OR_RETURN(
      const PlainTensors tensors,
      ReadPlainTensors(folder + map.at("file").get<std::string>()));
  for (size_t l = 0; l < kept_layers_.size(); ++l) {
    for (const auto& [half, maps] :
         {std::pair("k", &rules.k_maps), std::pair("v", &rules.v_maps)}) {
      const HostTensor& tensor =
          tensors.by_name.at(absl::StrCat("layers.", l, ".", half));
      ASSIGN_OR_RETURN(auto linear,
                       device_.ops().MakeLinear({&tensor, 1}, {}, DType::kF32));
      maps->push_back(std::move(linear));
    }
  }
  return absl::OkStatus();
}

absl::Status GoldenPair::MakeStores(const Json& job, DType kv_dtype) {
  const auto block_tokens = job.at("block_tokens").get<int32_t>();
  const ModelConfig& full = prefill_.weights->config;
  ASSIGN_OR_RETURN(store_, MakeStore(device_, full, kv_dtype, block_tokens));
  kept_layers_.resize(full.num_layers);
  std::iota(kept_layers_.begin(), kept_layers_.end(), 0);
  decode_layers_ = kept_layers_;
  if (!decode_.weights) return absl::OkStatus();

  KvMoveRules rules;
  if (job.contains("kv_map")) {
    RETURN_IF_ERROR(ReadKvMap(job.at("kv_map"), rules));
  }
  decode_layers_ = kept_layers_;
  if (!job.value("copy", false) && rules.k_maps.empty())
    return absl::OkStatus();
  ASSIGN_OR_RETURN(decode_store_, MakeStore(device_, decode_.weights->config,
                                            kv_dtype, block_tokens));
  std::iota(decode_layers_.begin(), decode_layers_.end(), 0);
  rules.source_layers = kept_layers_;
  ASSIGN_OR_RETURN(mover_, BlockMover::Create(device_, *store_, *decode_store_,
                                              std::move(rules)));
  return absl::OkStatus();
}

absl::Status GoldenPair::MakeRunner(Half& half, const KvStore& store,
                                    std::vector<int32_t> kv_layers) {
  half.logits.resize(kLimits.max_sequences);
  ModelRunnerOptions options;
  options.limits = limits();
  options.kv_layers = std::move(kv_layers);
  options.logits_hook = [&half](int32_t sequence, std::span<const float> row) {
    half.logits[sequence].assign(row.begin(), row.end());
  };
  ASSIGN_OR_RETURN(half.runner, ModelRunner::Create(device_, *half.weights,
                                                    store, std::move(options)));
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
