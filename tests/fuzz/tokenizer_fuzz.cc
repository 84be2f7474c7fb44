// Arbitrary bytes as tokenizer.json: loading must neither crash nor hang nor
// take memory out of proportion, and what loads must encode and decode.
//
// Behind a zero byte, the input goes on with text to encode.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/check.h"
#include "engine/tokenizer/detokenizer.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/unicode.h"

namespace overfill {
namespace {

constexpr absl::string_view kText =
    "Hello wörld's  123\n\n<s></s>\t日本 😀 e\u0301 ▁ a b";

void CheckDecoding(const Tokenizer& tokenizer,
                   const std::vector<int32_t>& ids) {
  for (const bool skip : {false, true}) {
    const std::string whole = tokenizer.Decode(ids, skip);
    OVERFILL_CHECK(IsValidUtf8(whole));
    Detokenizer detokenizer(&tokenizer, skip);
    std::string joined;
    for (const int32_t id : ids) joined += detokenizer.Append(id);
    joined += detokenizer.Flush();
    OVERFILL_CHECK_EQ(joined, whole);
  }
}

void Exercise(const Tokenizer& tokenizer, absl::string_view text) {
  for (const bool flag : {false, true}) {
    const auto ids = tokenizer.Encode(
        text, {.add_special_tokens = flag, .parse_special = flag});
    OVERFILL_CHECK_EQ(ids.ok(), IsValidUtf8(text));
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) OVERFILL_CHECK(tokenizer.IsToken(id));
    CheckDecoding(tokenizer, *ids);
  }
  std::vector<int32_t> ids;
  const int32_t num_ids =
      tokenizer.vocab_size() < 600 ? tokenizer.vocab_size() : 600;
  for (int32_t id = -1; id <= num_ids; ++id) ids.push_back(id);
  CheckDecoding(tokenizer, ids);
  OVERFILL_CHECK_EQ(tokenizer.DescribeDifference(tokenizer), "");
}

}  // namespace
}  // namespace overfill

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  const absl::string_view json = input.substr(0, end);
  // The file is also its own configuration: that has keys of other names.
  const auto tokenizer = overfill::Tokenizer::FromJson(json, json, "fuzz");
  if (!tokenizer.ok()) return 0;
  overfill::Exercise(**tokenizer, overfill::kText);
  if (end != absl::string_view::npos) {
    overfill::Exercise(**tokenizer, input.substr(end + 1));
  }
  return 0;
}
