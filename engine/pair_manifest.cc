#include "engine/pair_manifest.h"

#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "engine/safetensors.h"

namespace overfill {
namespace {

// A 405B model's kept channels, one per line, are 40 MB.
constexpr uint64_t kMaxManifestBytes = 64 << 20;
constexpr char kFormat[] = "overfill-pair";
constexpr int64_t kVersion = 1;
// As in a config.json.
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxWidth = 1 << 20;
constexpr size_t kMaxFiles = 4096;
constexpr size_t kMaxFileName = 255;

absl::Status Invalid(absl::string_view origin, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(origin, ": ", what));
}

// Nothing that leads out of a directory, hides in it or forges a log line.
bool IsPlainName(absl::string_view name) {
  if (name.empty() || name.size() > kMaxFileName || name[0] == '.') {
    return false;
  }
  for (const char c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) &&
        !absl::StrContains("._-+", c)) {
      return false;
    }
  }
  return true;
}

bool IsHexDigest(absl::string_view text) {
  if (text.size() != 2 * sizeof(Sha256Digest)) return false;
  for (const char c : text) {
    if (!absl::ascii_isdigit(static_cast<unsigned char>(c)) &&
        !(c >= 'a' && c <= 'f')) {
      return false;
    }
  }
  return true;
}

class Parser {
 public:
  Parser(const Json& raw, absl::string_view path) : raw_(raw) {
    manifest_.path = std::string(path);
  }

  absl::StatusOr<PairManifest> Parse() {
    RETURN_IF_ERROR(ParseFormat());
    ASSIGN_OR_RETURN(manifest_.full, ParseModel("full"));
    ASSIGN_OR_RETURN(manifest_.decode, ParseModel("decode"));
    RETURN_IF_ERROR(ParseMap());
    if (const Json* kept = FindJson(raw_, "kept_hidden")) {
      ASSIGN_OR_RETURN(
          manifest_.kept_hidden,
          ParseIndices(*kept, "kept_hidden", "decode.hidden_size",
                       manifest_.decode.hidden_size, "full.hidden_size",
                       manifest_.full.hidden_size));
    }
    RETURN_IF_ERROR(ParseKeptIntermediate());
    return std::move(manifest_);
  }

 private:
  absl::Status Error(absl::string_view what) const {
    return Invalid(manifest_.path, what);
  }

  absl::Status ParseFormat() {
    ASSIGN_OR_RETURN(const auto format,
                     JsonString(raw_, "format", manifest_.path));
    if (!format || *format != kFormat) {
      return Error(absl::StrCat("format must be \"", kFormat, "\""));
    }
    ASSIGN_OR_RETURN(const auto version,
                     JsonInt(raw_, "version", 0, INT64_MAX, manifest_.path));
    if (!version) return Error("version is absent");
    if (*version == kVersion) return absl::OkStatus();
    return Error(absl::StrCat("version ", *version, " is not supported (",
                              kVersion, ")"));
  }

  absl::StatusOr<int32_t> Size(const Json& model, const std::string& origin,
                               const char* key, int64_t max) const {
    ASSIGN_OR_RETURN(const auto size, JsonInt(model, key, 1, max, origin));
    if (!size) return Invalid(origin, absl::StrCat(key, " is absent"));
    return static_cast<int32_t>(*size);
  }

  absl::StatusOr<ManifestModel> ParseModel(const char* key) const {
    const Json* raw = FindJson(raw_, key);
    if (raw == nullptr || !raw->is_object()) {
      return Error(absl::StrCat(key, " must be an object"));
    }
    const std::string origin = absl::StrCat(manifest_.path, ": ", key);
    ManifestModel model;
    ASSIGN_OR_RETURN(const auto name, JsonString(*raw, "name", origin));
    model.name = name.value_or("");
    ASSIGN_OR_RETURN(model.hidden_size,
                     Size(*raw, origin, "hidden_size", kMaxWidth));
    ASSIGN_OR_RETURN(model.intermediate_size,
                     Size(*raw, origin, "intermediate_size", kMaxWidth));
    ASSIGN_OR_RETURN(model.num_layers,
                     Size(*raw, origin, "num_hidden_layers", kMaxLayers));
    RETURN_IF_ERROR(ParseFiles(*raw, origin, model));
    return model;
  }

  absl::Status ParseFiles(const Json& raw, const std::string& origin,
                          ManifestModel& model) const {
    const Json* files = FindJson(raw, "files");
    if (files == nullptr || !files->is_object() || files->size() > kMaxFiles) {
      return Invalid(origin, absl::StrCat("files must be an object of at most ",
                                          kMaxFiles, " digests"));
    }
    for (const auto& [name, digest] : files->items()) {
      if (!IsPlainName(name)) {
        return Invalid(origin, absl::StrCat("files: ", QuoteTensorName(name),
                                            " is no plain file name"));
      }
      if (!digest.is_string() ||
          !IsHexDigest(digest.get_ref<const std::string&>())) {
        return Invalid(origin,
                       absl::StrCat("files.", name, " must be a SHA-256 in 64 ",
                                    "digits of lower-case hex"));
      }
      model.files[name] = digest.get<std::string>();
    }
    for (const char* name : {"config.json", "tokenizer.json"}) {
      if (model.files.contains(name)) continue;
      return Invalid(origin, absl::StrCat("files.", name, " is absent"));
    }
    return absl::OkStatus();
  }

  // `count` numbers below `limit`, ascending; the fields are for messages.
  absl::StatusOr<std::vector<int32_t>> ParseIndices(
      const Json& list, const std::string& field, absl::string_view count_field,
      int32_t count, absl::string_view limit_field, int32_t limit) const {
    if (!list.is_array()) return Error(absl::StrCat(field, " must be a list"));
    if (list.size() != static_cast<size_t>(count)) {
      return Error(absl::StrCat(field, " has ", list.size(), " numbers, but ",
                                count_field, " is ", count));
    }
    std::vector<int32_t> indices;
    indices.reserve(list.size());
    for (const Json& number : list) {
      if (!number.is_number_unsigned() ||
          number.get<uint64_t>() >= static_cast<uint64_t>(limit)) {
        return Error(absl::StrCat(field, " must be numbers below ", limit,
                                  ", the ", limit_field));
      }
      const auto index = static_cast<int32_t>(number.get<uint64_t>());
      if (!indices.empty() && index <= indices.back()) {
        return Error(absl::StrCat(field, " must ascend, but ", index,
                                  " follows ", indices.back()));
      }
      indices.push_back(index);
    }
    return indices;
  }

  absl::Status ParseMap() {
    ASSIGN_OR_RETURN(const auto name,
                     JsonString(raw_, "kv_map", manifest_.path));
    const auto kind = name ? KvMapKindOf(*name) : std::nullopt;
    if (!kind) {
      return Error("kv_map must be \"identity\", \"layers\" or \"projection\"");
    }
    manifest_.kv_map = *kind;
    const Json* list = FindJson(raw_, "layer_map");
    if (list == nullptr) return Error("layer_map is absent");
    ASSIGN_OR_RETURN(
        manifest_.layer_map,
        ParseIndices(*list, "layer_map", "decode.num_hidden_layers",
                     manifest_.decode.num_layers, "full.num_hidden_layers",
                     manifest_.full.num_layers));
    // As the list ascends, it is 0, 1, ... where it is of full length.
    if (*kind == KvMapKind::kIdentity &&
        manifest_.full.num_layers != manifest_.decode.num_layers) {
      return Error(absl::StrCat(
          "kv_map \"identity\" needs the same layers, but num_hidden_layers "
          "is ",
          manifest_.full.num_layers, " and ", manifest_.decode.num_layers));
    }
    return absl::OkStatus();
  }

  absl::Status ParseKeptIntermediate() {
    const Json* lists = FindJson(raw_, "kept_intermediate");
    if (lists == nullptr) return absl::OkStatus();
    const ManifestModel& decode = manifest_.decode;
    if (!lists->is_array() ||
        lists->size() != static_cast<size_t>(decode.num_layers)) {
      return Error(absl::StrCat("kept_intermediate must be ", decode.num_layers,
                                " lists, one per layer of the decode model"));
    }
    auto& kept = manifest_.kept_intermediate.emplace();
    for (const Json& list : *lists) {
      ASSIGN_OR_RETURN(
          std::vector<int32_t> indices,
          ParseIndices(
              list, absl::StrCat("kept_intermediate[", kept.size(), "]"),
              "decode.intermediate_size", decode.intermediate_size,
              "full.intermediate_size", manifest_.full.intermediate_size));
      kept.push_back(std::move(indices));
    }
    return absl::OkStatus();
  }

  const Json& raw_;
  PairManifest manifest_;
};

}  // namespace

absl::StatusOr<PairManifest> ParsePairManifest(absl::string_view json,
                                               absl::string_view path) {
  ASSIGN_OR_RETURN(const Json raw, ParseJsonObject(json, path));
  return Parser(raw, path).Parse();
}

absl::StatusOr<std::optional<PairManifest>> LoadPairManifest(
    const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kPairManifestName);
  const auto text = ReadFile(path, kMaxManifestBytes);
  if (absl::IsNotFound(text.status())) return std::optional<PairManifest>();
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(PairManifest manifest, ParsePairManifest(*text, path));
  return std::optional<PairManifest>(std::move(manifest));
}

absl::StatusOr<KvMapSpec> KvMapOfManifest(const PairManifest& manifest) {
  KvMapSpec map;
  map.kind = manifest.kv_map;
  if (map.kind == KvMapKind::kProjection) {
    return Invalid(manifest.path,
                   "kv_map is \"projection\": the pair needs the kv_map file "
                   "that it was trained with");
  }
  if (map.kind == KvMapKind::kLayers) map.layers = manifest.layer_map;
  return map;
}

}  // namespace overfill
