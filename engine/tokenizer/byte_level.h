// The spelling of bytes in byte-level vocabularies: each of the 256 bytes is
// one printable character, so that tokens are text even where their bytes are
// not (the table of GPT-2).
#ifndef OVERFILL_ENGINE_TOKENIZER_BYTE_LEVEL_H_
#define OVERFILL_ENGINE_TOKENIZER_BYTE_LEVEL_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace overfill {

char32_t ByteLevelChar(uint8_t byte);

// The bytes that `token` spells; nullopt when one of its characters is not in
// the table. Takes valid UTF-8.
std::optional<std::string> ByteLevelBytes(absl::string_view token);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TOKENIZER_BYTE_LEVEL_H_
