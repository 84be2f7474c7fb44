// Byte-pair encoding of one word.
#ifndef OVERFILL_ENGINE_TOKENIZER_BPE_H_
#define OVERFILL_ENGINE_TOKENIZER_BPE_H_

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/string_view.h"

namespace overfill {

inline constexpr int32_t kNoToken = -1;

// One merge rule; its rank is its place in the list.
struct Merge {
  int32_t left, right, result;
};

struct BpeConfig {
  // Words are cut into bytes, else into characters.
  bool byte_level = false;
  // Byte level: the token of each byte. Character level with byte fallback:
  // the token <0xHH>. kNoToken where there is none.
  std::array<int32_t, 256> byte_tokens;
  bool byte_fallback = false;
  int32_t unk_token = kNoToken;
  bool fuse_unk = false;  // a run of unknown characters is one unknown token
  std::vector<Merge> merges;
  // Character level: the token of every character that has one.
  absl::flat_hash_map<char32_t, int32_t> char_tokens;
  // Character level: pairs of adjacent characters that some merge can join.
  absl::flat_hash_set<uint64_t> joinable_chars;
  // Words that are taken whole, before any merge (ignore_merges); by text.
  absl::flat_hash_map<std::string, int32_t> whole_words;
};

constexpr uint64_t PairKey(uint32_t a, uint32_t b) {
  return uint64_t{a} << 32 | b;
}

// Remembers the tokens of short words during one call. Not thread-safe.
class WordCache {
 public:
  static constexpr int kMaxTokens = 8;
  static constexpr size_t kMaxWordBytes = 23;

  // Appends the word's tokens to `ids`; false when it is not remembered.
  bool Find(absl::string_view word, std::vector<int32_t>* ids) const;
  void Insert(absl::string_view word, const int32_t* tokens, size_t num_tokens);

 private:
  static constexpr size_t kNumSlots = 8192;  // 512 KiB
  struct Slot {
    uint8_t word_bytes = 0;  // 0: empty
    std::array<char, kMaxWordBytes> word;
    uint8_t num_tokens = 0;
    std::array<int32_t, kMaxTokens> tokens;
  };
  static size_t SlotOf(absl::string_view word);

  // Made at the first insertion.
  std::unique_ptr<std::array<Slot, kNumSlots>> slots_;
};

// Immutable, thread-safe.
class BpeModel {
 public:
  explicit BpeModel(BpeConfig config);

  // Appends the tokens of `word`, valid UTF-8, to `ids`. Time is n log n in
  // the word's length, whatever it holds. `cache` may be null.
  void Encode(absl::string_view word, WordCache* cache,
              std::vector<int32_t>* ids) const;

 private:
  struct MergeResult {
    int32_t rank;
    int32_t token;
  };

  const MergeResult* FindMerge(int32_t left, int32_t right) const;
  void EncodePiece(absl::string_view piece, WordCache* cache,
                   std::vector<int32_t>* ids) const;
  void AppendSymbols(absl::string_view piece, std::vector<int32_t>* ids) const;
  // Where the first part of `piece` ends that no merge can join to the rest.
  size_t UnjoinableEnd(absl::string_view piece, size_t begin) const;
  void MergeFew(std::vector<int32_t>* ids, size_t begin) const;
  void MergeMany(std::vector<int32_t>* ids, size_t begin) const;

  BpeConfig config_;
  absl::flat_hash_map<uint64_t, MergeResult> merges_;  // by PairKey of tokens
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TOKENIZER_BPE_H_
