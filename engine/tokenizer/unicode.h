// UTF-8, the Unicode classes that pre-tokenizers ask for, and NFC.
//
// Classes and normalization follow utf8proc, which is Unicode 15.0 in
// Debian 12. A character that a later Unicode version added counts as
// unassigned here: neither letter nor number.
#ifndef OVERFILL_ENGINE_TOKENIZER_UNICODE_H_
#define OVERFILL_ENGINE_TOKENIZER_UNICODE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace overfill {

enum class Utf8Status {
  kValid,
  kInvalid,    // no character can begin like this
  kTruncated,  // the text ends inside a character that could still be valid
};

struct Utf8Char {
  char32_t code_point;  // U+FFFD unless kValid
  // Bytes of the character; unless kValid, of the maximal prefix that one
  // U+FFFD stands for (Unicode 3.9, "substitution of maximal subparts").
  uint8_t size_bytes;
  Utf8Status status;
};

// REQUIRES: pos < text.size().
Utf8Char DecodeUtf8(absl::string_view text, size_t pos);

bool IsValidUtf8(absl::string_view text);

// The offset of the first byte that is not part of a valid character;
// text.size() when all is valid.
size_t FindInvalidUtf8(absl::string_view text);

// Appends `bytes` to `out`, broken sequences as U+FFFD. With `is_end` false, a
// truncated character at the end is left out, as it may still be completed.
// Returns the number of bytes consumed.
size_t AppendLossyUtf8(absl::string_view bytes, bool is_end, std::string* out);

void AppendUtf8(char32_t code_point, std::string* out);

// One character of text that is known to be valid UTF-8; advances *pos.
inline char32_t NextChar(absl::string_view text, size_t* pos) {
  const auto byte = [&](size_t i) {
    return static_cast<uint8_t>(text[*pos + i]);
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) {
    *pos += 1;
    return lead;
  }
  char32_t result;
  if (lead < 0xE0) {
    result = (lead & 0x1F) << 6 | (byte(1) & 0x3Fu);
    *pos += 2;
  } else if (lead < 0xF0) {
    result = (lead & 0x0F) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
    *pos += 3;
  } else {
    result = (lead & 0x07) << 18 | (byte(1) & 0x3Fu) << 12 |
             (byte(2) & 0x3Fu) << 6 | (byte(3) & 0x3Fu);
    *pos += 4;
  }
  return result;
}

// Bits of CharClass().
inline constexpr uint8_t kLetter = 1;      // \p{L}
inline constexpr uint8_t kNumber = 2;      // \p{N}
inline constexpr uint8_t kSpace = 4;       // \s: White_Space
inline constexpr uint8_t kUpperLike = 8;   // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]
inline constexpr uint8_t kLowerLike = 16;  // [\p{Ll}\p{Lm}\p{Lo}\p{M}]
inline constexpr uint8_t kWord = 32;       // \w

uint8_t CharClass(char32_t code_point);

// Canonical composition. Takes valid UTF-8. Time is n log n in the worst case:
// a megabyte of combining marks is sorted, not bubbled.
std::string NormalizeNfc(absl::string_view text);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TOKENIZER_UNICODE_H_
