#include "engine/kv_mover.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

absl::Status CheckCopy(const KvLayout& source, const KvLayout& destination) {
  KvLayout expected = source;
  expected.num_layers = destination.num_layers;
  if (expected == destination) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "KV copy: the stores differ in more than their layers");
}

absl::Status CheckMaps(const KvLayout& source, const KvLayout& destination,
                       std::span<const LinearWeight* const> maps) {
  if (source.block_tokens != destination.block_tokens ||
      source.dtype != destination.dtype) {
    return absl::InvalidArgumentError(
        "KV projection: the stores differ in block_tokens or dtype");
  }
  if (maps.size() != static_cast<size_t>(destination.num_layers)) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV projection: ", maps.size(), " maps for ",
                     destination.num_layers, " layers"));
  }
  const int64_t in = int64_t{source.num_kv_heads} * source.head_dim;
  const int64_t out = int64_t{destination.num_kv_heads} * destination.head_dim;
  for (const LinearWeight* map : maps) {
    if (map->in_features() == in && map->out_features() == out) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("KV projection: a map is [", map->out_features(), ", ",
                     map->in_features(), "], not [", out, ", ", in, "]"));
  }
  return absl::OkStatus();
}

absl::Status CheckRules(const KvStore& source, const KvStore& destination,
                        const KvMoveRules& rules) {
  const KvLayout& from = source.layout();
  const KvLayout& to = destination.layout();
  if (rules.source_layers.size() != static_cast<size_t>(to.num_layers)) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV move: ", rules.source_layers.size(),
                     " source layers for ", to.num_layers));
  }
  for (int32_t layer : rules.source_layers) {
    if (layer >= 0 && layer < from.num_layers) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "KV move: layer ", layer, " of ", from.num_layers, " is named"));
  }
  if (rules.k_maps.empty() && rules.v_maps.empty()) return CheckCopy(from, to);
  RETURN_IF_ERROR(CheckMaps(from, to, rules.k_maps));
  return CheckMaps(from, to, rules.v_maps);
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockMover>> BlockMover::Create(
    Device& device, const KvStore& source, const KvStore& destination,
    KvMoveRules rules) {
  RETURN_IF_ERROR(CheckRules(source, destination, rules));
  return std::unique_ptr<BlockMover>(
      new BlockMover(device, source, destination, std::move(rules)));
}

BlockMover::BlockMover(Device& device, const KvStore& source,
                       const KvStore& destination, KvMoveRules rules)
    : device_(device),
      source_(source.view()),
      destination_(destination.view()),
      rules_(std::move(rules)),
      stream_(device.NewStream(StreamPriority::kHigh)) {}

absl::Status BlockMover::Move(std::span<const BlockCopy> blocks) {
  for (const BlockCopy& copy : blocks) {
    if (copy.source < 0 || copy.source >= source_.num_blocks ||
        copy.destination < 0 || copy.destination >= destination_.num_blocks ||
        copy.num_tokens < 0 || copy.num_tokens > source_.block_tokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("KV move: ", copy.num_tokens, " tokens of block ",
                       copy.source, " to block ", copy.destination));
    }
  }
  if (blocks.empty()) return absl::OkStatus();
  {
    StreamScope scope(*stream_);
    if (rules_.k_maps.empty()) {
      device_.ops().CopyBlocks(*stream_, source_, destination_,
                               rules_.source_layers, blocks);
    } else {
      device_.ops().ProjectBlocks(*stream_, source_, destination_,
                                  rules_.source_layers, rules_.k_maps,
                                  rules_.v_maps, blocks);
    }
  }
  return stream_->Synchronize();
}

}  // namespace overfill
