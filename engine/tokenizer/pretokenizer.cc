#include "engine/tokenizer/pretokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "base/check.h"
#include "engine/tokenizer/unicode.h"

namespace overfill {
namespace {

struct NamedPattern {
  absl::string_view regex;
  SplitPattern pattern;
};

constexpr NamedPattern kPatterns[] = {
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
     R"(|\s+(?!\S)|\s+)",
     SplitPattern::kGpt2},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
     R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     SplitPattern::kLlama3},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
     R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     SplitPattern::kQwen2},
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*)"
     R"([\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?)"
     R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
     R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     SplitPattern::kTekken},
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*)"
     R"([\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
     R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+)"
     R"([\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
     R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     SplitPattern::kO200k},
};

constexpr uint8_t kLetterNumberSpace = kLetter | kNumber | kSpace;

// The scanners' view of the text: characters with their classes.
class Scanner {
 public:
  explicit Scanner(absl::string_view text) : text_(text) {}

  struct Char {
    char32_t c = 0;
    uint8_t char_class = 0;
    size_t end = 0;  // offset behind it; equals the offset at the text's end
  };

  bool AtEnd(size_t pos) const { return pos >= text_.size(); }

  Char At(size_t pos) const {
    Char result;
    result.end = pos;
    if (AtEnd(pos)) return result;
    result.c = NextChar(text_, &result.end);
    result.char_class = CharClass(result.c);
    return result;
  }

  // Skips characters that have one of the classes.
  size_t SkipAny(size_t pos, uint8_t classes) const {
    return SkipWhile(pos,
                     [&](const Char& c) { return c.char_class & classes; });
  }

  // [^\s\p{L}\p{N}]*
  size_t SkipSymbols(size_t pos) const {
    return SkipWhile(pos, [](const Char& c) {
      return (c.char_class & kLetterNumberSpace) == 0;
    });
  }

  size_t SkipBytes(size_t pos, absl::string_view bytes) const {
    while (!AtEnd(pos) && absl::StrContains(bytes, text_[pos])) ++pos;
    return pos;
  }

  // The end of a contraction such as 're at `pos`, or `pos`.
  size_t SkipContraction(size_t pos, bool ignore_case) const {
    if (AtEnd(pos) || text_[pos] != '\'') return pos;
    const Char first = At(pos + 1);
    const Char second = At(first.end);
    const char32_t a = Fold(first, ignore_case);
    const char32_t b = Fold(second, ignore_case);
    if (first.end == pos + 1) return pos;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return first.end;
    const bool is_pair = (a == 'r' && b == 'e') || (a == 'v' && b == 'e') ||
                         (a == 'l' && b == 'l');
    return is_pair ? second.end : pos;
  }

  // \s+(?!\S)|\s+ at a white space character.
  size_t SkipSpaces(size_t pos) const {
    size_t last = pos;  // where the run's last character begins
    size_t end = pos;
    for (Char c = At(pos); c.char_class & kSpace; c = At(end)) {
      last = end;
      end = c.end;
    }
    return AtEnd(end) || last == pos ? end : last;
  }

  // \s*[\r\n]+, else as SkipSpaces.
  size_t SkipLinesOrSpaces(size_t pos) const {
    size_t last_line_end = pos;
    size_t end = pos;
    for (Char c = At(pos); c.char_class & kSpace; c = At(end)) {
      end = c.end;
      if (c.c == '\r' || c.c == '\n') last_line_end = end;
    }
    return last_line_end > pos ? last_line_end : SkipSpaces(pos);
  }

 private:
  static char32_t Fold(const Char& c, bool ignore_case) {
    if (!ignore_case) return c.c;
    if (c.c >= 'A' && c.c <= 'Z') return c.c + ('a' - 'A');
    return c.c == 0x17F ? 's' : c.c;  // the long s folds to s
  }

  template <typename Predicate>
  size_t SkipWhile(size_t pos, Predicate matches) const {
    while (!AtEnd(pos)) {
      const Char c = At(pos);
      if (!matches(c)) break;
      pos = c.end;
    }
    return pos;
  }

  absl::string_view text_;
};

bool IsLineEnd(char32_t c) { return c == '\r' || c == '\n'; }

size_t Gpt2WordEnd(const Scanner& scanner, size_t pos) {
  const size_t contraction = scanner.SkipContraction(pos, false);
  if (contraction > pos) return contraction;
  const Scanner::Char first = scanner.At(pos);
  // Each kind of word may take one space in front.
  const size_t start = first.c == ' ' ? first.end : pos;
  const Scanner::Char head = start > pos ? scanner.At(start) : first;
  if (head.end > start) {
    if (head.char_class & kLetter) return scanner.SkipAny(start, kLetter);
    if (head.char_class & kNumber) return scanner.SkipAny(start, kNumber);
    if ((head.char_class & kSpace) == 0) return scanner.SkipSymbols(start);
  }
  return scanner.SkipSpaces(pos);
}

// What kLlama3, kQwen2, kTekken and kO200k share behind the letters.
size_t TailWordEnd(const Scanner& scanner, size_t pos,
                   const Scanner::Char& first, int max_digits,
                   absl::string_view trailing) {
  if (first.char_class & kNumber) {
    size_t end = first.end;
    for (int i = 1; i < max_digits; ++i) {
      const Scanner::Char c = scanner.At(end);
      if ((c.char_class & kNumber) == 0) break;
      end = c.end;
    }
    return end;
  }
  const size_t start = first.c == ' ' ? first.end : pos;
  const size_t symbols = scanner.SkipSymbols(start);
  if (symbols > start) return scanner.SkipBytes(symbols, trailing);
  return scanner.SkipLinesOrSpaces(pos);
}

size_t Llama3WordEnd(const Scanner& scanner, size_t pos, int max_digits) {
  const size_t contraction = scanner.SkipContraction(pos, true);
  if (contraction > pos) return contraction;
  const Scanner::Char first = scanner.At(pos);
  if (first.char_class & kLetter) return scanner.SkipAny(pos, kLetter);
  if ((first.char_class & kNumber) == 0 && !IsLineEnd(first.c)) {
    const size_t end = scanner.SkipAny(first.end, kLetter);
    if (end > first.end) return end;
  }
  return TailWordEnd(scanner, pos, first, max_digits, "\r\n");
}

// [upper]*[lower]+ at `pos`, greedy with the backtracking that the overlap of
// the two classes asks for; `pos` when it does not match.
size_t SkipUpperThenLower(const Scanner& scanner, size_t pos) {
  size_t end = pos;
  size_t behind_last_lower = pos;
  for (;;) {
    const Scanner::Char c = scanner.At(end);
    if ((c.char_class & kUpperLike) == 0) break;
    end = c.end;
    if (c.char_class & kLowerLike) behind_last_lower = end;
  }
  const size_t lower_end = scanner.SkipAny(end, kLowerLike);
  return lower_end > end ? lower_end : behind_last_lower;
}

// [upper]+[lower]* at `pos`, or `pos`.
size_t SkipUppersThenLower(const Scanner& scanner, size_t pos) {
  const size_t end = scanner.SkipAny(pos, kUpperLike);
  return end > pos ? scanner.SkipAny(end, kLowerLike) : pos;
}

size_t CasedWordEnd(const Scanner& scanner, size_t pos, bool contractions,
                    int max_digits) {
  const Scanner::Char first = scanner.At(pos);
  const bool may_be_prefix =
      (first.char_class & (kLetter | kNumber)) == 0 && !IsLineEnd(first.c);
  // An alternative tries with the one-character prefix first, then without.
  for (const auto skip : {SkipUpperThenLower, SkipUppersThenLower}) {
    for (const size_t start : {first.end, pos}) {
      if (start != pos && !may_be_prefix) continue;
      const size_t end = skip(scanner, start);
      if (end == start) continue;
      return contractions ? scanner.SkipContraction(end, true) : end;
    }
  }
  return TailWordEnd(scanner, pos, first, max_digits, "\r\n/");
}

size_t DigitsEnd(absl::string_view text, size_t pos, bool individual) {
  const Scanner scanner(text);
  const Scanner::Char first = scanner.At(pos);
  const bool is_number = first.char_class & kNumber;
  if (is_number && individual) return first.end;
  size_t end = first.end;
  while (!scanner.AtEnd(end)) {
    const Scanner::Char c = scanner.At(end);
    if (static_cast<bool>(c.char_class & kNumber) != is_number) break;
    end = c.end;
  }
  return end;
}

// The end of the piece at `pos` when every `mark` begins a piece.
size_t MarkedEnd(absl::string_view text, size_t pos, absl::string_view mark) {
  const size_t begin =
      absl::StartsWith(text.substr(pos), mark) ? pos + mark.size() : pos;
  return std::min(text.find(mark, begin), text.size());
}

std::string ReplaceSpaces(absl::string_view text, absl::string_view with) {
  std::string result;
  result.reserve(text.size() + text.size() / 4);
  for (const char byte : text) {
    if (byte == ' ') {
      result.append(with.data(), with.size());
    } else {
      result.push_back(byte);
    }
  }
  return result;
}

}  // namespace

std::optional<SplitPattern> FindSplitPattern(absl::string_view regex) {
  for (const NamedPattern& known : kPatterns) {
    if (known.regex == regex) return known.pattern;
  }
  return std::nullopt;
}

size_t WordEnd(SplitPattern pattern, absl::string_view text, size_t pos) {
  const Scanner scanner(text);
  switch (pattern) {
    case SplitPattern::kNone:
      break;
    case SplitPattern::kGpt2:
      return Gpt2WordEnd(scanner, pos);
    case SplitPattern::kLlama3:
      return Llama3WordEnd(scanner, pos, 3);
    case SplitPattern::kQwen2:
      return Llama3WordEnd(scanner, pos, 1);
    case SplitPattern::kTekken:
      return CasedWordEnd(scanner, pos, false, 1);
    case SplitPattern::kO200k:
      return CasedWordEnd(scanner, pos, true, 3);
  }
  OVERFILL_CHECK(false) << "no scanner";
  return text.size();
}

void PreTokenizer::Run(absl::string_view text, bool is_text_start,
                       absl::FunctionRef<void(absl::string_view)> sink) const {
  RunFrom(0, text, is_text_start, sink);
}

void PreTokenizer::RunFrom(
    size_t step, absl::string_view text, bool is_text_start,
    absl::FunctionRef<void(absl::string_view)> sink) const {
  if (text.empty()) return;
  if (step == steps_.size()) return sink(text);
  const PreTokenizerStep& current = steps_[step];
  const auto cut = [&](absl::string_view whole, auto end_of) {
    for (size_t pos = 0; pos < whole.size();) {
      const size_t end = end_of(whole, pos);
      OVERFILL_DCHECK(end > pos && end <= whole.size());
      RunFrom(step + 1, whole.substr(pos, end - pos), is_text_start && pos == 0,
              sink);
      pos = end;
    }
  };
  const auto by_pattern = [&](absl::string_view whole, size_t pos) {
    return WordEnd(current.pattern, whole, pos);
  };
  const auto as_whole = [](absl::string_view whole, size_t) {
    return whole.size();
  };
  switch (current.kind) {
    case PreTokenizerStep::Kind::kSplit:
      return cut(text, by_pattern);
    case PreTokenizerStep::Kind::kDigits:
      return cut(text, [&](absl::string_view whole, size_t pos) {
        return DigitsEnd(whole, pos, current.individual_digits);
      });
    case PreTokenizerStep::Kind::kByteLevel: {
      std::string prefixed;
      if (current.add_prefix_space && text[0] != ' ') {
        prefixed.reserve(text.size() + 1);
        prefixed.push_back(' ');
        prefixed.append(text.data(), text.size());
        text = prefixed;
      }
      if (current.pattern == SplitPattern::kNone) return cut(text, as_whole);
      return cut(text, by_pattern);
    }
    case PreTokenizerStep::Kind::kMetaspace: {
      std::string replaced = ReplaceSpaces(text, current.replacement);
      const bool prepends =
          current.prepend_scheme == PrependScheme::kAlways ||
          (current.prepend_scheme == PrependScheme::kFirst && is_text_start);
      if (prepends && !absl::StartsWith(replaced, current.replacement)) {
        replaced.insert(0, current.replacement);
      }
      if (!current.split) return cut(replaced, as_whole);
      return cut(replaced, [&](absl::string_view whole, size_t pos) {
        return MarkedEnd(whole, pos, current.replacement);
      });
    }
  }
}

}  // namespace overfill
