#include "engine/tokenizer/added_tokens.h"

#include <algorithm>

#include "engine/tokenizer/unicode.h"

namespace overfill {
namespace {

uint64_t ChildKey(int32_t node, char byte) {
  return uint64_t{static_cast<uint32_t>(node)} << 8 |
         static_cast<uint8_t>(byte);
}

// The offset of the character that ends at `end`. REQUIRES: end > 0.
size_t CharBefore(absl::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) {
    --begin;
  }
  return begin;
}

uint8_t ClassAt(absl::string_view text, size_t pos) {
  return CharClass(NextChar(text, &pos));
}

bool StandsAlone(absl::string_view text, size_t begin, size_t end) {
  const bool word_before =
      begin > 0 && (ClassAt(text, CharBefore(text, begin)) & kWord) != 0;
  const bool word_after =
      end < text.size() && (ClassAt(text, end) & kWord) != 0;
  return !word_before && !word_after;
}

// Where the white space before `end` begins, at `limit` at the earliest.
size_t SpaceBegin(absl::string_view text, size_t limit, size_t end) {
  while (end > limit) {
    const size_t before = CharBefore(text, end);
    if ((ClassAt(text, before) & kSpace) == 0) break;
    end = before;
  }
  return std::max(end, limit);
}

// Where the white space at `begin` ends. Remembers the last run, so that many
// tokens inside one run do not each read all of it.
class SpaceEnd {
 public:
  explicit SpaceEnd(absl::string_view text) : text_(text) {}

  size_t Find(size_t begin) {
    if (begin >= known_begin_ && begin <= known_end_) return known_end_;
    size_t end = begin;
    while (end < text_.size()) {
      size_t next = end;
      if ((CharClass(NextChar(text_, &next)) & kSpace) == 0) break;
      end = next;
    }
    known_begin_ = begin;
    known_end_ = end;
    return end;
  }

 private:
  absl::string_view text_;
  size_t known_begin_ = 1;
  size_t known_end_ = 0;  // before known_begin_: nothing is known
};

}  // namespace

void AddedTokenMatcher::Add(const AddedToken& token,
                            absl::string_view pattern) {
  if (pattern.empty()) return;
  int32_t node = 0;
  for (const char byte : pattern) {
    nodes_[node].has_children = true;
    const auto next = static_cast<int32_t>(nodes_.size());
    const auto [it, is_new] = children_.try_emplace(ChildKey(node, byte), next);
    if (is_new) nodes_.emplace_back();
    node = it->second;
  }
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  may_begin_[static_cast<uint8_t>(pattern[0])] = true;
}

AddedTokenMatcher::Match AddedTokenMatcher::LongestAt(absl::string_view text,
                                                      size_t begin) const {
  Match result{nullptr, begin};
  int32_t node = 0;
  for (size_t pos = begin; pos < text.size() && nodes_[node].has_children;) {
    const auto it = children_.find(ChildKey(node, text[pos]));
    if (it == children_.end()) break;
    node = it->second;
    ++pos;
    if (nodes_[node].token >= 0) result = {&tokens_[nodes_[node].token], pos};
  }
  return result;
}

void AddedTokenMatcher::Split(
    absl::string_view text, bool parse_special,
    absl::FunctionRef<void(absl::string_view, size_t)> on_text,
    absl::FunctionRef<void(int32_t)> on_token) const {
  size_t done = 0;  // text before this offset has been reported
  SpaceEnd space_end(text);
  size_t pos = tokens_.empty() ? text.size() : 0;
  while (pos < text.size()) {
    if (!may_begin_[static_cast<uint8_t>(text[pos])]) {
      ++pos;
      continue;
    }
    const Match match = LongestAt(text, pos);
    if (match.token == nullptr) {
      ++pos;
      continue;
    }
    size_t begin = pos;
    size_t end = match.end;
    pos = match.end;
    const AddedToken& token = *match.token;
    if (token.special && !parse_special) continue;
    if (token.single_word && !StandsAlone(text, begin, end)) continue;
    if (token.lstrip) begin = SpaceBegin(text, done, begin);
    if (token.rstrip) end = space_end.Find(end);
    if (done < begin) on_text(text.substr(done, begin - done), done);
    on_token(token.id);
    done = end;
  }
  if (done < text.size()) on_text(text.substr(done), done);
}

}  // namespace overfill
