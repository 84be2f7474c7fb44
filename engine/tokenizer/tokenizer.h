// Text to token ids and back, as tokenizer.json of a Hugging Face checkpoint
// says: byte-level BPE (GPT-2, Llama 3, Qwen 2 and 3) and BPE over characters
// with byte fallback (Llama 2, Mistral).
//
// What is supported
//   model           BPE; merges as strings or as pairs; ignore_merges,
//                   unk_token, fuse_unk, byte_fallback
//   normalizer      NFC, Prepend, Replace of a fixed text, Sequence
//   pre_tokenizer   Split with one of the expressions that pretokenizer.h
//                   names, ByteLevel, Digits, Metaspace, Sequence
//   post_processor  TemplateProcessing, ByteLevel, Sequence
//   decoder         ByteLevel, or Replace, ByteFallback, Fuse and Strip in
//                   this order
// Everything else that could change ids or text is refused at load by name,
// an unknown expression of Split included: none is handed to a regular
// expression engine.
//
// Where this differs from the tokenizers library
//   - A special token never comes out of merging: text spells it only with
//     parse_special. (A special token of a single character keeps its id.)
//   - Bytes that are not UTF-8 decode to one U+FFFD per maximal broken
//     sequence everywhere. The Rust library does so for byte-level tokens, but
//     turns a whole run of <0xHH> tokens into U+FFFD when one byte is broken;
//     a stream would have to wait for the end of the run.
//   - `clean_up_tokenization_spaces` and the other settings by which the
//     Python classes edit the decoded text are not applied.
#ifndef OVERFILL_ENGINE_TOKENIZER_TOKENIZER_H_
#define OVERFILL_ENGINE_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/sha256.h"

namespace overfill {

// Immutable after Load, thread-safe.
class Tokenizer {
 public:
  // Larger tokenizer.json files are refused.
  static constexpr uint64_t kMaxFileBytes = uint64_t{64} << 20;

  // Reads tokenizer.json of the directory and, for the BOS and EOS tokens,
  // tokenizer_config.json, else special_tokens_map.json, where they exist.
  // INVALID_ARGUMENT names the file and the component at fault.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(
      const std::string& model_dir);

  // The same from the files' texts; `config` may be empty. `origin` begins
  // every error message.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(
      absl::string_view tokenizer_json, absl::string_view config,
      absl::string_view origin);

  ~Tokenizer();

  struct EncodeOptions {
    // Adds what the post-processor puts around a text, such as BOS.
    bool add_special_tokens = true;
    // Whether the text of a special token, such as "<|eot_id|>", becomes that
    // token. Off, it is encoded like any other text: a user's text brings no
    // control tokens. Added tokens that are not special (Qwen's "<think>") are
    // ordinary vocabulary and match either way.
    bool parse_special = false;
  };

  // INVALID_ARGUMENT when `text` is not valid UTF-8. Time is n log n in the
  // text's length at worst, whatever it holds.
  absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options) const;

  // Always valid UTF-8. Ids without a token are left out.
  std::string Decode(std::span<const int32_t> ids,
                     bool skip_special_tokens) const;

  // The highest id + 1.
  int32_t vocab_size() const;
  // False for ids outside the vocabulary and for holes in it.
  bool IsToken(int32_t id) const;
  bool IsSpecial(int32_t id) const;
  // By the spelling in the file, where byte-level tokens look like "Ġthe".
  std::optional<int32_t> TokenId(absl::string_view token) const;
  // As the configuration states them.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;

  // The bytes that a token adds to the text, not always whole characters;
  // empty for an id without a token. They live as long as the tokenizer.
  absl::string_view TokenBytes(int32_t id) const;
  // The size of the longest one.
  int max_token_bytes() const;

  // Decoding takes `strip_text` (one character, or empty) off the start of a
  // text, up to `strip_count` times. For the Detokenizer.
  absl::string_view strip_text() const;
  int64_t strip_count() const;

  // Of all that decides about ids and text (vocabulary, merges, added tokens,
  // normalizer, pre-tokenizer, post-processor, decoder), whatever the
  // formatting of the file and the spelling of its merges.
  const Sha256Digest& digest() const;
  // Names the first part that differs, with the first differing token or merge
  // where that is the part. Empty when the digests are equal.
  std::string DescribeDifference(const Tokenizer& other) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);

  std::unique_ptr<const Impl> impl_;
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TOKENIZER_TOKENIZER_H_
