// Lines in the log while a long piece of start-up work goes on.
#ifndef OVERFILL_ENGINE_PROGRESS_H_
#define OVERFILL_ENGINE_PROGRESS_H_

#include <cstdint>
#include <string>

#include "base/mutex.h"

namespace overfill {

// Silent where the work is small. Thread-safe.
class Progress {
 public:
  // `what` begins each line: "loading DIR".
  Progress(std::string what, uint64_t total_bytes)
      : what_(std::move(what)), total_bytes_(total_bytes) {}
  // That many more bytes are done. Logs at each tenth of the whole.
  void Add(uint64_t bytes);

 private:
  const std::string what_;
  const uint64_t total_bytes_;
  Mutex mu_;
  uint64_t done_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_PROGRESS_H_
