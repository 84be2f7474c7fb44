#include "engine/kv_mover.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "engine/kv_digest.h"

namespace overfill {
namespace {

constexpr int64_t kStagingBytes = 256 << 10;

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
      destination_layers_(destination.layout().num_layers),
      stream_(device.NewStream(StreamPriority::kHigh)) {
  std::iota(destination_layers_.begin(), destination_layers_.end(), 0);
}

absl::Status BlockMover::CheckBlocks(std::span<const BlockCopy> blocks,
                                     int32_t first_position) const {
  const auto refuse = [](const BlockCopy& copy, absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV move: ", copy.num_tokens, " tokens of block ",
                     copy.source, " to block ", copy.destination, why));
  };
  const int64_t end = first_position + static_cast<int64_t>(blocks.size()) *
                                           source_.block_tokens;
  if (first_position < 0 || end > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "KV move: ", blocks.size(), " blocks from position ", first_position));
  }
  std::set<int32_t> written;
  for (const BlockCopy& copy : blocks) {
    if (copy.source < 0 || copy.source >= source_.num_blocks ||
        copy.destination < 0 || copy.destination >= destination_.num_blocks ||
        copy.num_tokens < 0 || copy.num_tokens > source_.block_tokens) {
      return refuse(copy, "");
    }
    if (!written.insert(copy.destination).second) {
      return refuse(copy, ": written twice");
    }
  }
  if (source_.data != destination_.data) return absl::OkStatus();
  for (const BlockCopy& copy : blocks) {
    if (written.contains(copy.source)) return refuse(copy, ": both are one");
  }
  return absl::OkStatus();
}

absl::StatusOr<KvMoveResult> BlockMover::Move(std::span<const BlockCopy> blocks,
                                              int32_t first_position) {
  RETURN_IF_ERROR(CheckBlocks(blocks, first_position));
  KvMoveResult result;
  if (copies_bytes()) {
    // Before the copy: what changes under it differs from what arrives.
    ASSIGN_OR_RETURN(result.sent_digest, SourceDigest(blocks, first_position));
  }
  if (!blocks.empty()) {
    StreamScope scope(*stream_);
    if (copies_bytes()) {
      device_.ops().CopyBlocks(*stream_, source_, destination_,
                               rules_.source_layers, blocks);
    } else {
      device_.ops().ProjectBlocks(*stream_, source_, destination_,
                                  rules_.source_layers, rules_.k_maps,
                                  rules_.v_maps, blocks);
    }
  }
  RETURN_IF_ERROR(stream_->Synchronize());
  if (copies_bytes()) {
    ASSIGN_OR_RETURN(result.received_digest,
                     DestinationDigest(blocks, first_position));
  }
  return result;
}

absl::StatusOr<uint64_t> BlockMover::SourceDigest(
    std::span<const BlockCopy> blocks, int32_t first_position) {
  return Digest(source_, rules_.source_layers, &BlockCopy::source, blocks,
                first_position);
}

absl::StatusOr<uint64_t> BlockMover::DestinationDigest(
    std::span<const BlockCopy> blocks, int32_t first_position) {
  return Digest(destination_, destination_layers_, &BlockCopy::destination,
                blocks, first_position);
}

absl::StatusOr<uint64_t> BlockMover::Digest(const KvView& kv,
                                            std::span<const int32_t> layers,
                                            int32_t BlockCopy::*block,
                                            std::span<const BlockCopy> blocks,
                                            int32_t first_position) {
  if (!copies_bytes()) {
    return absl::UnimplementedError("KV move: maps change the bytes");
  }
  RETURN_IF_ERROR(CheckBlocks(blocks, first_position));
  // Both sides are signed with the layout of what arrives.
  KvDigest digest(destination_);
  const int64_t layer_bytes = kv.layer_elements() * DTypeBytes(kv.dtype);
  // A few layers at a time, which stay in the cache.
  const int64_t batch = std::clamp<int64_t>(
      kStagingBytes / layer_bytes, 1, static_cast<int64_t>(layers.size()));
  staging_.resize(batch * layer_bytes);
  int32_t position = first_position;
  for (const BlockCopy& copy : blocks) {
    digest.BeginBlock(position, copy.num_tokens);
    position += kv.block_tokens;
    for (size_t begin = 0; begin < layers.size(); begin += batch) {
      const auto some =
          layers.subspan(begin, std::min<size_t>(batch, layers.size() - begin));
      for (size_t i = 0; i < some.size(); ++i) {
        StageLayer(kv, copy.*block, some[i], copy.num_tokens,
                   staging_.data() + i * layer_bytes);
      }
      RETURN_IF_ERROR(stream_->Synchronize());
      for (size_t i = 0; i < some.size(); ++i) {
        digest.AddLayer(
            std::span(staging_).subspan(i * layer_bytes, layer_bytes));
      }
    }
  }
  return digest.value();
}

void BlockMover::StageLayer(const KvView& kv, int32_t block, int32_t layer,
                            int32_t num_tokens, std::byte* to) {
  const int64_t element_bytes = DTypeBytes(kv.dtype);
  const auto* from = static_cast<const std::byte*>(kv.data) +
                     kv.TileOffset(block, layer, 0, 0) * element_bytes;
  if (num_tokens == kv.block_tokens) {
    stream_->CopyToHost(to, from, kv.layer_elements() * element_bytes);
    return;
  }
  // The slots behind may be written meanwhile: a sequence that shares the
  // block goes on.
  const int64_t tile_bytes = kv.head_elements() * element_bytes;
  for (int64_t tile = 0; tile < 2 * kv.num_kv_heads; ++tile) {
    stream_->CopyToHost(to + tile * tile_bytes, from + tile * tile_bytes,
                        num_tokens * kv.head_dim * element_bytes);
  }
}

}  // namespace overfill
