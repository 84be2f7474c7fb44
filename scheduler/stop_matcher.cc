#include "scheduler/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace overfill {
namespace {

// The longest prefix of `text` that ends with `byte`, where the first
// `length` bytes have matched so far.
int32_t Extend(absl::string_view text, const std::vector<int32_t>& fallback,
               int32_t length, char byte) {
  while (length > 0 && text[length] != byte) length = fallback[length - 1];
  return text[length] == byte ? length + 1 : 0;
}

}  // namespace

StopMatcher::StopMatcher(const std::vector<std::string>& stops,
                         bool include_stop)
    : lengths_(stops.size(), 0), include_stop_(include_stop) {
  auto patterns = std::make_shared<std::vector<Pattern>>();
  for (const std::string& stop : stops) {
    OVERFILL_CHECK(!stop.empty()) << "an empty stop string";
    Pattern pattern{.text = stop, .fallback = {0}};
    for (size_t i = 1; i < stop.size(); ++i) {
      pattern.fallback.push_back(
          Extend(stop, pattern.fallback, pattern.fallback.back(), stop[i]));
    }
    patterns->push_back(std::move(pattern));
  }
  patterns_ = std::move(patterns);
}

const StopMatcher::Pattern* StopMatcher::Advance(char byte) {
  const Pattern* longest = nullptr;
  for (size_t i = 0; i < lengths_.size(); ++i) {
    const Pattern& pattern = (*patterns_)[i];
    lengths_[i] = Extend(pattern.text, pattern.fallback, lengths_[i], byte);
    if (static_cast<size_t>(lengths_[i]) < pattern.text.size()) continue;
    if (!longest || pattern.text.size() > longest->text.size()) {
      longest = &pattern;
    }
  }
  return longest;
}

std::string StopMatcher::Append(absl::string_view text) {
  OVERFILL_CHECK(!matched_.has_value()) << "text behind a stop string";
  for (char byte : text) {
    held_.push_back(byte);
    const Pattern* match = Advance(byte);
    if (match == nullptr) continue;
    matched_ = match->text;
    if (!include_stop_) held_.resize(held_.size() - match->text.size());
    return std::exchange(held_, {});
  }
  int32_t held = 0;
  for (int32_t length : lengths_) held = std::max(held, length);
  std::string certain = held_.substr(0, held_.size() - held);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopMatcher::Flush() { return std::exchange(held_, {}); }

}  // namespace overfill
