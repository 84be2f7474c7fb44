// Finds added tokens in text.
#ifndef OVERFILL_ENGINE_TOKENIZER_ADDED_TOKENS_H_
#define OVERFILL_ENGINE_TOKENIZER_ADDED_TOKENS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace overfill {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character is next to it
  bool lstrip = false;       // takes the white space to its left
  bool rstrip = false;       // takes the white space to its right
  bool normalized = false;   // is looked for in normalized text
  bool special = false;
};

// Added tokens longer than this are refused: the matcher may look at so many
// bytes from every position.
inline constexpr size_t kMaxAddedTokenBytes = 1024;

// Immutable, thread-safe.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() { nodes_.emplace_back(); }

  // `pattern` is the text to look for: the token's content, normalized where
  // the token asks for it.
  void Add(const AddedToken& token, absl::string_view pattern);

  // Cuts `text` into pieces in order. `on_text` gets plain text and its offset
  // (never empty), `on_token` the id of a token. Matches are leftmost, then
  // longest. With `parse_special` false, the text of a special token is a part
  // of the plain text around it.
  void Split(absl::string_view text, bool parse_special,
             absl::FunctionRef<void(absl::string_view, size_t)> on_text,
             absl::FunctionRef<void(int32_t)> on_token) const;

  bool empty() const { return tokens_.empty(); }

 private:
  struct Node {
    int32_t token = -1;  // index into tokens_
    bool has_children = false;
  };
  struct Match {
    const AddedToken* token;
    size_t end;
  };
  Match LongestAt(absl::string_view text, size_t begin) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;  // a trie over bytes; [0] is the root
  absl::flat_hash_map<uint64_t, int32_t> children_;  // by (node, byte)
  bool may_begin_[256] = {};
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TOKENIZER_ADDED_TOKENS_H_
