#include "engine/tokenizer/spec_components.h"

#include <algorithm>
#include <limits>

#include "absl/strings/escaping.h"
#include "base/status_macros.h"
#include "engine/tokenizer/unicode.h"

namespace overfill {
namespace {

// A bound on what sequences of steps can cost for each text.
constexpr size_t kMaxSteps = 32;

constexpr size_t kMaxPrependBytes = 64;

// How much longer the replacements of a component can make a text, together.
class Growth {
 public:
  absl::Status Add(absl::string_view pattern, absl::string_view content,
                   const ComponentParser& at) {
    constexpr double kMax = 16;
    factor_ *= std::max(1.0, static_cast<double>(content.size()) /
                                 static_cast<double>(pattern.size()));
    if (factor_ <= kMax) return absl::OkStatus();
    return at.Error(absl::StrCat("Replace: could make a text more than ", kMax,
                                 " times as long, which is not supported"));
  }

 private:
  double factor_ = 1;
};

// The type of a component.
absl::StatusOr<std::string> TypeOf(const Json& component,
                                   const ComponentParser& at) {
  if (!component.is_object()) return at.Error("must be an object");
  ASSIGN_OR_RETURN(auto type, JsonString(component, "type", at.name()));
  if (!type) return at.Error("has no type");
  return *std::move(type);
}

// The components of a Sequence, any other component as it is. Sequences inside
// of sequences are laid out flat, which means the same.
absl::Status Flatten(const Json& component, const char* list_key,
                     const ComponentParser& at,
                     std::vector<const Json*>* result) {
  ASSIGN_OR_RETURN(const std::string type, TypeOf(component, at));
  if (type != "Sequence") {
    if (result->size() == kMaxSteps) return at.Error("has too many steps");
    result->push_back(&component);
    return absl::OkStatus();
  }
  const Json* list = FindJson(component, list_key);
  if (list == nullptr || !list->is_array()) {
    return at.Error(absl::StrCat("Sequence: ", list_key, " must be a list"));
  }
  for (const Json& element : *list) {
    RETURN_IF_ERROR(Flatten(element, list_key, at, result));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<const Json*>> Steps(const Json& root,
                                               const char* key,
                                               const char* list_key,
                                               const ComponentParser& at) {
  std::vector<const Json*> result;
  const Json* component = FindJson(root, key);
  if (component != nullptr) {
    RETURN_IF_ERROR(Flatten(*component, list_key, at, &result));
  }
  return result;
}

absl::Status Unsupported(absl::string_view type, const ComponentParser& at) {
  return at.Error(absl::StrCat(QuoteToken(type), " is not supported"));
}

// pattern: {"String": text}. A Regex here is refused.
absl::StatusOr<std::string> ReadStringPattern(const Json& step,
                                              const ComponentParser& at) {
  const Json* pattern = FindJson(step, "pattern");
  if (pattern == nullptr || !pattern->is_object()) {
    return at.Error("pattern must be an object");
  }
  if (FindJson(*pattern, "Regex") != nullptr) {
    return at.Error("a pattern of kind Regex is not supported");
  }
  ASSIGN_OR_RETURN(auto text, JsonString(*pattern, "String", at.name()));
  if (!text || text->empty()) return at.Error("pattern must not be empty");
  return *std::move(text);
}

absl::StatusOr<std::string> ReadString(const Json& step, const char* key,
                                       const ComponentParser& at) {
  ASSIGN_OR_RETURN(auto text, JsonString(step, key, at.name()));
  if (!text) return at.Error(absl::StrCat(key, " is missing"));
  return *std::move(text);
}

bool IsOneCharacter(absl::string_view text) {
  return !text.empty() && IsValidUtf8(text) &&
         DecodeUtf8(text, 0).size_bytes == text.size();
}

absl::StatusOr<PreTokenizerStep> ReadSplit(const Json& json,
                                           const ComponentParser& at) {
  const Json* pattern = FindJson(json, "pattern");
  if (pattern == nullptr || !pattern->is_object()) {
    return at.Error("Split: pattern must be an object");
  }
  if (FindJson(*pattern, "Regex") == nullptr) {
    return at.Error("Split: only a pattern of kind Regex is supported");
  }
  ASSIGN_OR_RETURN(const std::string regex, ReadString(*pattern, "Regex", at));
  const auto known = FindSplitPattern(regex);
  if (!known) {
    return at.Error(absl::StrCat("Split: the expression \"",
                                 absl::CHexEscape(regex.substr(0, 400)),
                                 "\" is not supported"));
  }
  ASSIGN_OR_RETURN(const std::string behavior,
                   ReadString(json, "behavior", at));
  ASSIGN_OR_RETURN(const auto invert, JsonBool(json, "invert", at.name()));
  // The known expressions match every character, so that keeping the matches
  // and removing what lies between them are the same.
  const bool keeps_matches =
      (behavior == "Isolated" && !invert.value_or(false)) ||
      (behavior == "Removed" && invert.value_or(false));
  if (!keeps_matches) {
    return at.Error(absl::StrCat("Split: behavior ", QuoteToken(behavior),
                                 invert.value_or(false) ? " inverted" : "",
                                 " is not supported"));
  }
  PreTokenizerStep step;
  step.kind = PreTokenizerStep::Kind::kSplit;
  step.pattern = *known;
  return step;
}

absl::StatusOr<PreTokenizerStep> ReadByteLevel(const Json& json,
                                               const ComponentParser& at) {
  PreTokenizerStep step;
  step.kind = PreTokenizerStep::Kind::kByteLevel;
  ASSIGN_OR_RETURN(const auto prefix,
                   JsonBool(json, "add_prefix_space", at.name()));
  ASSIGN_OR_RETURN(const auto use_regex,
                   JsonBool(json, "use_regex", at.name()));
  step.add_prefix_space = prefix.value_or(true);
  step.pattern =
      use_regex.value_or(true) ? SplitPattern::kGpt2 : SplitPattern::kNone;
  return step;
}

absl::StatusOr<PreTokenizerStep> ReadMetaspace(const Json& json,
                                               const ComponentParser& at) {
  PreTokenizerStep step;
  step.kind = PreTokenizerStep::Kind::kMetaspace;
  ASSIGN_OR_RETURN(step.replacement, ReadString(json, "replacement", at));
  if (!IsOneCharacter(step.replacement)) {
    return at.Error("Metaspace: replacement must be one character");
  }
  ASSIGN_OR_RETURN(const auto split, JsonBool(json, "split", at.name()));
  step.split = split.value_or(true);
  ASSIGN_OR_RETURN(const auto prefix,
                   JsonBool(json, "add_prefix_space", at.name()));
  ASSIGN_OR_RETURN(auto scheme, JsonString(json, "prepend_scheme", at.name()));
  if (!scheme) scheme = prefix.value_or(true) ? "always" : "never";
  if (*scheme == "always") {
    step.prepend_scheme = PrependScheme::kAlways;
  } else if (*scheme == "first") {
    step.prepend_scheme = PrependScheme::kFirst;
  } else if (*scheme != "never") {
    return at.Error(absl::StrCat("Metaspace: prepend_scheme ",
                                 QuoteToken(*scheme), " is not supported"));
  }
  if (!prefix.value_or(true) && step.prepend_scheme != PrependScheme::kNever) {
    return at.Error("Metaspace: add_prefix_space contradicts prepend_scheme");
  }
  return step;
}

struct Template {
  std::vector<int32_t> prefix, suffix;
};

// The ids that stand for a special token of a TemplateProcessing.
absl::StatusOr<std::vector<int32_t>> ReadTemplateToken(
    const Json& json, const std::string& id, const TokenizerSpec& spec,
    const ComponentParser& at) {
  const Json* table = FindJson(json, "special_tokens");
  const Json* entry = table == nullptr || !table->is_object()
                          ? nullptr
                          : FindJson(*table, id.c_str());
  const Json* ids = entry == nullptr || !entry->is_object()
                        ? nullptr
                        : FindJson(*entry, "ids");
  if (ids == nullptr || !ids->is_array()) {
    return at.Error(absl::StrCat("TemplateProcessing: special_tokens has no ",
                                 QuoteToken(id)));
  }
  const auto is_token = [&](int32_t token) {
    const auto in_vocab = std::lower_bound(
        spec.vocab.begin(), spec.vocab.end(), token,
        [](const auto& entry, int32_t id) { return entry.first < id; });
    if (in_vocab != spec.vocab.end() && in_vocab->first == token) return true;
    return std::any_of(spec.added_tokens.begin(), spec.added_tokens.end(),
                       [&](const AddedToken& a) { return a.id == token; });
  };
  std::vector<int32_t> result;
  for (const Json& value : *ids) {
    if (!value.is_number_unsigned() ||
        value.get<uint64_t>() > uint64_t{kMaxTokenId} ||
        !is_token(static_cast<int32_t>(value.get<uint64_t>()))) {
      return at.Error(absl::StrCat("TemplateProcessing: an id of ",
                                   QuoteToken(id), " is not a token"));
    }
    result.push_back(static_cast<int32_t>(value.get<uint64_t>()));
  }
  return result;
}

absl::StatusOr<Template> ReadTemplate(const Json& json,
                                      const TokenizerSpec& spec,
                                      const ComponentParser& at) {
  const Json* pieces = FindJson(json, "single");
  if (pieces == nullptr || !pieces->is_array()) {
    return at.Error("TemplateProcessing: single must be a list");
  }
  Template result;
  bool has_text = false;
  for (const Json& piece : *pieces) {
    const Json* token =
        piece.is_object() ? FindJson(piece, "SpecialToken") : nullptr;
    const Json* text =
        piece.is_object() ? FindJson(piece, "Sequence") : nullptr;
    if (token != nullptr && token->is_object()) {
      ASSIGN_OR_RETURN(const std::string id, ReadString(*token, "id", at));
      ASSIGN_OR_RETURN(const auto ids, ReadTemplateToken(json, id, spec, at));
      auto& side = has_text ? result.suffix : result.prefix;
      side.insert(side.end(), ids.begin(), ids.end());
      if (side.size() > kMaxSteps) {
        return at.Error("TemplateProcessing: single has too many tokens");
      }
    } else if (text != nullptr && text->is_object() && !has_text &&
               text->value("id", Json()) == Json("A")) {
      has_text = true;
    } else {
      return at.Error(
          "TemplateProcessing: single must hold special tokens and the "
          "sequence A once");
    }
  }
  if (!has_text) {
    return at.Error("TemplateProcessing: single leaves the text out");
  }
  return result;
}

absl::Status ReadStrip(const Json& json, const ComponentParser& at,
                       DecoderSpec* decoder) {
  ASSIGN_OR_RETURN(decoder->strip_content, ReadString(json, "content", at));
  if (!IsOneCharacter(decoder->strip_content)) {
    return at.Error("Strip: content must be one character");
  }
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  ASSIGN_OR_RETURN(const auto start,
                   JsonInt(json, "start", 0, kMax, at.name()));
  ASSIGN_OR_RETURN(const auto stop, JsonInt(json, "stop", 0, kMax, at.name()));
  if (stop.value_or(0) != 0) {
    return at.Error("Strip: stripping the end of a text is not supported");
  }
  decoder->strip_start = start.value_or(0);
  return absl::OkStatus();
}

}  // namespace

absl::Status ParseNormalizer(const Json& root, absl::string_view origin,
                             TokenizerSpec* spec) {
  const ComponentParser at(origin, "normalizer");
  ASSIGN_OR_RETURN(const auto steps,
                   Steps(root, "normalizer", "normalizers", at));
  Growth growth;
  for (const Json* json : steps) {
    ASSIGN_OR_RETURN(const std::string type, TypeOf(*json, at));
    NormalizerStep step;
    if (type == "NFC") {
      step.kind = NormalizerStep::Kind::kNfc;
    } else if (type == "Prepend") {
      step.kind = NormalizerStep::Kind::kPrepend;
      ASSIGN_OR_RETURN(step.content, ReadString(*json, "prepend", at));
      if (step.content.size() > kMaxPrependBytes) {
        return at.Error("Prepend: the text is too long");
      }
    } else if (type == "Replace") {
      step.kind = NormalizerStep::Kind::kReplace;
      ASSIGN_OR_RETURN(step.pattern, ReadStringPattern(*json, at));
      ASSIGN_OR_RETURN(step.content, ReadString(*json, "content", at));
      RETURN_IF_ERROR(growth.Add(step.pattern, step.content, at));
    } else {
      return Unsupported(type, at);
    }
    spec->normalizer.push_back(std::move(step));
  }
  return absl::OkStatus();
}

absl::Status ParsePreTokenizer(const Json& root, absl::string_view origin,
                               TokenizerSpec* spec) {
  const ComponentParser at(origin, "pre_tokenizer");
  ASSIGN_OR_RETURN(const auto steps,
                   Steps(root, "pre_tokenizer", "pretokenizers", at));
  bool has_metaspace = false;
  for (const Json* json : steps) {
    ASSIGN_OR_RETURN(const std::string type, TypeOf(*json, at));
    if (spec->byte_level) {
      return at.Error(
          absl::StrCat(QuoteToken(type), " behind ByteLevel is not supported"));
    }
    if (type == "Split") {
      ASSIGN_OR_RETURN(auto step, ReadSplit(*json, at));
      spec->pre_tokenizer.push_back(std::move(step));
    } else if (type == "ByteLevel") {
      ASSIGN_OR_RETURN(auto step, ReadByteLevel(*json, at));
      spec->pre_tokenizer.push_back(std::move(step));
      spec->byte_level = true;
    } else if (type == "Digits") {
      PreTokenizerStep step;
      step.kind = PreTokenizerStep::Kind::kDigits;
      ASSIGN_OR_RETURN(const auto individual,
                       JsonBool(*json, "individual_digits", at.name()));
      step.individual_digits = individual.value_or(false);
      spec->pre_tokenizer.push_back(std::move(step));
    } else if (type == "Metaspace" && !has_metaspace) {
      ASSIGN_OR_RETURN(auto step, ReadMetaspace(*json, at));
      spec->pre_tokenizer.push_back(std::move(step));
      has_metaspace = true;
    } else {
      return Unsupported(type, at);
    }
  }
  if (spec->byte_level && has_metaspace) {
    return at.Error("Metaspace with ByteLevel is not supported");
  }
  if (spec->byte_level && spec->byte_fallback) {
    return at.Error(
        "ByteLevel with the model's byte_fallback is not supported");
  }
  return absl::OkStatus();
}

absl::Status ParsePostProcessor(const Json& root, absl::string_view origin,
                                TokenizerSpec* spec) {
  const ComponentParser at(origin, "post_processor");
  ASSIGN_OR_RETURN(const auto steps,
                   Steps(root, "post_processor", "processors", at));
  for (const Json* json : steps) {
    ASSIGN_OR_RETURN(const std::string type, TypeOf(*json, at));
    if (type == "ByteLevel") continue;  // moves offsets, which we do not have
    if (type != "TemplateProcessing") return Unsupported(type, at);
    ASSIGN_OR_RETURN(const Template next, ReadTemplate(*json, *spec, at));
    spec->prefix_ids.insert(spec->prefix_ids.begin(), next.prefix.begin(),
                            next.prefix.end());
    spec->suffix_ids.insert(spec->suffix_ids.end(), next.suffix.begin(),
                            next.suffix.end());
  }
  return absl::OkStatus();
}

absl::Status ParseDecoder(const Json& root, absl::string_view origin,
                          TokenizerSpec* spec) {
  const ComponentParser at(origin, "decoder");
  ASSIGN_OR_RETURN(const auto steps, Steps(root, "decoder", "decoders", at));
  if (steps.empty())
    return at.Error("a tokenizer without one is not supported");
  DecoderSpec& decoder = spec->decoder;
  Growth growth;
  bool is_fused = false;
  bool has_strip = false;
  for (const Json* json : steps) {
    ASSIGN_OR_RETURN(const std::string type, TypeOf(*json, at));
    if (type == "ByteLevel" && steps.size() == 1) {
      decoder.byte_level = true;
    } else if (type == "Replace" && !decoder.byte_fallback && !is_fused) {
      ASSIGN_OR_RETURN(auto pattern, ReadStringPattern(*json, at));
      ASSIGN_OR_RETURN(auto content, ReadString(*json, "content", at));
      RETURN_IF_ERROR(growth.Add(pattern, content, at));
      decoder.replacements.emplace_back(std::move(pattern), std::move(content));
    } else if (type == "ByteFallback" && !decoder.byte_fallback && !is_fused) {
      decoder.byte_fallback = true;
    } else if (type == "Fuse") {
      is_fused = true;
    } else if (type == "Strip" && is_fused && !has_strip) {
      has_strip = true;
      RETURN_IF_ERROR(ReadStrip(*json, at, &decoder));
    } else {
      return at.Error(
          absl::StrCat(QuoteToken(type), " at this place is not supported"));
    }
  }
  if (decoder.byte_level != spec->byte_level) {
    return at.Error(spec->byte_level
                        ? "must be ByteLevel, as the pre-tokenizer is"
                        : "is ByteLevel, but the pre-tokenizer is not");
  }
  if (decoder.byte_fallback != spec->byte_fallback) {
    return at.Error(spec->byte_fallback
                        ? "lacks the ByteFallback that the model has"
                        : "has a ByteFallback that the model lacks");
  }
  return absl::OkStatus();
}

}  // namespace overfill
