#include "server/model_info.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "engine/model_config.h"

namespace overfill {
namespace {

v1::ModelInfo DescribeModel(const PairModel& model, const KvStore& store,
                            const DeviceInfo& device) {
  const ModelConfig& config = model.weights.config;
  v1::ModelInfo info;
  info.set_name(model.name);
  info.set_architecture(ArchitectureName(config.architecture));
  info.set_digest(HexString(model.digest));
  info.set_num_layers(config.num_layers);
  info.set_hidden_size(config.hidden_size);
  info.set_intermediate_size(config.intermediate_size);
  info.set_num_heads(config.num_heads);
  info.set_num_kv_heads(config.num_kv_heads);
  info.set_head_dim(config.head_dim);
  info.set_vocab_size(config.vocab_size);
  info.set_num_parameters(model.num_parameters);
  info.set_weights(DTypeName(model.weights.dtype));
  info.set_device(device.name);
  info.set_kv_bytes_per_token(store.token_bytes());
  return info;
}

}  // namespace

const char* Version() { return OVERFILL_VERSION; }

v1::GetModelInfoResponse MakeModelInfo(const Pair& pair,
                                       const PairEngine& engine,
                                       const DeviceInfo& device,
                                       const ServerConfig& config) {
  v1::GetModelInfoResponse info;
  *info.mutable_full() =
      DescribeModel(pair.full(), engine.prefill_store(), device);
  *info.mutable_pruned() =
      DescribeModel(pair.pruned(), engine.decode_store(), device);
  info.set_pair_digest(HexString(pair.digest()));
  info.set_kv_map(KvMapKindName(pair.kv_map().kind));
  v1::ServingLimits* limits = info.mutable_limits();
  limits->set_max_sequence_tokens(engine.max_sequence_tokens());
  limits->set_max_decode_batch(config.max_decode_batch);
  limits->set_max_queued_requests(config.max_queued_requests);
  limits->set_max_queued_tokens(config.max_queued_tokens);
  limits->set_block_tokens(config.block_tokens);
  limits->set_kv_blocks(engine.prefill_store().num_blocks());
  limits->set_max_request_bytes(config.max_request_bytes);
  info.set_server_version(Version());
  return info;
}

InfoLabels ModelInfoLabels(const v1::GetModelInfoResponse& info) {
  std::string weights = info.full().weights();
  if (weights != info.pruned().weights()) {
    absl::StrAppend(&weights, ",", info.pruned().weights());
  }
  return {{"full", info.full().name()},
          {"pruned", info.pruned().name()},
          {"architecture", info.full().architecture()},
          {"pair_digest", info.pair_digest()},
          {"kv_map", info.kv_map()},
          {"weights", weights},
          {"device", info.full().device()}};
}

}  // namespace overfill
