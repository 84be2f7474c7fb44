#include "engine/kv_map.h"

#include <numeric>
#include <span>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "engine/content_digest.h"
#include "engine/dummy_tensor.h"
#include "engine/parallel.h"
#include "engine/safetensors.h"
#include "engine/weight_plan.h"

namespace overfill {
namespace {

constexpr KvMapKind kKinds[] = {KvMapKind::kIdentity, KvMapKind::kLayers,
                                KvMapKind::kProjection};
// As many as a model may have.
constexpr int64_t kMaxLayers = 1024;

absl::Status Invalid(absl::string_view origin, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(origin, ": ", what));
}

absl::StatusOr<KvMapKind> ParseKind(const Json& raw, absl::string_view origin) {
  ASSIGN_OR_RETURN(const auto name, JsonString(raw, "kind", origin));
  if (!name) return Invalid(origin, "kind is absent");
  if (const auto kind = KvMapKindOf(*name)) return *kind;
  return Invalid(origin,
                 absl::StrCat("kind ", QuoteTensorName(*name), " is unknown ",
                              "(identity, layers, projection)"));
}

absl::StatusOr<std::vector<int32_t>> ParseLayers(const Json& raw,
                                                 absl::string_view origin) {
  const Json* list = FindJson(raw, "layers");
  if (list == nullptr) return Invalid(origin, "layers is absent");
  if (!list->is_array() || list->empty() || list->size() > kMaxLayers) {
    return Invalid(origin, absl::StrCat("layers must be a list of 1 to ",
                                        kMaxLayers, " numbers"));
  }
  std::vector<int32_t> layers;
  for (const Json& layer : *list) {
    if (!layer.is_number_unsigned() || layer.get<uint64_t>() >= kMaxLayers) {
      return Invalid(origin,
                     absl::StrCat("layers must be numbers below ", kMaxLayers));
    }
    const auto number = static_cast<int32_t>(layer.get<uint64_t>());
    if (!layers.empty() && number <= layers.back()) {
      return Invalid(origin, absl::StrCat("layers must ascend, but ", number,
                                          " follows ", layers.back()));
    }
    layers.push_back(number);
  }
  return layers;
}

absl::StatusOr<std::string> ParseFile(const Json& raw,
                                      absl::string_view origin) {
  ASSIGN_OR_RETURN(const auto file, JsonString(raw, "file", origin));
  if (!file) return Invalid(origin, "file is absent");
  if (file->empty() || absl::StartsWith(*file, ".") ||
      absl::StrContains(*file, '/') || absl::StrContains(*file, '\0')) {
    return Invalid(origin, "file must be a plain file name beside the kv_map");
  }
  return *file;
}

struct PlannedMap {
  PlannedTensor weight;
  PlannedTensor bias;  // may be absent
};

std::vector<PlannedMap> PlanMaps(const KvMapSpec& spec, const ModelConfig& full,
                                 const ModelConfig& pruned) {
  const int64_t in = int64_t{full.num_kv_heads} * full.head_dim;
  const int64_t out = int64_t{pruned.num_kv_heads} * pruned.head_dim;
  std::vector<PlannedMap> maps;  // k and v of each layer in turn
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    for (const char* half : {"k", "v"}) {
      const std::string name = absl::StrCat("layers.", l, ".", half);
      maps.push_back({{name, {out, in}, TensorRole::kMatrix},
                      {absl::StrCat(name, ".bias"), {out}, TensorRole::kBias}});
    }
  }
  return maps;
}

absl::Status TensorError(const Checkpoint& file, absl::string_view name,
                         absl::string_view what) {
  return Invalid(file.origin(),
                 absl::StrCat("tensor ", QuoteTensorName(name), ": ", what));
}

absl::Status CheckMapTensor(const Checkpoint& file, const StoredTensor& stored,
                            const PlannedTensor& planned) {
  if (stored.shape != planned.shape) {
    return TensorError(
        file, planned.name,
        absl::StrCat("is ", ShapeString(stored.shape), "; the pair needs ",
                     ShapeString(planned.shape)));
  }
  if (!stored.weight_dtype()) {
    return TensorError(file, planned.name,
                       absl::StrCat("dtype ", stored.dtype,
                                    " is not supported (F32, F16, BF16)"));
  }
  return absl::OkStatus();
}

absl::Status CheckMapTensors(const Checkpoint& file,
                             const std::vector<PlannedMap>& planned) {
  size_t num_found = 0;
  for (const PlannedMap& map : planned) {
    const StoredTensor* stored = file.Find(map.weight.name);
    if (stored == nullptr) {
      return TensorError(file, map.weight.name,
                         absl::StrCat("is missing; the pair needs ",
                                      ShapeString(map.weight.shape)));
    }
    RETURN_IF_ERROR(CheckMapTensor(file, *stored, map.weight));
    ++num_found;
    if (const StoredTensor* bias = file.Find(map.bias.name)) {
      RETURN_IF_ERROR(CheckMapTensor(file, *bias, map.bias));
      ++num_found;
    }
  }
  if (file.tensors().size() == num_found) return absl::OkStatus();
  for (const auto& [name, stored] : file.tensors()) {
    bool is_planned = false;
    for (const PlannedMap& map : planned) {
      is_planned |= map.weight.name == name || map.bias.name == name;
    }
    if (!is_planned) return TensorError(file, name, "is no map of this pair");
  }
  return absl::OkStatus();
}

// Whatever the map is, but for the linear maps and their part of the digest.
KvMap MakeSkeleton(const KvMapSpec& spec, const ModelConfig& pruned,
                   Sha256& hash) {
  KvMap map;
  map.kind = spec.kind;
  map.source_layers = spec.layers;
  if (spec.kind == KvMapKind::kIdentity) {
    map.source_layers.resize(pruned.num_layers);
    std::iota(map.source_layers.begin(), map.source_layers.end(), 0);
  }
  hash.UpdateField(KvMapKindName(spec.kind));
  for (const int32_t layer : map.source_layers) {
    hash.UpdateField(absl::StrCat(layer));
  }
  return map;
}

HostTensor HostTensorOf(const StoredTensor& stored) {
  return {.data = stored.bytes.data(),
          .dtype = *stored.weight_dtype(),
          .shape = stored.shape};
}

// `bias` is empty or holds the weight's.
absl::Status AddMap(Device& device, const HostTensor& weight,
                    std::span<const HostTensor> bias, size_t index,
                    KvMap& map) {
  ASSIGN_OR_RETURN(auto linear,
                   device.ops().MakeLinear({&weight, 1}, bias, DType::kF32));
  (index % 2 == 0 ? map.k_maps : map.v_maps).push_back(std::move(linear));
  return absl::OkStatus();
}

}  // namespace

const char* KvMapKindName(KvMapKind kind) {
  switch (kind) {
    case KvMapKind::kIdentity:
      return "identity";
    case KvMapKind::kLayers:
      return "layers";
    case KvMapKind::kProjection:
      return "projection";
  }
  return "unknown";
}

std::optional<KvMapKind> KvMapKindOf(absl::string_view name) {
  for (const KvMapKind kind : kKinds) {
    if (name == KvMapKindName(kind)) return kind;
  }
  return std::nullopt;
}

absl::StatusOr<KvMapSpec> ParseKvMapSpec(absl::string_view json,
                                         absl::string_view origin) {
  ASSIGN_OR_RETURN(const Json raw, ParseJsonObject(json, origin));
  KvMapSpec spec;
  ASSIGN_OR_RETURN(spec.kind, ParseKind(raw, origin));
  const bool has_layers = spec.kind != KvMapKind::kIdentity;
  const bool has_file = spec.kind == KvMapKind::kProjection;
  for (const auto& [key, value] : raw.items()) {
    if (key == "kind" || (key == "layers" && has_layers) ||
        (key == "file" && has_file)) {
      continue;
    }
    return Invalid(
        origin, absl::StrCat(QuoteTensorName(key), " is no member of the kind ",
                             KvMapKindName(spec.kind)));
  }
  if (has_layers) {
    ASSIGN_OR_RETURN(spec.layers, ParseLayers(raw, origin));
  }
  if (has_file) {
    ASSIGN_OR_RETURN(spec.file, ParseFile(raw, origin));
  }
  return spec;
}

absl::Status CheckKvMap(const KvMapSpec& spec, const ModelConfig& full,
                        const ModelConfig& pruned) {
  const auto error = [](absl::string_view what) {
    return absl::InvalidArgumentError(what);
  };
  if (spec.kind == KvMapKind::kIdentity) {
    if (full.num_layers != pruned.num_layers) {
      return error(absl::StrCat(
          "num_hidden_layers is ", full.num_layers, " and ", pruned.num_layers,
          ", but the kv_map identity needs the same layers"));
    }
  } else {
    if (spec.layers.size() != static_cast<size_t>(pruned.num_layers)) {
      return error(absl::StrCat("layers of the kv_map names ",
                                spec.layers.size(),
                                " layers, but num_hidden_layers of the pruned "
                                "model is ",
                                pruned.num_layers));
    }
    if (spec.layers.back() >= full.num_layers) {
      return error(absl::StrCat(
          "layers of the kv_map names layer ", spec.layers.back(),
          ", but num_hidden_layers of the full model is ", full.num_layers));
    }
  }
  if (spec.kind == KvMapKind::kProjection) return absl::OkStatus();
  if (full.num_kv_heads != pruned.num_kv_heads) {
    return error(absl::StrCat("num_key_value_heads is ", full.num_kv_heads,
                              " and ", pruned.num_kv_heads));
  }
  if (full.head_dim != pruned.head_dim) {
    return error(
        absl::StrCat("head_dim is ", full.head_dim, " and ", pruned.head_dim));
  }
  return absl::OkStatus();
}

absl::StatusOr<KvMap> LoadKvMap(Device& device, const KvMapSpec& spec,
                                const std::string& directory,
                                const ModelConfig& full,
                                const ModelConfig& pruned) {
  RETURN_IF_ERROR(CheckKvMap(spec, full, pruned));
  Sha256 hash;
  KvMap map = MakeSkeleton(spec, pruned, hash);
  if (spec.kind == KvMapKind::kProjection) {
    ASSIGN_OR_RETURN(const Checkpoint file, Checkpoint::OpenFile(absl::StrCat(
                                                directory, "/", spec.file)));
    const std::vector<PlannedMap> planned = PlanMaps(spec, full, pruned);
    RETURN_IF_ERROR(CheckMapTensors(file, planned));
    for (size_t i = 0; i < planned.size(); ++i) {
      std::vector<HostTensor> bias;
      if (const StoredTensor* stored = file.Find(planned[i].bias.name)) {
        bias.push_back(HostTensorOf(*stored));
      }
      RETURN_IF_ERROR(AddMap(device,
                             HostTensorOf(*file.Find(planned[i].weight.name)),
                             bias, i, map));
    }
    hash.UpdateField(
        HexString(DigestFiles(file.files(), LoadingThreads(device),
                              absl::StrCat("hashing ", file.origin()))));
  }
  map.digest = hash.Finish();
  return map;
}

absl::StatusOr<KvMap> MakeDummyKvMap(Device& device, const KvMapSpec& spec,
                                     const ModelConfig& full,
                                     const ModelConfig& pruned, uint64_t seed) {
  RETURN_IF_ERROR(CheckKvMap(spec, full, pruned));
  Sha256 hash;
  KvMap map = MakeSkeleton(spec, pruned, hash);
  if (spec.kind == KvMapKind::kProjection) {
    const std::vector<PlannedMap> planned = PlanMaps(spec, full, pruned);
    for (size_t i = 0; i < planned.size(); ++i) {
      std::vector<uint16_t> storage;
      const HostTensor tensor =
          MakeDummyTensor(planned[i].weight, seed, storage);
      RETURN_IF_ERROR(AddMap(device, tensor, {}, i, map));
    }
    hash.UpdateField(absl::StrCat("noise ", seed));
  }
  map.digest = hash.Finish();
  return map;
}

}  // namespace overfill
