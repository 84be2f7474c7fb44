#include "engine/tokenizer/spec.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "engine/tokenizer/spec_components.h"

namespace overfill {
namespace {

using TokenIds = absl::flat_hash_map<absl::string_view, int32_t>;

absl::StatusOr<int32_t> ReadTokenId(const Json& value, absl::string_view token,
                                    const ComponentParser& at) {
  if (!value.is_number_unsigned() ||
      value.get<uint64_t>() > uint64_t{kMaxTokenId}) {
    return at.Error(absl::StrCat("the id of ", QuoteToken(token),
                                 " must be an integer between 0 and ",
                                 kMaxTokenId));
  }
  return static_cast<int32_t>(value.get<uint64_t>());
}

absl::Status ParseVocab(const Json& model, const ComponentParser& at,
                        TokenizerSpec* spec) {
  const Json* vocab = FindJson(model, "vocab");
  if (vocab == nullptr || !vocab->is_object() || vocab->empty()) {
    return at.Error("vocab must be an object that maps tokens to ids");
  }
  spec->vocab.reserve(vocab->size());
  for (const auto& [token, id] : vocab->items()) {
    ASSIGN_OR_RETURN(const int32_t number, ReadTokenId(id, token, at));
    spec->vocab.emplace_back(number, token);
  }
  std::sort(spec->vocab.begin(), spec->vocab.end());
  for (size_t i = 1; i < spec->vocab.size(); ++i) {
    if (spec->vocab[i].first != spec->vocab[i - 1].first) continue;
    return at.Error(absl::StrCat("vocab: id ", spec->vocab[i].first,
                                 " belongs to both ",
                                 QuoteToken(spec->vocab[i - 1].second), " and ",
                                 QuoteToken(spec->vocab[i].second)));
  }
  return absl::OkStatus();
}

// One element of `merges`: "left right", or ["left", "right"].
absl::StatusOr<std::pair<std::string, std::string>> ReadMerge(
    const Json& merge, size_t index, const ComponentParser& at) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
      merge[1].is_string()) {
    return std::make_pair(merge[0].get<std::string>(),
                          merge[1].get<std::string>());
  }
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos &&
        text.find(' ', space + 1) == std::string::npos) {
      return std::make_pair(text.substr(0, space), text.substr(space + 1));
    }
  }
  return at.Error(absl::StrCat("merges[", index,
                               "] must be \"left right\" or "
                               "[\"left\", \"right\"]"));
}

absl::Status ParseMerges(const Json& model, const TokenIds& token_ids,
                         const ComponentParser& at, TokenizerSpec* spec) {
  const Json* merges = FindJson(model, "merges");
  if (merges == nullptr || !merges->is_array()) {
    return at.Error("merges must be a list");
  }
  absl::flat_hash_set<uint64_t> seen;
  spec->merges.reserve(merges->size());
  for (size_t i = 0; i < merges->size(); ++i) {
    const Json& merge = (*merges)[i];
    // The first line of a merges.txt.
    if (merge.is_string() &&
        absl::StartsWith(merge.get_ref<const std::string&>(), "#version")) {
      continue;
    }
    ASSIGN_OR_RETURN(const auto pair, ReadMerge(merge, i, at));
    const auto id_of =
        [&](const std::string& token) -> absl::StatusOr<int32_t> {
      const auto it = token_ids.find(token);
      if (it != token_ids.end()) return it->second;
      return at.Error(absl::StrCat("merges[", i, "]: ", QuoteToken(token),
                                   " is not in the vocabulary"));
    };
    ASSIGN_OR_RETURN(const int32_t left, id_of(pair.first));
    ASSIGN_OR_RETURN(const int32_t right, id_of(pair.second));
    ASSIGN_OR_RETURN(const int32_t joined, id_of(pair.first + pair.second));
    if (pair.first.empty() || pair.second.empty()) {
      return at.Error(absl::StrCat("merges[", i, "]: joins an empty token"));
    }
    if (!seen.insert(PairKey(left, right)).second) {
      return at.Error(absl::StrCat("merges[", i, "]: ", QuoteToken(pair.first),
                                   " and ", QuoteToken(pair.second),
                                   " are merged twice"));
    }
    spec->merges.push_back({left, right, joined});
  }
  return absl::OkStatus();
}

absl::Status ParseModel(const Json& root, absl::string_view origin,
                        TokenizerSpec* spec) {
  ComponentParser at(origin, "model");
  const Json* model = FindJson(root, "model");
  if (model == nullptr || !model->is_object()) {
    return at.Error("must be an object");
  }
  ASSIGN_OR_RETURN(const auto type, JsonString(*model, "type", at.name()));
  // Old files leave the type out; they are BPE when they have merges.
  if (type.value_or("BPE") != "BPE") {
    return at.Error(absl::StrCat("type ", QuoteToken(*type),
                                 " is not supported; only BPE is"));
  }
  ASSIGN_OR_RETURN(const auto dropout,
                   JsonNumber(*model, "dropout", at.name()));
  if (dropout.value_or(0) != 0) {
    return at.Error("dropout is not supported");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ASSIGN_OR_RETURN(const auto affix, JsonString(*model, key, at.name()));
    if (!affix.value_or("").empty()) {
      return at.Error(absl::StrCat(key, " is not supported"));
    }
  }
  ASSIGN_OR_RETURN(const auto unk, JsonString(*model, "unk_token", at.name()));
  ASSIGN_OR_RETURN(const auto fuse, JsonBool(*model, "fuse_unk", at.name()));
  ASSIGN_OR_RETURN(const auto fallback,
                   JsonBool(*model, "byte_fallback", at.name()));
  ASSIGN_OR_RETURN(const auto ignore_merges,
                   JsonBool(*model, "ignore_merges", at.name()));
  spec->unk_token = unk.value_or("");
  spec->fuse_unk = fuse.value_or(false);
  spec->byte_fallback = fallback.value_or(false);
  spec->ignore_merges = ignore_merges.value_or(false);
  RETURN_IF_ERROR(ParseVocab(*model, at, spec));
  TokenIds token_ids;
  token_ids.reserve(spec->vocab.size());
  for (const auto& [id, token] : spec->vocab) token_ids.emplace(token, id);
  if (!spec->unk_token.empty() && !token_ids.contains(spec->unk_token)) {
    return at.Error(absl::StrCat("unk_token ", QuoteToken(spec->unk_token),
                                 " is not in the vocabulary"));
  }
  return ParseMerges(*model, token_ids, at, spec);
}

absl::StatusOr<AddedToken> ReadAddedToken(const Json& value,
                                          const ComponentParser& at) {
  if (!value.is_object()) return at.Error("every element must be an object");
  AddedToken token;
  ASSIGN_OR_RETURN(const auto content, JsonString(value, "content", at.name()));
  if (!content || content->empty()) {
    return at.Error("a token has no content");
  }
  token.content = *content;
  if (token.content.size() > kMaxAddedTokenBytes) {
    return at.Error(absl::StrCat(QuoteToken(token.content), " is longer than ",
                                 kMaxAddedTokenBytes, " bytes"));
  }
  const Json* id = FindJson(value, "id");
  if (id == nullptr) {
    return at.Error(absl::StrCat(QuoteToken(token.content), " has no id"));
  }
  ASSIGN_OR_RETURN(token.id, ReadTokenId(*id, token.content, at));
  const auto read_flag = [&](const char* key, bool* flag) -> absl::Status {
    ASSIGN_OR_RETURN(const auto set, JsonBool(value, key, at.name()));
    *flag = set.value_or(*flag);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(read_flag("single_word", &token.single_word));
  RETURN_IF_ERROR(read_flag("lstrip", &token.lstrip));
  RETURN_IF_ERROR(read_flag("rstrip", &token.rstrip));
  RETURN_IF_ERROR(read_flag("special", &token.special));
  token.normalized = !token.special;
  RETURN_IF_ERROR(read_flag("normalized", &token.normalized));
  return token;
}

absl::Status ParseAddedTokens(const Json& root, absl::string_view origin,
                              TokenizerSpec* spec) {
  ComponentParser at(origin, "added_tokens");
  const Json* list = FindJson(root, "added_tokens");
  if (list == nullptr) return absl::OkStatus();
  if (!list->is_array()) return at.Error("must be a list");
  absl::flat_hash_map<int32_t, absl::string_view> by_id;
  TokenIds by_token;
  for (const auto& [id, token] : spec->vocab) {
    by_id.emplace(id, token);
    by_token.emplace(token, id);
  }
  spec->added_tokens.reserve(list->size());
  absl::flat_hash_set<int32_t> added_ids;
  for (const Json& value : *list) {
    ASSIGN_OR_RETURN(AddedToken token, ReadAddedToken(value, at));
    const auto id_owner = by_id.find(token.id);
    const auto known = by_token.find(token.content);
    if ((id_owner != by_id.end() && id_owner->second != token.content) ||
        (known != by_token.end() && known->second != token.id)) {
      return at.Error(absl::StrCat(
          QuoteToken(token.content), " has id ", token.id, ", but ",
          known != by_token.end()
              ? absl::StrCat("its id in the vocabulary is ", known->second)
              : absl::StrCat("that is the id of ",
                             QuoteToken(id_owner->second))));
    }
    if (!added_ids.insert(token.id).second) {
      return at.Error(
          absl::StrCat(QuoteToken(token.content), " is listed twice"));
    }
    spec->added_tokens.push_back(std::move(token));
    const AddedToken& stored = spec->added_tokens.back();
    by_id.emplace(stored.id, stored.content);
    by_token.emplace(stored.content, stored.id);
  }
  std::sort(
      spec->added_tokens.begin(), spec->added_tokens.end(),
      [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return absl::OkStatus();
}

// Settings of the file that would change the ids of a text.
absl::Status CheckNoTruncationOrPadding(const Json& root,
                                        absl::string_view origin) {
  if (FindJson(root, "truncation") != nullptr) {
    return ComponentParser(origin, "truncation")
        .Error("is not supported: it would drop tokens of long texts");
  }
  const Json* padding = FindJson(root, "padding");
  if (padding == nullptr) return absl::OkStatus();
  // Padding to the longest of a batch leaves a single text as it is.
  const bool is_harmless =
      padding->is_object() &&
      padding->value("strategy", Json()) == Json("BatchLongest") &&
      FindJson(*padding, "pad_to_multiple_of") == nullptr;
  if (is_harmless) return absl::OkStatus();
  return ComponentParser(origin, "padding")
      .Error("is not supported: it would add tokens to short texts");
}

// A token in tokenizer_config.json: its text, or an object with `content`.
absl::StatusOr<std::optional<std::string>> ReadConfigToken(
    const Json& config, const char* key, const ComponentParser& at) {
  const Json* value = FindJson(config, key);
  if (value == nullptr) return std::optional<std::string>();
  if (value->is_object()) return JsonString(*value, "content", at.name());
  if (value->is_string()) {
    return std::optional<std::string>(value->get<std::string>());
  }
  return at.Error(absl::StrCat(key, " must be a token"));
}

// transformers adds the tokens of this table that tokenizer.json lacks. A
// checkpoint whose two files disagree has no single meaning.
absl::Status CheckAddedTokensDecoder(const Json& config,
                                     const ComponentParser& at,
                                     const TokenizerSpec& spec) {
  const Json* table = FindJson(config, "added_tokens_decoder");
  if (table == nullptr) return absl::OkStatus();
  if (!table->is_object()) return at.Error("must be an object");
  absl::flat_hash_map<std::string, absl::string_view> by_id;
  for (const auto& [id, token] : spec.vocab) by_id[absl::StrCat(id)] = token;
  for (const AddedToken& token : spec.added_tokens) {
    by_id[absl::StrCat(token.id)] = token.content;
  }
  for (const auto& [id, token] : table->items()) {
    const Json content =
        token.is_object() ? token.value("content", Json()) : Json();
    const auto it = by_id.find(id);
    if (content.is_string() && it != by_id.end() &&
        it->second == content.get_ref<const std::string&>()) {
      continue;
    }
    return at.Error(absl::StrCat(
        "says that id ", QuoteToken(id), " is ",
        content.is_string() ? QuoteToken(content.get<std::string>())
                            : "no token",
        ", but in tokenizer.json it is ",
        it == by_id.end() ? "no token" : QuoteToken(it->second)));
  }
  return absl::OkStatus();
}

absl::Status ParseConfig(absl::string_view text, absl::string_view origin,
                         TokenizerSpec* spec) {
  if (text.empty()) return absl::OkStatus();
  const std::string config_origin =
      absl::StrCat(origin, " (tokenizer_config.json)");
  ASSIGN_OR_RETURN(const Json config, ParseJsonObject(text, config_origin));
  RETURN_IF_ERROR(CheckAddedTokensDecoder(
      config, ComponentParser(config_origin, "added_tokens_decoder"), *spec));
  const ComponentParser at(config_origin, "special tokens");
  ASSIGN_OR_RETURN(spec->bos_token, ReadConfigToken(config, "bos_token", at));
  ASSIGN_OR_RETURN(spec->eos_token, ReadConfigToken(config, "eos_token", at));
  // The ids of a text come from tokenizer.json alone. Some loaders let this
  // flag overrule it, so a contradiction is worth a line in the log.
  ASSIGN_OR_RETURN(const auto adds_bos,
                   JsonBool(config, "add_bos_token", config_origin));
  if (adds_bos && spec->bos_token && *adds_bos == spec->prefix_ids.empty()) {
    LogWarning(absl::StrCat(
        config_origin, ": add_bos_token is ", *adds_bos ? "true" : "false",
        ", but the post-processor of tokenizer.json ",
        *adds_bos ? "adds no token" : "adds one", "; tokenizer.json is used"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string QuoteToken(absl::string_view token) {
  constexpr size_t kMaxBytes = 60;
  return absl::StrCat("\"", absl::CHexEscape(token.substr(0, kMaxBytes)),
                      token.size() > kMaxBytes ? "..." : "", "\"");
}

absl::StatusOr<TokenizerSpec> ParseTokenizerSpec(absl::string_view json,
                                                 absl::string_view config,
                                                 absl::string_view origin) {
  ASSIGN_OR_RETURN(const Json root, ParseJsonObject(json, origin));
  TokenizerSpec spec;
  ASSIGN_OR_RETURN(const auto version, JsonString(root, "version", origin));
  if (version.value_or("1.0") != "1.0") {
    return ComponentParser(origin, "version")
        .Error(absl::StrCat(QuoteToken(*version), " is not supported"));
  }
  RETURN_IF_ERROR(CheckNoTruncationOrPadding(root, origin));
  RETURN_IF_ERROR(ParseModel(root, origin, &spec));
  RETURN_IF_ERROR(ParseAddedTokens(root, origin, &spec));
  RETURN_IF_ERROR(ParseNormalizer(root, origin, &spec));
  RETURN_IF_ERROR(ParsePreTokenizer(root, origin, &spec));
  RETURN_IF_ERROR(ParsePostProcessor(root, origin, &spec));
  RETURN_IF_ERROR(ParseDecoder(root, origin, &spec));
  RETURN_IF_ERROR(ParseConfig(config, origin, &spec));
  return spec;
}

}  // namespace overfill
