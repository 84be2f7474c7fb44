// From a checked specification to what encoding and decoding run on. Used by
// tokenizer.cc only.
#ifndef OVERFILL_ENGINE_TOKENIZER_BUILD_H_
#define OVERFILL_ENGINE_TOKENIZER_BUILD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/sha256.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/spec.h"

namespace overfill {

// Refuses a model that would silently drop characters: one without an unknown
// token whose bytes or byte fallback do not cover all text.
absl::StatusOr<BpeConfig> MakeBpeConfig(const TokenizerSpec& spec,
                                        absl::string_view origin);

std::string Normalize(const std::vector<NormalizerStep>& steps,
                      absl::string_view text);

// All tokens by id, with the bytes they decode to.
class TokenTable {
 public:
  static absl::StatusOr<TokenTable> Make(const TokenizerSpec& spec,
                                         absl::string_view origin);

  int32_t size() const { return static_cast<int32_t>(flags_.size()); }
  bool IsToken(int32_t id) const { return Has(id, kIsToken); }
  bool IsSpecial(int32_t id) const { return Has(id, kIsSpecial); }
  // Empty for ids without a token.
  absl::string_view Bytes(int32_t id) const;
  std::optional<int32_t> Find(absl::string_view token) const;
  int max_bytes() const { return max_bytes_; }

 private:
  static constexpr uint8_t kIsToken = 1;
  static constexpr uint8_t kIsSpecial = 2;
  bool Has(int32_t id, uint8_t flag) const {
    return id >= 0 && id < size() && (flags_[id] & flag) != 0;
  }
  void SetBytes(int32_t id, absl::string_view bytes);

  std::vector<uint8_t> flags_;     // [id]
  std::vector<uint64_t> offsets_;  // [id], into bytes_
  std::vector<uint32_t> sizes_;    // [id]
  std::string bytes_;
  absl::flat_hash_map<std::string, int32_t> ids_;  // by spelling
  int max_bytes_ = 0;
};

struct SpecDigests {
  Sha256Digest vocab, merges, model_flags, added_tokens, normalizer,
      pre_tokenizer, post_processor, decoder;
  Sha256Digest all;  // of the above
};

SpecDigests DigestSpec(const TokenizerSpec& spec);

// Empty when the digests are equal.
std::string DescribeDifference(const TokenizerSpec& a,
                               const SpecDigests& a_digests,
                               const TokenizerSpec& b,
                               const SpecDigests& b_digests);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TOKENIZER_BUILD_H_
