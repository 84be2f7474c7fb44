// Cuts text into the words that byte-pair encoding works on.
//
// The regular expressions of `Split` are never run: a pattern is recognized by
// its exact text and has a hand-written scanner that reads every character a
// bounded number of times. A pattern without a scanner is refused at load, so
// no tokenizer file can bring an expression that backtracks without end.
#ifndef OVERFILL_ENGINE_TOKENIZER_PRETOKENIZER_H_
#define OVERFILL_ENGINE_TOKENIZER_PRETOKENIZER_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace overfill {

enum class SplitPattern {
  kNone,
  kGpt2,    // ByteLevel with use_regex
  kLlama3,  // as cl100k: numbers in groups of up to three digits
  kQwen2,   // as kLlama3 with single digits
  kTekken,  // words also end where lower case turns to upper case
  kO200k,   // kTekken with contractions and groups of three digits
};

// The scanner for the expression, if there is one.
std::optional<SplitPattern> FindSplitPattern(absl::string_view regex);

// The end of the word that begins at `pos`. Takes valid UTF-8.
// REQUIRES: pos < text.size(), pattern != kNone.
size_t WordEnd(SplitPattern pattern, absl::string_view text, size_t pos);

enum class PrependScheme { kNever, kFirst, kAlways };

struct PreTokenizerStep {
  enum class Kind { kSplit, kDigits, kByteLevel, kMetaspace };
  Kind kind = Kind::kSplit;
  SplitPattern pattern = SplitPattern::kNone;  // kSplit, kByteLevel
  bool individual_digits = false;              // kDigits
  bool add_prefix_space = false;               // kByteLevel
  // kMetaspace
  std::string replacement;
  PrependScheme prepend_scheme = PrependScheme::kNever;
  bool split = false;
};

// Immutable, thread-safe.
class PreTokenizer {
 public:
  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps)
      : steps_(std::move(steps)) {}

  // Calls `sink` for every word in order. A word is valid only during its
  // call. `is_text_start`: `text` stands at the very start of the input.
  void Run(absl::string_view text, bool is_text_start,
           absl::FunctionRef<void(absl::string_view)> sink) const;

 private:
  void RunFrom(size_t step, absl::string_view text, bool is_text_start,
               absl::FunctionRef<void(absl::string_view)> sink) const;

  std::vector<PreTokenizerStep> steps_;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TOKENIZER_PRETOKENIZER_H_
