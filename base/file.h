// Files as whole pieces: read into a string, or mapped.
#ifndef OVERFILL_BASE_FILE_H_
#define OVERFILL_BASE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace overfill {

bool FileExists(const std::string& path);

// The whole file. NOT_FOUND when there is none, INVALID_ARGUMENT when it is
// larger than `max_bytes` or is no regular file. Messages begin with the path.
absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     uint64_t max_bytes);

// A file mapped read-only; the mapping lives as long as the object. Move-only.
// A file that another process truncates while it is mapped raises SIGBUS: the
// caller's model directory must not change under a running server.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  MappedFile(std::string path, const std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace overfill

#endif  // OVERFILL_BASE_FILE_H_
