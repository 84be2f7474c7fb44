#include "engine/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "base/check.h"

namespace overfill {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";

bool IsWhiteSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// Alphabetic characters of category So, and Join_Control: they too match \w.
bool IsOtherWord(char32_t c) {
  return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
         (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189) ||
         c == 0x200C || c == 0x200D;
}

uint8_t ComputeClass(char32_t c) {
  uint8_t result = IsWhiteSpace(c) ? kSpace : 0;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
      return result | kLetter | kUpperLike | kWord;
    case UTF8PROC_CATEGORY_LL:
      return result | kLetter | kLowerLike | kWord;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return result | kLetter | kUpperLike | kLowerLike | kWord;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
      return result | kUpperLike | kLowerLike | kWord;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
      return result | kNumber | kWord;
    case UTF8PROC_CATEGORY_NO:
      return result | kNumber;
    case UTF8PROC_CATEGORY_PC:
      return result | kWord;
    default:
      return result | (IsOtherWord(c) ? kWord : 0);
  }
}

constexpr char32_t kBmpSize = 0x10000;
using BmpTable = std::array<uint8_t, kBmpSize>;

const BmpTable& BmpClasses() {
  static const BmpTable& table = *[] {
    auto* result = new BmpTable;  // lives as long as the program
    for (char32_t c = 0; c < kBmpSize; ++c) (*result)[c] = ComputeClass(c);
    return result;
  }();
  return table;
}

bool IsContinuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// The range that the second byte of a sequence may take (Unicode table 3-7).
struct SecondByte {
  uint8_t min, max;
};

SecondByte SecondByteRange(uint8_t lead) {
  switch (lead) {
    case 0xE0:
      return {0xA0, 0xBF};
    case 0xED:
      return {0x80, 0x9F};
    case 0xF0:
      return {0x90, 0xBF};
    case 0xF4:
      return {0x80, 0x8F};
    default:
      return {0x80, 0xBF};
  }
}

int SequenceLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

// Canonical decomposition with every run of combining marks in order.
std::vector<utf8proc_int32_t> Decompose(absl::string_view text) {
  std::vector<utf8proc_int32_t> result;
  result.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const auto c = static_cast<utf8proc_int32_t>(NextChar(text, &pos));
    std::array<utf8proc_int32_t, 8> parts;
    int last_boundclass = 0;
    const auto num_parts = utf8proc_decompose_char(
        c, parts.data(), parts.size(),
        static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE),
        &last_boundclass);
    OVERFILL_CHECK(num_parts >= 1 &&
                   num_parts <= utf8proc_ssize_t{parts.size()});
    result.insert(result.end(), parts.begin(), parts.begin() + num_parts);
  }
  const auto combining_class = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  for (size_t begin = 0; begin < result.size();) {
    if (combining_class(result[begin]) == 0) {
      ++begin;
      continue;
    }
    size_t end = begin + 1;
    while (end < result.size() && combining_class(result[end]) != 0) ++end;
    if (end - begin > 1) {
      std::stable_sort(result.begin() + begin, result.begin() + end,
                       [&](utf8proc_int32_t a, utf8proc_int32_t b) {
                         return combining_class(a) < combining_class(b);
                       });
    }
    begin = end;
  }
  return result;
}

}  // namespace

Utf8Char DecodeUtf8(absl::string_view text, size_t pos) {
  const auto lead = static_cast<uint8_t>(text[pos]);
  const int length = SequenceLength(lead);
  if (length == 1) return {lead, 1, Utf8Status::kValid};
  if (length == 0) return {0xFFFD, 1, Utf8Status::kInvalid};
  const SecondByte range = SecondByteRange(lead);
  char32_t c = lead & (0xFF >> (length + 1));
  for (int i = 1; i < length; ++i) {
    const auto size = static_cast<uint8_t>(i);
    if (pos + i >= text.size()) return {0xFFFD, size, Utf8Status::kTruncated};
    const auto byte = static_cast<uint8_t>(text[pos + i]);
    const bool fits =
        i == 1 ? byte >= range.min && byte <= range.max : IsContinuation(byte);
    if (!fits) return {0xFFFD, size, Utf8Status::kInvalid};
    c = c << 6 | (byte & 0x3F);
  }
  return {c, static_cast<uint8_t>(length), Utf8Status::kValid};
}

size_t FindInvalidUtf8(absl::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    if (static_cast<uint8_t>(text[pos]) < 0x80) {
      ++pos;
      continue;
    }
    const Utf8Char c = DecodeUtf8(text, pos);
    if (c.status != Utf8Status::kValid) return pos;
    pos += c.size_bytes;
  }
  return pos;
}

bool IsValidUtf8(absl::string_view text) {
  return FindInvalidUtf8(text) == text.size();
}

size_t AppendLossyUtf8(absl::string_view bytes, bool is_end, std::string* out) {
  size_t pos = 0;
  size_t copied = 0;  // bytes before this one are in `out` already
  while (pos < bytes.size()) {
    if (static_cast<uint8_t>(bytes[pos]) < 0x80) {
      ++pos;
      continue;
    }
    const Utf8Char c = DecodeUtf8(bytes, pos);
    if (c.status == Utf8Status::kTruncated && !is_end) break;
    if (c.status != Utf8Status::kValid) {
      out->append(bytes.data() + copied, pos - copied);
      out->append(kReplacement.data(), kReplacement.size());
      copied = pos + c.size_bytes;
    }
    pos += c.size_bytes;
  }
  out->append(bytes.data() + copied, pos - copied);
  return pos;
}

void AppendUtf8(char32_t c, std::string* out) {
  const auto put = [&](char32_t byte) {
    out->push_back(static_cast<char>(byte));
  };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

uint8_t CharClass(char32_t c) {
  static const BmpTable& table = BmpClasses();
  return c < kBmpSize ? table[c] : ComputeClass(c);
}

std::string NormalizeNfc(absl::string_view text) {
  // Every text of characters below U+0300 is its own composition. The lead
  // bytes of U+0300 and above are 0xCC and above.
  const bool is_plain = std::all_of(text.begin(), text.end(), [](char byte) {
    return static_cast<uint8_t>(byte) < 0xCC;
  });
  if (is_plain) return std::string(text);
  std::vector<utf8proc_int32_t> code_points = Decompose(text);
  const utf8proc_ssize_t size = utf8proc_normalize_utf32(
      code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()),
      static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  OVERFILL_CHECK(size >= 0);
  std::string result;
  result.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < size; ++i) {
    AppendUtf8(static_cast<char32_t>(code_points[i]), &result);
  }
  return result;
}

}  // namespace overfill
