#include "engine/progress.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace overfill {
namespace {

// What takes no more than a few seconds needs no lines.
constexpr uint64_t kMinBytes = uint64_t{1} << 30;

uint64_t Tenths(uint64_t done, uint64_t total) { return done / (total / 10); }

}  // namespace

void Progress::Add(uint64_t bytes) {
  if (total_bytes_ <= kMinBytes) return;
  MutexLock lock(&mu_);
  const uint64_t before = Tenths(done_bytes_, total_bytes_);
  done_bytes_ = std::min(total_bytes_, done_bytes_ + bytes);
  const uint64_t after = Tenths(done_bytes_, total_bytes_);
  if (after == before) return;
  LogInfo(absl::StrCat(what_, ": ", done_bytes_ >> 20, " of ",
                       total_bytes_ >> 20, " MiB"));
}

}  // namespace overfill
