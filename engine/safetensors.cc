#include "engine/safetensors.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "engine/safetensors_header.h"

namespace overfill {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = 64 << 20;
constexpr size_t kMaxShards = 10'000;
constexpr uint64_t kSizeBytes = 8;

absl::Status Invalid(absl::string_view origin, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(origin, ": ", what));
}

absl::Status InvalidTensor(absl::string_view origin, absl::string_view name,
                           absl::string_view what) {
  return Invalid(origin,
                 absl::StrCat("tensor ", QuoteTensorName(name), ": ", what));
}

absl::string_view AsText(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The header's text.
absl::StatusOr<absl::string_view> FindHeader(std::span<const std::byte> bytes,
                                             absl::string_view path) {
  if (bytes.size() < kSizeBytes) {
    return Invalid(path, absl::StrCat("is truncated: ", bytes.size(),
                                      " bytes are no safetensors file"));
  }
  uint64_t size = 0;
  for (uint64_t i = 0; i < kSizeBytes; ++i) {
    size |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  }
  if (size > kMaxSafetensorsHeaderBytes) {
    return Invalid(
        path, absl::StrCat("has a header of ", size, " bytes, more than the ",
                           kMaxSafetensorsHeaderBytes, " that are allowed"));
  }
  if (size > bytes.size() - kSizeBytes) {
    return Invalid(path, absl::StrCat("is truncated: its header has ", size,
                                      " bytes, the file ", bytes.size()));
  }
  const absl::string_view header = AsText(bytes.subspan(kSizeBytes, size));
  // The parser would take one for the end, and the rest would go unread.
  if (absl::StrContains(header, '\0')) {
    return Invalid(path, "has a zero byte in its header");
  }
  return header;
}

// Every byte of the data belongs to exactly one tensor.
absl::Status CheckCoverage(
    const std::map<std::string, SafetensorsEntry, std::less<>>& entries,
    uint64_t data_bytes, absl::string_view path) {
  struct Range {
    uint64_t begin, end;
    const std::string* name;
  };
  std::vector<Range> ranges;
  for (const auto& [name, entry] : entries) {
    ranges.push_back({entry.begin, entry.end, &name});
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  uint64_t done = 0;
  const std::string* last = nullptr;
  for (const Range& range : ranges) {
    const std::string where =
        absl::StrCat("data_offsets [", range.begin, ", ", range.end, "] ");
    if (range.end > data_bytes) {
      return InvalidTensor(
          path, *range.name,
          absl::StrCat(where, "reach beyond the ", data_bytes,
                       " bytes of data: the file is truncated"));
    }
    if (range.begin < done) {
      return InvalidTensor(
          path, *range.name,
          absl::StrCat(where, "overlap those of ", QuoteTensorName(*last)));
    }
    if (range.begin > done) {
      return InvalidTensor(
          path, *range.name,
          absl::StrCat(where, "leave a gap after byte ", done));
    }
    done = range.end;
    last = range.name;
  }
  if (done == data_bytes) return absl::OkStatus();
  return Invalid(path, absl::StrCat("has ", data_bytes - done,
                                    " bytes that belong to no tensor"));
}

bool IsShardName(absl::string_view name) {
  return absl::EndsWith(name, ".safetensors") && !absl::StartsWith(name, ".") &&
         !absl::StrContains(name, '/') && !absl::StrContains(name, '\0') &&
         name.size() <= 255;
}

}  // namespace

std::optional<DType> StoredTensor::weight_dtype() const {
  if (dtype == "F32") return DType::kF32;
  if (dtype == "BF16") return DType::kBF16;
  if (dtype == "F16") return DType::kF16;
  return std::nullopt;
}

std::string ShapeString(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

std::string QuoteTensorName(absl::string_view name) {
  constexpr size_t kMaxShown = 200;
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(name.substr(0, kMaxShown)),
                      name.size() > kMaxShown ? "...\"" : "\"");
}

absl::StatusOr<StoredTensors> ParseSafetensors(std::span<const std::byte> bytes,
                                               const std::string& path) {
  ASSIGN_OR_RETURN(const absl::string_view header, FindHeader(bytes, path));
  ASSIGN_OR_RETURN(auto entries, ParseSafetensorsHeader(header, path));
  const auto data = bytes.subspan(kSizeBytes + header.size());
  RETURN_IF_ERROR(CheckCoverage(entries, data.size(), path));
  StoredTensors tensors;
  for (auto& [name, entry] : entries) {
    tensors.emplace_hint(tensors.end(), name,
                         StoredTensor{.dtype = std::move(entry.dtype),
                                      .shape = std::move(entry.shape),
                                      .bytes = data.subspan(
                                          entry.begin, entry.end - entry.begin),
                                      .file = path});
  }
  return tensors;
}

absl::StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(
    absl::string_view json, absl::string_view origin) {
  ASSIGN_OR_RETURN(const Json raw, ParseJsonObject(json, origin));
  const Json* map = FindJson(raw, "weight_map");
  if (map == nullptr || !map->is_object() || map->empty()) {
    return Invalid(origin, "weight_map must be an object of shard names");
  }
  std::map<std::string, std::string> result;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string() || !IsShardName(shard.get<std::string>())) {
      return InvalidTensor(
          origin, name,
          absl::StrCat("its shard must be the plain name of a .safetensors "
                       "file, is ",
                       shard.is_string()
                           ? QuoteTensorName(shard.get<std::string>())
                           : "no name"));
    }
    result.emplace(name, shard.get<std::string>());
  }
  return result;
}

absl::StatusOr<Checkpoint> Checkpoint::OpenFile(const std::string& path) {
  Checkpoint result(path);
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  ASSIGN_OR_RETURN(result.tensors_, ParseSafetensors(file.bytes(), path));
  result.files_.push_back(std::move(file));
  return result;
}

absl::StatusOr<Checkpoint> Checkpoint::OpenDirectory(
    const std::string& directory) {
  const std::string single = absl::StrCat(directory, "/", kSingleFile);
  const std::string index = absl::StrCat(directory, "/", kIndexFile);
  const bool has_single = FileExists(single);
  const bool has_index = FileExists(index);
  if (has_index) {
    ASSIGN_OR_RETURN(Checkpoint sharded, OpenSharded(directory, index));
    // Some tools write an index of the single file, too.
    const bool uses_single =
        sharded.files_.size() == 1 && sharded.files_.front().path() == single;
    if (!has_single || uses_single) return sharded;
    return Invalid(directory, absl::StrCat("has both ", kSingleFile, " and ",
                                           kIndexFile, ": one is stale"));
  }
  if (has_single) return OpenFile(single);
  return absl::NotFoundError(absl::StrCat(directory, ": has neither ",
                                          kSingleFile, " nor ", kIndexFile));
}

absl::StatusOr<Checkpoint> Checkpoint::OpenSharded(
    const std::string& directory, const std::string& index_path) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(index_path, kMaxIndexBytes));
  ASSIGN_OR_RETURN(const auto weight_map,
                   ParseSafetensorsIndex(text, index_path));
  std::set<std::string> shards;
  for (const auto& [name, shard] : weight_map) shards.insert(shard);
  if (shards.size() > kMaxShards) {
    return Invalid(index_path, absl::StrCat("names ", shards.size(),
                                            " shards, more than ", kMaxShards));
  }
  Checkpoint result(index_path);
  for (const std::string& shard : shards) {
    ASSIGN_OR_RETURN(Checkpoint part,
                     OpenFile(absl::StrCat(directory, "/", shard)));
    for (const auto& [name, tensor] : part.tensors_) {
      const auto mapped = weight_map.find(name);
      if (mapped != weight_map.end() && mapped->second == shard) continue;
      return InvalidTensor(
          tensor.file, name,
          absl::StrCat(
              "is here, but ", index_path, " says ",
              mapped == weight_map.end() ? "nowhere" : mapped->second));
    }
    result.files_.push_back(std::move(part.files_.front()));
    result.tensors_.merge(part.tensors_);
  }
  for (const auto& [name, shard] : weight_map) {
    if (result.tensors_.count(name) > 0) continue;
    return InvalidTensor(index_path, name,
                         absl::StrCat("is not in ", directory, "/", shard));
  }
  return result;
}

const StoredTensor* Checkpoint::Find(absl::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

uint64_t Checkpoint::total_bytes() const {
  uint64_t total = 0;
  for (const MappedFile& file : files_) total += file.bytes().size();
  return total;
}

}  // namespace overfill
