// How long each part of a start took.
#ifndef OVERFILL_BASE_PHASE_TIMES_H_
#define OVERFILL_BASE_PHASE_TIMES_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace overfill {

// Phases follow each other without gaps. One thread at a time.
class PhaseTimes {
 public:
  // The first phase begins at `now`.
  explicit PhaseTimes(absl::Time now) : begin_(now), phase_begin_(now) {}

  // What went on since the last phase's end was `name`. A name that was there
  // before adds to its time.
  void EndPhase(absl::string_view name, absl::Time now);

  absl::Duration total() const { return phase_begin_ - begin_; }
  // In the order of their first ends: "hashing 1.52s, weights 3.1s".
  std::string ToString() const;

 private:
  const absl::Time begin_;
  absl::Time phase_begin_;
  std::vector<std::pair<std::string, absl::Duration>> phases_;
};

}  // namespace overfill

#endif  // OVERFILL_BASE_PHASE_TIMES_H_
