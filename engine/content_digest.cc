#include "engine/content_digest.h"

#include <algorithm>
#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "engine/parallel.h"
#include "engine/progress.h"

namespace overfill {
namespace {

constexpr size_t kPieceBytes = size_t{64} << 20;

struct Piece {
  std::span<const std::byte> bytes;
  Sha256Digest digest{};
};

absl::string_view DigestText(const Sha256Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

absl::string_view Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string BaseName(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

}  // namespace

Sha256Digest DigestFiles(const std::vector<MappedFile>& files, int num_threads,
                         const std::string& what) {
  Sha256 whole;
  std::vector<Piece> pieces;
  uint64_t total_bytes = 0;
  for (const MappedFile& file : files) {
    const auto bytes = file.bytes();
    whole.UpdateField(BaseName(file.path()));
    whole.UpdateField(absl::StrCat(bytes.size()));
    total_bytes += bytes.size();
    for (size_t begin = 0; begin < bytes.size(); begin += kPieceBytes) {
      pieces.push_back(
          {bytes.subspan(begin, std::min(kPieceBytes, bytes.size() - begin))});
    }
  }
  Progress progress(what, total_bytes);
  OVERFILL_CHECK_OK(ParallelTasks(num_threads, pieces.size(), [&](size_t i) {
    Piece& piece = pieces[i];
    Sha256 hash;
    hash.Update(Text(piece.bytes));
    piece.digest = hash.Finish();
    progress.Add(piece.bytes.size());
    return absl::OkStatus();
  }));
  for (const Piece& piece : pieces) {
    whole.UpdateField(DigestText(piece.digest));
  }
  return whole.Finish();
}

std::vector<Sha256Digest> DigestEachFile(const std::vector<MappedFile>& files,
                                         int num_threads,
                                         const std::string& what) {
  uint64_t total_bytes = 0;
  for (const MappedFile& file : files) total_bytes += file.bytes().size();
  Progress progress(what, total_bytes);
  std::vector<Sha256Digest> digests(files.size());
  OVERFILL_CHECK_OK(ParallelTasks(num_threads, files.size(), [&](size_t i) {
    Sha256 hash;
    const auto bytes = files[i].bytes();
    for (size_t begin = 0; begin < bytes.size(); begin += kPieceBytes) {
      const auto piece =
          bytes.subspan(begin, std::min(kPieceBytes, bytes.size() - begin));
      hash.Update(Text(piece));
      progress.Add(piece.size());
    }
    digests[i] = hash.Finish();
    return absl::OkStatus();
  }));
  return digests;
}

}  // namespace overfill
