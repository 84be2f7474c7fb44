#include "engine/dummy_tokenizer.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "engine/tokenizer/byte_level.h"
#include "engine/tokenizer/unicode.h"

namespace overfill {

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeDummyTokenizer(
    int32_t vocab_size, absl::string_view origin) {
  constexpr int32_t kNumBytes = 256;
  if (vocab_size < kNumBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        origin, ": a vocabulary of ", vocab_size,
        " tokens has no room for all bytes, so tokenizer.json is needed"));
  }
  Json vocab = Json::object();
  for (int32_t byte = 0; byte < kNumBytes; ++byte) {
    std::string letter;
    AppendUtf8(ByteLevelChar(static_cast<uint8_t>(byte)), &letter);
    vocab[letter] = byte;
  }
  for (int32_t id = kNumBytes; id < vocab_size; ++id) {
    vocab[absl::StrCat("<", id, ">")] = id;
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  const Json tokenizer = {
      {"version", "1.0"},
      {"added_tokens", Json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
  return Tokenizer::FromJson(tokenizer.dump(), "", origin);
}

}  // namespace overfill
