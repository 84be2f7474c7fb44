#include "engine/tokenizer/tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/check.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/build.h"
#include "engine/tokenizer/detokenizer.h"
#include "engine/tokenizer/pretokenizer.h"
#include "engine/tokenizer/spec.h"
#include "engine/tokenizer/unicode.h"

namespace overfill {

struct Tokenizer::Impl {
  TokenizerSpec spec;
  BpeModel bpe;
  PreTokenizer pre_tokenizer;
  AddedTokenMatcher raw_matcher;         // on the text as it comes
  AddedTokenMatcher normalized_matcher;  // on normalized text
  TokenTable tokens;
  std::optional<int32_t> bos_id, eos_id;
  SpecDigests digests;

  void EncodeText(absl::string_view text, bool is_text_start,
                  bool parse_special, WordCache* cache,
                  std::vector<int32_t>* ids) const;
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(
    const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/tokenizer.json");
  ASSIGN_OR_RETURN(const std::string json, ReadFile(path, kMaxFileBytes));
  std::string config;
  for (const char* name :
       {"tokenizer_config.json", "special_tokens_map.json"}) {
    const std::string config_path = absl::StrCat(model_dir, "/", name);
    if (!FileExists(config_path)) continue;
    ASSIGN_OR_RETURN(config, ReadFile(config_path, kMaxFileBytes));
    break;
  }
  return FromJson(json, config, path);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(
    absl::string_view tokenizer_json, absl::string_view config,
    absl::string_view origin) {
  if (tokenizer_json.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": is larger than ", kMaxFileBytes, " bytes"));
  }
  ASSIGN_OR_RETURN(TokenizerSpec spec,
                   ParseTokenizerSpec(tokenizer_json, config, origin));
  ASSIGN_OR_RETURN(BpeConfig bpe, MakeBpeConfig(spec, origin));
  ASSIGN_OR_RETURN(TokenTable tokens, TokenTable::Make(spec, origin));
  SpecDigests digests = DigestSpec(spec);
  auto impl = std::unique_ptr<Impl>(new Impl{std::move(spec),
                                             BpeModel(std::move(bpe)),
                                             {},
                                             {},
                                             {},
                                             std::move(tokens),
                                             {},
                                             {},
                                             digests});
  impl->pre_tokenizer = PreTokenizer(impl->spec.pre_tokenizer);
  for (const AddedToken& token : impl->spec.added_tokens) {
    if (token.normalized) {
      impl->normalized_matcher.Add(
          token, Normalize(impl->spec.normalizer, token.content));
    } else {
      impl->raw_matcher.Add(token, token.content);
    }
  }
  const auto find_id = [&](const std::optional<std::string>& token,
                           absl::string_view name,
                           std::optional<int32_t>* id) -> absl::Status {
    if (!token) return absl::OkStatus();
    *id = impl->tokens.Find(*token);
    if (*id) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(origin, " (tokenizer_config.json): ", name, " ",
                     QuoteToken(*token), " is not a token"));
  };
  RETURN_IF_ERROR(find_id(impl->spec.bos_token, "bos_token", &impl->bos_id));
  RETURN_IF_ERROR(find_id(impl->spec.eos_token, "eos_token", &impl->eos_id));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

void Tokenizer::Impl::EncodeText(absl::string_view text, bool is_text_start,
                                 bool parse_special, WordCache* cache,
                                 std::vector<int32_t>* ids) const {
  std::string normalized;
  if (!spec.normalizer.empty()) {
    normalized = Normalize(spec.normalizer, text);
    text = normalized;
  }
  normalized_matcher.Split(
      text, parse_special,
      [&](absl::string_view piece, size_t offset) {
        pre_tokenizer.Run(
            piece, is_text_start && offset == 0,
            [&](absl::string_view word) { bpe.Encode(word, cache, ids); });
      },
      [&](int32_t id) { ids->push_back(id); });
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(
    absl::string_view text, const EncodeOptions& options) const {
  const size_t invalid = FindInvalidUtf8(text);
  if (invalid < text.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text is not valid UTF-8 at byte ", invalid));
  }
  // In a short text too few words come again to pay for the cache.
  constexpr size_t kMinCachedBytes = 4096;
  WordCache cache;
  WordCache* used_cache = text.size() >= kMinCachedBytes ? &cache : nullptr;
  std::vector<int32_t> ids;
  const TokenizerSpec& spec = impl_->spec;
  if (options.add_special_tokens) ids = spec.prefix_ids;
  impl_->raw_matcher.Split(
      text, options.parse_special,
      [&](absl::string_view piece, size_t offset) {
        impl_->EncodeText(piece, offset == 0, options.parse_special, used_cache,
                          &ids);
      },
      [&](int32_t id) { ids.push_back(id); });
  if (options.add_special_tokens) {
    ids.insert(ids.end(), spec.suffix_ids.begin(), spec.suffix_ids.end());
  }
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids,
                              bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (skip_special_tokens && IsSpecial(id)) continue;
    const absl::string_view token = TokenBytes(id);
    bytes.append(token.data(), token.size());
  }
  std::string text;
  text.reserve(bytes.size());
  AppendLossyUtf8(bytes, /*is_end=*/true, &text);
  const DecoderSpec& decoder = impl_->spec.decoder;
  const std::string& strip = decoder.strip_content;
  size_t begin = 0;
  for (int64_t i = 0; i < decoder.strip_start; ++i) {
    if (text.compare(begin, strip.size(), strip) != 0) break;
    begin += strip.size();
  }
  return begin == 0 ? text : text.substr(begin);
}

int32_t Tokenizer::vocab_size() const { return impl_->tokens.size(); }

bool Tokenizer::IsToken(int32_t id) const { return impl_->tokens.IsToken(id); }

bool Tokenizer::IsSpecial(int32_t id) const {
  return impl_->tokens.IsSpecial(id);
}

std::optional<int32_t> Tokenizer::TokenId(absl::string_view token) const {
  return impl_->tokens.Find(token);
}

std::optional<int32_t> Tokenizer::bos_id() const { return impl_->bos_id; }
std::optional<int32_t> Tokenizer::eos_id() const { return impl_->eos_id; }

absl::string_view Tokenizer::TokenBytes(int32_t id) const {
  return impl_->tokens.Bytes(id);
}

int Tokenizer::max_token_bytes() const { return impl_->tokens.max_bytes(); }

absl::string_view Tokenizer::strip_text() const {
  return impl_->spec.decoder.strip_content;
}

int64_t Tokenizer::strip_count() const {
  return impl_->spec.decoder.strip_start;
}

const Sha256Digest& Tokenizer::digest() const { return impl_->digests.all; }

std::string Tokenizer::DescribeDifference(const Tokenizer& other) const {
  return overfill::DescribeDifference(impl_->spec, impl_->digests,
                                      other.impl_->spec, other.impl_->digests);
}

}  // namespace overfill
