// A tokenizer for dummy weights that come without one.
#ifndef OVERFILL_ENGINE_DUMMY_TOKENIZER_H_
#define OVERFILL_ENGINE_DUMMY_TOKENIZER_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/tokenizer/tokenizer.h"

namespace overfill {

// Byte-level: ids 0 to 255 are the bytes, the rest of the vocabulary tokens
// that no text becomes, spelled "<256>", "<257>", ... INVALID_ARGUMENT,
// beginning with `origin`, when the vocabulary has no room for the bytes.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeDummyTokenizer(
    int32_t vocab_size, absl::string_view origin);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_DUMMY_TOKENIZER_H_
