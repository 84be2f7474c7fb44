// What the tokenizer's tests share.
#ifndef OVERFILL_TESTS_TOKENIZER_TEST_UTIL_H_
#define OVERFILL_TESTS_TOKENIZER_TEST_UTIL_H_

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/test_seed.h"
#include "tests/tokenizer/tokenizer_files.h"

namespace overfill {

// The family's tokenizer.json, from a fixed seed, and its tokenizer; made once.
const Json& FamilyJson(Family family);
const Tokenizer& FamilyTokenizer(Family family);

// Loads or fails the test with the reason.
std::unique_ptr<Tokenizer> MustLoad(const Json& tokenizer_json,
                                    const Json& config = Json());

// The error message, or "" when it loads.
std::string LoadError(const Json& tokenizer_json, const Json& config = Json());

// A tokenizer of a few characters without byte fallback: unk_token "?", no
// normalizer, no pre-tokenizer, tokens in the order given.
Json SmallJson(const std::vector<std::string>& tokens,
               const std::vector<std::pair<std::string, std::string>>& merges);

std::vector<int32_t> MustEncode(const Tokenizer& tokenizer,
                                const std::string& text,
                                Tokenizer::EncodeOptions options = {});

// Valid UTF-8 of random characters out of a sample of every kind that a
// pre-tokenizer tells apart.
std::string RandomText(std::mt19937_64& random, size_t max_chars);

}  // namespace overfill

#endif  // OVERFILL_TESTS_TOKENIZER_TEST_UTIL_H_
