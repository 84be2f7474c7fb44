#include "engine/tokenizer/byte_level.h"

#include <array>

#include "engine/tokenizer/unicode.h"

namespace overfill {
namespace {

constexpr bool IsPrintable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
         byte >= 0xAE;
}

// Printable bytes stand for themselves, the others for 256, 257, ... in order.
constexpr std::array<char32_t, 256> MakeChars() {
  std::array<char32_t, 256> chars{};
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    chars[byte] = IsPrintable(byte) ? static_cast<char32_t>(byte) : next++;
  }
  return chars;
}

constexpr std::array<char32_t, 256> kChars = MakeChars();
constexpr size_t kNumChars = 256 + 68;

constexpr std::array<int16_t, kNumChars> MakeBytes() {
  std::array<int16_t, kNumChars> bytes{};
  for (int16_t& byte : bytes) byte = -1;
  for (int16_t byte = 0; byte < 256; ++byte) bytes[kChars[byte]] = byte;
  return bytes;
}

constexpr std::array<int16_t, kNumChars> kBytes = MakeBytes();

}  // namespace

char32_t ByteLevelChar(uint8_t byte) { return kChars[byte]; }

std::optional<std::string> ByteLevelBytes(absl::string_view token) {
  std::string result;
  for (size_t pos = 0; pos < token.size();) {
    const char32_t c = NextChar(token, &pos);
    if (c >= kNumChars || kBytes[c] < 0) return std::nullopt;
    result.push_back(static_cast<char>(kBytes[c]));
  }
  return result;
}

}  // namespace overfill
