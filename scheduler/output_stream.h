// From sampled tokens to what the client gets: text, and the answer's end.
#ifndef OVERFILL_SCHEDULER_OUTPUT_STREAM_H_
#define OVERFILL_SCHEDULER_OUTPUT_STREAM_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "engine/step.h"
#include "engine/tokenizer/detokenizer.h"
#include "engine/tokenizer/tokenizer.h"
#include "scheduler/request.h"
#include "scheduler/stop_matcher.h"

namespace overfill {

// Copyable: its state moves with a sequence from pool to pool. Not
// thread-safe.
//
// A token that ends the answer, EOS or a stop id, is among the token ids and
// is counted, but adds no text; an id that is both is EOS. Special tokens add
// no text. A stop string is looked for in the answer's text alone.
class OutputStream {
 public:
  // Tokenizer and request outlive the stream. Reads the whole prompt, for the
  // character that may go on from it.
  OutputStream(const Tokenizer* tokenizer, const Request* request);

  struct End {
    FinishReason reason;
    std::variant<std::monostate, std::string, int32_t> matched_stop;
  };
  struct Output {
    Delta delta;
    std::optional<End> end;  // set: this was the last token
  };
  // The next token of the answer.
  Output Accept(const SampledToken& token);

  int32_t num_tokens() const { return num_tokens_; }

 private:
  // Adds the text that was held back; a stop string may be complete only now.
  void Finish(End end, Output& output);

  const Request* request_;
  Detokenizer detokenizer_;
  StopMatcher matcher_;
  int32_t num_tokens_ = 0;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_OUTPUT_STREAM_H_
