#include "base/phase_times.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace overfill {

void PhaseTimes::EndPhase(absl::string_view name, absl::Time now) {
  auto found =
      std::find_if(phases_.begin(), phases_.end(),
                   [&](const auto& phase) { return phase.first == name; });
  if (found == phases_.end()) {
    found = phases_.insert(phases_.end(),
                           {std::string(name), absl::ZeroDuration()});
  }
  found->second += now - phase_begin_;
  phase_begin_ = now;
}

std::string PhaseTimes::ToString() const {
  std::string text;
  for (const auto& [name, time] : phases_) {
    absl::StrAppend(
        &text, text.empty() ? "" : ", ", name, " ",
        absl::FormatDuration(absl::Trunc(time, absl::Milliseconds(1))));
  }
  return text;
}

}  // namespace overfill
