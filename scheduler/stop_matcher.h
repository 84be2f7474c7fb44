// Finds stop strings in text that comes in pieces.
#ifndef OVERFILL_SCHEDULER_STOP_MATCHER_H_
#define OVERFILL_SCHEDULER_STOP_MATCHER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace overfill {

// Copyable: its state moves with a sequence. Not thread-safe.
//
// The match is the one that ends first in the text, and of those that end
// together the longest, so it does not depend on how the text was cut. Held
// back is only what may be the beginning of a match: the longest suffix that
// is a proper prefix of a stop string. Time is (bytes of text) x (stop
// strings), whatever they look like.
class StopMatcher {
 public:
  // No empty strings. `include_stop`: a match stays in the text.
  StopMatcher(const std::vector<std::string>& stops, bool include_stop);

  // The text that is certain now. CHECKs that there was no match before. After
  // a match nothing is held back.
  std::string Append(absl::string_view text);

  // What was held back; at the end of the text, without a match.
  std::string Flush();

  const std::optional<std::string>& matched() const { return matched_; }

 private:
  struct Pattern {
    std::string text;
    // [i]: the longest proper prefix of text[0..i] that is also its suffix.
    std::vector<int32_t> fallback;
  };

  // Takes one byte; the pattern that it completes, or null.
  const Pattern* Advance(char byte);

  std::shared_ptr<const std::vector<Pattern>> patterns_;
  // [pattern] how much of it the text so far ends with.
  std::vector<int32_t> lengths_;
  bool include_stop_;
  std::string held_;
  std::optional<std::string> matched_;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_STOP_MATCHER_H_
