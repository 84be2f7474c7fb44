// Text from tokens as they come, one at a time.
#ifndef OVERFILL_ENGINE_TOKENIZER_DETOKENIZER_H_
#define OVERFILL_ENGINE_TOKENIZER_DETOKENIZER_H_

#include <cstdint>
#include <span>
#include <string>

#include "engine/tokenizer/tokenizer.h"

namespace overfill {

// Copyable: its state moves with a sequence. Not thread-safe. The tokenizer
// must outlive it.
//
// Deltas are valid UTF-8. An incomplete character (at most three bytes) is
// held back until it is complete, broken or flushed, so that all deltas and
// Flush() together equal Tokenizer::Decode of all ids, however they are cut.
class Detokenizer {
 public:
  // For ids that are a text of their own.
  Detokenizer(const Tokenizer* tokenizer, bool skip_special_tokens);

  // For ids that go on behind a prompt: the deltas are what they add to the
  // prompt's text. A Llama 2 token "▁is" then adds " is", where on its own it
  // would lose the space; behind a prompt without text, such as BOS alone, it
  // still does. A character that began in the prompt's last token and ends in
  // the first new one comes whole, in the first delta.
  static Detokenizer AfterPrompt(const Tokenizer* tokenizer,
                                 bool skip_special_tokens,
                                 std::span<const int32_t> prompt_ids);

  // The text that is certain now; often empty. Ids without a token add none.
  std::string Append(int32_t id);

  // What was held back, as U+FFFD. To be called once, at the end.
  std::string Flush();

 private:
  std::string Take(bool is_end);

  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  int64_t strips_left_;  // only while no text has come
  std::string pending_;  // an incomplete character, at most 3 bytes
};

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TOKENIZER_DETOKENIZER_H_
