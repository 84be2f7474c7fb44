// Tensors by name in safetensors files. Files come from outside: all of a
// header is checked before any of its offsets is used.
//
// A file is 8 bytes, the header's size as a little-endian integer; the header,
// a JSON object of {name: {dtype, shape, data_offsets: [begin, end]}}; and the
// data that the offsets count in. A file that breaks a rule is refused: every
// byte of the data belongs to exactly one tensor, an entry's offsets hold as
// many bytes as its shape and dtype say, and no name comes twice.
#ifndef OVERFILL_ENGINE_SAFETENSORS_H_
#define OVERFILL_ENGINE_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/file.h"
#include "kernels/tensor.h"

namespace overfill {

// One tensor of a file. The bytes live as long as the file's mapping.
struct StoredTensor {
  std::string dtype;  // as the file spells it: "BF16", "I64", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // row-major, dense, any alignment
  std::string file;                  // the path, for messages

  // The type that weights can have, or nullopt: an integer, an fp8 ...
  std::optional<DType> weight_dtype() const;
};
std::string ShapeString(const std::vector<int64_t>& shape);  // "[2, 3]"
// A name from a file as a message shows it: in quotes, escaped, and not too
// long.
std::string QuoteTensorName(absl::string_view name);

using StoredTensors = std::map<std::string, StoredTensor, std::less<>>;

// Larger headers are refused.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// The tensors of a file's bytes, which they point into. INVALID_ARGUMENT names
// `path`, and the tensor where one is at fault.
absl::StatusOr<StoredTensors> ParseSafetensors(std::span<const std::byte> bytes,
                                               const std::string& path);

// Which file of a sharded checkpoint holds each tensor: the weight_map of a
// model.safetensors.index.json. Shards are plain names of .safetensors files.
absl::StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(
    absl::string_view json, absl::string_view origin);

// The mapped files of one checkpoint. Immutable after Open; move-only.
class Checkpoint {
 public:
  // One file.
  static absl::StatusOr<Checkpoint> OpenFile(const std::string& path);
  // model.safetensors of the directory, or the shards that
  // model.safetensors.index.json names. NOT_FOUND when there is neither;
  // INVALID_ARGUMENT when there are both and the index is not one of the single
  // file, or when index and shards disagree.
  static absl::StatusOr<Checkpoint> OpenDirectory(const std::string& directory);

  const StoredTensors& tensors() const { return tensors_; }
  // Null where there is none.
  const StoredTensor* Find(absl::string_view name) const;
  // In the order of their names.
  const std::vector<MappedFile>& files() const { return files_; }
  // Where the checkpoint is, for messages: the file, or the index.
  const std::string& origin() const { return origin_; }
  uint64_t total_bytes() const;  // of all files

 private:
  explicit Checkpoint(std::string origin) : origin_(std::move(origin)) {}
  static absl::StatusOr<Checkpoint> OpenSharded(const std::string& directory,
                                                const std::string& index_path);

  std::string origin_;
  std::vector<MappedFile> files_;
  StoredTensors tensors_;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_SAFETENSORS_H_
