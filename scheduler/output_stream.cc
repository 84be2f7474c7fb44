#include "scheduler/output_stream.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace overfill {
namespace {

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

OutputStream::OutputStream(const Tokenizer* tokenizer, const Request* request)
    : request_(request),
      detokenizer_(Detokenizer::AfterPrompt(
          tokenizer, /*skip_special_tokens=*/true, request->prompt_ids)),
      matcher_(request->stop_rules.stop, request->stop_rules.include_stop) {}

OutputStream::Output OutputStream::Accept(const SampledToken& token) {
  const StopRules& rules = request_->stop_rules;
  ++num_tokens_;
  Output output;
  output.delta.token_ids.push_back(token.token_id);
  if (request_->sampling.num_logprobs >= 0) {
    output.delta.logprobs.push_back({token.logprob, token.top_logprobs});
  }
  if (Contains(rules.eos_ids, token.token_id)) {
    Finish({FinishReason::kEos, {}}, output);
    return output;
  }
  if (Contains(rules.stop_token_ids, token.token_id)) {
    Finish({FinishReason::kStop, token.token_id}, output);
    return output;
  }
  output.delta.text = matcher_.Append(detokenizer_.Append(token.token_id));
  if (matcher_.matched().has_value()) {
    output.end = End{FinishReason::kStop, *matcher_.matched()};
  } else if (num_tokens_ >= rules.max_tokens) {
    Finish({FinishReason::kLength, {}}, output);
  }
  return output;
}

void OutputStream::Finish(End end, Output& output) {
  output.delta.text += matcher_.Append(detokenizer_.Flush());
  if (matcher_.matched().has_value()) {
    end = {FinishReason::kStop, *matcher_.matched()};
  } else {
    output.delta.text += matcher_.Flush();
  }
  output.end = std::move(end);
}

}  // namespace overfill
