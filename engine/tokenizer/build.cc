#include "engine/tokenizer/build.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "base/status_macros.h"
#include "engine/tokenizer/byte_level.h"
#include "engine/tokenizer/unicode.h"

namespace overfill {
namespace {

using TokenIds = absl::flat_hash_map<absl::string_view, int32_t>;

TokenIds VocabIds(const TokenizerSpec& spec) {
  TokenIds result;
  result.reserve(spec.vocab.size());
  for (const auto& [id, token] : spec.vocab) result.emplace(token, id);
  return result;
}

std::string ByteLevelSpelling(uint8_t byte) {
  std::string result;
  AppendUtf8(ByteLevelChar(byte), &result);
  return result;
}

std::string FallbackSpelling(uint8_t byte) {
  return absl::StrFormat("<0x%02X>", byte);
}

bool OccursInUtf8(int byte) {
  return byte < 0xC0 || (byte >= 0xC2 && byte <= 0xF4);
}

absl::Status FillByteTokens(const TokenizerSpec& spec, const TokenIds& ids,
                            absl::string_view origin, BpeConfig* config) {
  config->byte_tokens.fill(kNoToken);
  if (!spec.byte_level && !spec.byte_fallback) return absl::OkStatus();
  for (int byte = 0; byte < 256; ++byte) {
    const auto value = static_cast<uint8_t>(byte);
    const std::string spelling =
        spec.byte_level ? ByteLevelSpelling(value) : FallbackSpelling(value);
    const auto it = ids.find(spelling);
    if (it != ids.end()) config->byte_tokens[byte] = it->second;
    const bool may_lack =
        !OccursInUtf8(byte) || (spec.byte_level && !spec.unk_token.empty());
    if (it == ids.end() && !may_lack) {
      return absl::InvalidArgumentError(absl::StrCat(
          origin, ": model: the vocabulary lacks ", QuoteToken(spelling),
          ", the token of a byte; text would be lost"));
    }
  }
  return absl::OkStatus();
}

char32_t FirstChar(absl::string_view token) {
  size_t pos = 0;
  return NextChar(token, &pos);
}

char32_t LastChar(absl::string_view token) {
  size_t pos = token.size() - 1;
  while ((static_cast<uint8_t>(token[pos]) & 0xC0) == 0x80) --pos;
  return NextChar(token, &pos);
}

absl::string_view SpellingOf(const TokenizerSpec& spec, int32_t id) {
  const auto it = std::lower_bound(
      spec.vocab.begin(), spec.vocab.end(), id,
      [](const auto& entry, int32_t value) { return entry.first < value; });
  return it->second;
}

void FillCharTokens(const TokenizerSpec& spec, BpeConfig* config) {
  for (const auto& [id, token] : spec.vocab) {
    if (token.empty()) continue;
    size_t pos = 0;
    const char32_t c = NextChar(token, &pos);
    if (pos == token.size()) config->char_tokens.emplace(c, id);
  }
  for (const Merge& merge : config->merges) {
    config->joinable_chars.insert(
        PairKey(LastChar(SpellingOf(spec, merge.left)),
                FirstChar(SpellingOf(spec, merge.right))));
  }
}

}  // namespace

absl::StatusOr<BpeConfig> MakeBpeConfig(const TokenizerSpec& spec,
                                        absl::string_view origin) {
  const TokenIds ids = VocabIds(spec);
  absl::flat_hash_set<int32_t> special;
  for (const AddedToken& token : spec.added_tokens) {
    if (token.special) special.insert(token.id);
  }
  BpeConfig config;
  config.byte_level = spec.byte_level;
  config.byte_fallback = spec.byte_fallback;
  config.fuse_unk = spec.fuse_unk;
  if (!spec.unk_token.empty()) config.unk_token = ids.at(spec.unk_token);
  RETURN_IF_ERROR(FillByteTokens(spec, ids, origin, &config));
  if (!spec.byte_level && !spec.byte_fallback && spec.unk_token.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        origin,
        ": model: neither ByteLevel nor byte_fallback nor unk_token; "
        "text outside the vocabulary would be lost"));
  }
  // Text must not turn into a control token by merging.
  for (const Merge& merge : spec.merges) {
    if (!special.contains(merge.result)) config.merges.push_back(merge);
  }
  if (!spec.byte_level) FillCharTokens(spec, &config);
  if (!spec.ignore_merges) return config;
  for (const auto& [id, token] : spec.vocab) {
    if (token.empty() || special.contains(id)) continue;
    auto word = spec.byte_level ? ByteLevelBytes(token) : token;
    if (word) config.whole_words.emplace(*std::move(word), id);
  }
  return config;
}

std::string Normalize(const std::vector<NormalizerStep>& steps,
                      absl::string_view text) {
  std::string result(text);
  for (const NormalizerStep& step : steps) {
    switch (step.kind) {
      case NormalizerStep::Kind::kNfc:
        result = NormalizeNfc(result);
        break;
      case NormalizerStep::Kind::kPrepend:
        if (!result.empty()) result.insert(0, step.content);
        break;
      case NormalizerStep::Kind::kReplace:
        result = absl::StrReplaceAll(result, {{step.pattern, step.content}});
        break;
    }
  }
  return result;
}

}  // namespace overfill
