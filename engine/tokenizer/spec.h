// What a tokenizer.json says, checked and free of JSON.
#ifndef OVERFILL_ENGINE_TOKENIZER_SPEC_H_
#define OVERFILL_ENGINE_TOKENIZER_SPEC_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/pretokenizer.h"

namespace overfill {

// Ids lie in [0, kMaxTokenId].
inline constexpr int32_t kMaxTokenId = (1 << 24) - 1;

struct NormalizerStep {
  enum class Kind { kNfc, kPrepend, kReplace };
  Kind kind = Kind::kNfc;
  std::string pattern;  // kReplace; never empty
  std::string content;  // kPrepend, kReplace
};

struct DecoderSpec {
  bool byte_level = false;
  // Else, in this order: replacements within each token, <0xHH> to bytes, all
  // tokens to one text, and up to strip_start times strip_content off its
  // start.
  std::vector<std::pair<std::string, std::string>> replacements;
  bool byte_fallback = false;
  std::string strip_content;  // one character
  int64_t strip_start = 0;
};

struct TokenizerSpec {
  // The model. `vocab` is in order of ids; ids and tokens are unique.
  std::vector<std::pair<int32_t, std::string>> vocab;
  std::vector<Merge> merges;  // pairs are unique
  std::string unk_token;      // empty: none; else in the vocabulary
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;

  // In order of ids. Each is either in `vocab` with its id or in neither way.
  std::vector<AddedToken> added_tokens;
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  bool byte_level = false;  // the pre-tokenizer ends with ByteLevel
  DecoderSpec decoder;
  // What the post-processor puts around a text.
  std::vector<int32_t> prefix_ids, suffix_ids;

  // From the configuration, when it states them.
  std::optional<std::string> bos_token, eos_token;
};

// `origin` begins every error message, which also names the component at
// fault. `config` is the text of tokenizer_config.json, or empty.
absl::StatusOr<TokenizerSpec> ParseTokenizerSpec(absl::string_view json,
                                                 absl::string_view config,
                                                 absl::string_view origin);

// A piece of a tokenizer file, quoted and cut to a length fit for a message.
std::string QuoteToken(absl::string_view token);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TOKENIZER_SPEC_H_
