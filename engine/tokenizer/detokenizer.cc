#include "engine/tokenizer/detokenizer.h"

#include "absl/strings/match.h"
#include "engine/tokenizer/unicode.h"

namespace overfill {

Detokenizer::Detokenizer(const Tokenizer* tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer),
      skip_special_tokens_(skip_special_tokens),
      strips_left_(tokenizer->strip_count()) {}

Detokenizer Detokenizer::AfterPrompt(const Tokenizer* tokenizer,
                                     bool skip_special_tokens,
                                     std::span<const int32_t> prompt_ids) {
  Detokenizer result(tokenizer, skip_special_tokens);
  for (const int32_t id : prompt_ids) result.Append(id);
  return result;
}

std::string Detokenizer::Append(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return "";
  const absl::string_view bytes = tokenizer_->TokenBytes(id);
  if (bytes.empty()) return "";
  pending_.append(bytes.data(), bytes.size());
  return Take(/*is_end=*/false);
}

std::string Detokenizer::Flush() { return Take(/*is_end=*/true); }

std::string Detokenizer::Take(bool is_end) {
  std::string text;
  const size_t consumed = AppendLossyUtf8(pending_, is_end, &text);
  pending_.erase(0, consumed);
  if (strips_left_ == 0 || text.empty()) return text;
  const absl::string_view strip = tokenizer_->strip_text();
  size_t begin = 0;
  while (strips_left_ > 0 &&
         absl::StartsWith(absl::string_view(text).substr(begin), strip)) {
    begin += strip.size();
    --strips_left_;
  }
  if (begin < text.size()) strips_left_ = 0;  // the text has begun
  return text.substr(begin);
}

}  // namespace overfill
