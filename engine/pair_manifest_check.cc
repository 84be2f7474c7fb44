#include "engine/pair_manifest_check.h"

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "engine/content_digest.h"

namespace overfill {
namespace {

constexpr char kWeightsSuffix[] = ".safetensors";

absl::Status Invalid(absl::string_view origin, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(origin, ": ", what));
}

std::string BaseName(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

std::vector<int32_t> FirstLayers(int32_t count) {
  std::vector<int32_t> layers(count);
  std::iota(layers.begin(), layers.end(), 0);
  return layers;
}

const char* HalfName(PairHalf half) {
  return half == PairHalf::kFull ? "full" : "decode";
}

const ManifestModel& HalfOf(const PairManifest& manifest, PairHalf half) {
  return half == PairHalf::kFull ? manifest.full : manifest.decode;
}

// Of one size of one half.
absl::Status CheckSize(const PairManifest& manifest, PairHalf half,
                       const char* field, const std::string& directory,
                       int32_t stated, int32_t actual) {
  if (stated == actual) return absl::OkStatus();
  return Invalid(manifest.path, absl::StrCat(HalfName(half), ".", field, " is ",
                                             stated, ", but ", directory,
                                             "/config.json has ", actual));
}

absl::Status CheckSizes(const PairManifest& manifest, PairHalf half,
                        const PairSide& side) {
  const ManifestModel& model = HalfOf(manifest, half);
  RETURN_IF_ERROR(CheckSize(manifest, half, "hidden_size", side.directory,
                            model.hidden_size, side.config.hidden_size));
  RETURN_IF_ERROR(CheckSize(manifest, half, "intermediate_size", side.directory,
                            model.intermediate_size,
                            side.config.intermediate_size));
  return CheckSize(manifest, half, "num_hidden_layers", side.directory,
                   model.num_layers, side.config.num_layers);
}

// "files.NAME: ..." of one half.
absl::Status FileError(const PairManifest& manifest, PairHalf half,
                       absl::string_view name, absl::string_view what) {
  return Invalid(manifest.path,
                 absl::StrCat(HalfName(half), ".files.", name, ": ", what));
}

absl::Status OtherModel(const PairManifest& manifest, PairHalf half,
                        absl::string_view name, const std::string& directory) {
  return FileError(manifest, half, name,
                   absl::StrCat("the ", HalfName(half), " model at ", directory,
                                " is another one than the pair was made ",
                                half == PairHalf::kFull ? "from" : "with"));
}

// Maps the files of one half that are weights, or those that are none.
absl::StatusOr<std::vector<MappedFile>> OpenFiles(const PairManifest& manifest,
                                                  PairHalf half,
                                                  const std::string& directory,
                                                  bool weights) {
  std::vector<MappedFile> files;
  for (const auto& [name, digest] : HalfOf(manifest, half).files) {
    if (absl::EndsWith(name, kWeightsSuffix) != weights) continue;
    auto file = MappedFile::Open(absl::StrCat(directory, "/", name));
    if (!file.ok()) {
      return FileError(manifest, half, name, file.status().message());
    }
    files.push_back(*std::move(file));
  }
  return files;
}

absl::Status CheckDigests(const PairManifest& manifest, PairHalf half,
                          const std::string& directory,
                          const std::vector<MappedFile>& files,
                          int num_threads) {
  const std::vector<Sha256Digest> digests =
      DigestEachFile(files, num_threads, absl::StrCat("checking ", directory));
  const auto& stated = HalfOf(manifest, half).files;
  for (size_t i = 0; i < files.size(); ++i) {
    const auto name = BaseName(files[i].path());
    if (HexString(digests[i]) != stated.at(name)) {
      return OtherModel(manifest, half, name, directory);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckPairManifest(const PairManifest& manifest,
                               const PairSide& full, const PairSide& pruned,
                               const KvMapSpec& map) {
  RETURN_IF_ERROR(CheckSizes(manifest, PairHalf::kFull, full));
  RETURN_IF_ERROR(CheckSizes(manifest, PairHalf::kDecode, pruned));
  // Layers that are all the layers are an identity.
  if ((manifest.kv_map == KvMapKind::kProjection) !=
      (map.kind == KvMapKind::kProjection)) {
    return Invalid(manifest.path,
                   absl::StrCat("kv_map is \"", KvMapKindName(manifest.kv_map),
                                "\", but the kv_map in use is \"",
                                KvMapKindName(map.kind), "\""));
  }
  const std::vector<int32_t> layers = map.kind == KvMapKind::kIdentity
                                          ? FirstLayers(full.config.num_layers)
                                          : map.layers;
  if (layers.size() != manifest.layer_map.size()) {
    return Invalid(
        manifest.path,
        absl::StrCat("layer_map has ", manifest.layer_map.size(),
                     " layers, but the kv_map in use ", layers.size()));
  }
  for (size_t l = 0; l < layers.size(); ++l) {
    if (layers[l] == manifest.layer_map[l]) continue;
    return Invalid(manifest.path,
                   absl::StrCat("layer_map[", l, "] is ", manifest.layer_map[l],
                                ", but the kv_map in use has ", layers[l]));
  }
  return absl::OkStatus();
}

absl::Status CheckManifestFiles(const PairManifest& manifest, PairHalf half,
                                const std::string& directory) {
  ASSIGN_OR_RETURN(const auto files, OpenFiles(manifest, half, directory,
                                               /*weights=*/false));
  return CheckDigests(manifest, half, directory, files, /*num_threads=*/1);
}

absl::Status CheckManifestWeights(const PairManifest& manifest, PairHalf half,
                                  const std::string& directory,
                                  const Checkpoint& checkpoint,
                                  int num_threads) {
  for (const MappedFile& file : checkpoint.files()) {
    const std::string name = BaseName(file.path());
    if (HalfOf(manifest, half).files.contains(name)) continue;
    return FileError(manifest, half, QuoteTensorName(name),
                     absl::StrCat("is absent, but the checkpoint at ",
                                  directory, " has the file"));
  }
  ASSIGN_OR_RETURN(const auto files, OpenFiles(manifest, half, directory,
                                               /*weights=*/true));
  return CheckDigests(manifest, half, directory, files, num_threads);
}

}  // namespace overfill
