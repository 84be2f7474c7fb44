#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/tokenizer/build.h"
#include "engine/tokenizer/byte_level.h"

namespace overfill {
namespace {

// The byte that a token such as "<0x0A>" stands for.
std::optional<uint8_t> FallbackByte(absl::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') {
    return std::nullopt;
  }
  int value = 0;
  for (const char digit : token.substr(3, 2)) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(digit))) {
      return std::nullopt;
    }
    const auto lower = static_cast<unsigned char>(
        absl::ascii_tolower(static_cast<unsigned char>(digit)));
    value = value * 16 + (lower <= '9' ? lower - '0' : lower - 'a' + 10);
  }
  return static_cast<uint8_t>(value);
}

// What one token adds to the text before the text is put together.
std::string DecodedBytes(const DecoderSpec& decoder, absl::string_view token) {
  if (decoder.byte_level) {
    // A token with a character that spells no byte is an added token's text.
    auto bytes = ByteLevelBytes(token);
    return bytes ? *std::move(bytes) : std::string(token);
  }
  std::string text(token);
  for (const auto& [pattern, content] : decoder.replacements) {
    text = absl::StrReplaceAll(text, {{pattern, content}});
  }
  if (!decoder.byte_fallback) return text;
  const auto byte = FallbackByte(text);
  return byte ? std::string(1, static_cast<char>(*byte)) : text;
}

}  // namespace

absl::StatusOr<TokenTable> TokenTable::Make(const TokenizerSpec& spec,
                                            absl::string_view origin) {
  const size_t num_tokens = spec.vocab.size() + spec.added_tokens.size();
  int32_t highest = spec.vocab.back().first;
  if (!spec.added_tokens.empty()) {
    highest = std::max(highest, spec.added_tokens.back().id);
  }
  // The table has a row for every id, holes included.
  constexpr size_t kFreeHoles = size_t{1} << 20;
  if (static_cast<size_t>(highest) > kFreeHoles + 16 * num_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        origin, ": model: vocab: ids go up to ", highest, ", but there are no ",
        "more than ", num_tokens, " tokens"));
  }
  TokenTable table;
  table.flags_.resize(highest + 1);
  table.offsets_.resize(highest + 1);
  table.sizes_.resize(highest + 1);
  table.ids_.reserve(num_tokens);
  const auto add = [&](int32_t id, const std::string& token) {
    if (!table.ids_.emplace(token, id).second) return;  // in both lists
    table.flags_[id] |= kIsToken;
    table.SetBytes(id, DecodedBytes(spec.decoder, token));
  };
  for (const auto& [id, token] : spec.vocab) add(id, token);
  for (const AddedToken& token : spec.added_tokens) {
    add(token.id, token.content);
    if (token.special) table.flags_[token.id] |= kIsSpecial;
  }
  return table;
}

void TokenTable::SetBytes(int32_t id, absl::string_view bytes) {
  offsets_[id] = bytes_.size();
  sizes_[id] = static_cast<uint32_t>(bytes.size());
  bytes_.append(bytes.data(), bytes.size());
  max_bytes_ = std::max(max_bytes_, static_cast<int>(bytes.size()));
}

absl::string_view TokenTable::Bytes(int32_t id) const {
  if (!IsToken(id)) return {};
  return absl::string_view(bytes_).substr(offsets_[id], sizes_[id]);
}

std::optional<int32_t> TokenTable::Find(absl::string_view token) const {
  const auto it = ids_.find(token);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

}  // namespace overfill
