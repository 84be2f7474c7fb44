// Makes tokenizer.json files of the structure that each model family has, with
// a vocabulary trained on made-up text. For tests; no real tokenizer is in the
// repository.
#ifndef OVERFILL_TESTS_TOKENIZER_TOKENIZER_FILES_H_
#define OVERFILL_TESTS_TOKENIZER_TOKENIZER_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"

namespace overfill {

enum class Family {
  kGpt2,
  kLlama3,
  kQwen2,
  kQwen3,
  kSmolLm,        // Digits, then ByteLevel
  kTekken,        // Mistral Nemo
  kO200k,         // Split with behavior Removed, inverted
  kLlama2,        // normalizer Prepend and Replace
  kMistral,       // Metaspace, prepend_scheme first, unsplit
  kMetaspace,     // Metaspace, prepend_scheme always, split; no byte fallback
  kOddByteLevel,  // added tokens with every flag, an unusual template
  kOddCharLevel,
};

inline constexpr Family kAllFamilies[] = {
    Family::kGpt2,      Family::kLlama3,       Family::kQwen2,
    Family::kQwen3,     Family::kSmolLm,       Family::kTekken,
    Family::kO200k,     Family::kLlama2,       Family::kMistral,
    Family::kMetaspace, Family::kOddByteLevel, Family::kOddCharLevel,
};

const char* FamilyName(Family family);
bool IsByteLevel(Family family);

// The content of tokenizer.json and of tokenizer_config.json.
Json MakeTokenizerJson(Family family, uint64_t seed);
Json MakeTokenizerConfig(Family family);

// Text in many scripts, with code, numbers and odd spacing.
std::string MakeText(uint64_t seed, size_t num_words);

}  // namespace overfill

#endif  // OVERFILL_TESTS_TOKENIZER_TOKENIZER_FILES_H_
