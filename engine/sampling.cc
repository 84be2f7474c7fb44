#include "engine/sampling.h"

#include <algorithm>

namespace overfill {
namespace {

bool ById(const TokenAdjustment& a, const TokenAdjustment& b) {
  return a.token_id < b.token_id;
}

bool LooksAtSeen(const SamplingParams& params) {
  return params.repetition_penalty != 1;
}

bool LooksBack(const SamplingParams& params) {
  return LooksAtSeen(params) || params.presence_penalty != 0 ||
         params.frequency_penalty != 0;
}

bool IsIdle(const TokenAdjustment& a) {
  return a.bias == 0 && a.output_count == 0 && a.seen == 0 && a.banned == 0;
}

// Sorts `entries` and joins those of one id.
void Join(std::vector<TokenAdjustment>& entries) {
  std::sort(entries.begin(), entries.end(), ById);
  size_t kept = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (kept > 0 && entries[kept - 1].token_id == entries[i].token_id) {
      entries[kept - 1].bias += entries[i].bias;
      entries[kept - 1].seen |= entries[i].seen;
      entries[kept - 1].banned |= entries[i].banned;
    } else {
      entries[kept++] = entries[i];
    }
  }
  entries.resize(kept);
}

}  // namespace

SamplingState::SamplingState(const SamplingParams* params,
                             std::span<const int32_t> prompt_ids,
                             uint32_t sample_index)
    : params_(params), sample_index_(sample_index) {
  if (LooksAtSeen(*params)) {
    for (int32_t id : prompt_ids) {
      adjustments_.push_back({.token_id = id, .seen = 1});
    }
  }
  for (const auto& [id, bias] : params->logit_bias) {
    adjustments_.push_back({.token_id = id, .bias = bias});
  }
  if (params->min_tokens > 0) {
    for (int32_t id : params->min_tokens_banned_ids) {
      adjustments_.push_back({.token_id = id, .banned = 1});
    }
  }
  Join(adjustments_);
}

void SamplingState::Accept(int32_t token_id) {
  ++token_index_;
  if (static_cast<int64_t>(token_index_) == params_->min_tokens) {
    for (TokenAdjustment& a : adjustments_) a.banned = 0;
    std::erase_if(adjustments_, IsIdle);
  }
  if (!LooksBack(*params_)) return;
  const TokenAdjustment key{.token_id = token_id};
  auto it =
      std::lower_bound(adjustments_.begin(), adjustments_.end(), key, ById);
  if (it == adjustments_.end() || it->token_id != token_id) {
    it = adjustments_.insert(it, key);
  }
  ++it->output_count;
  it->seen = 1;
}

SampleParams SamplingState::Fill(
    std::vector<TokenAdjustment>& adjustments) const {
  SampleParams result{
      .temperature = params_->temperature,
      .top_p = params_->top_p,
      .min_p = params_->min_p,
      .top_k = params_->top_k,
      .repetition_penalty = params_->repetition_penalty,
      .presence_penalty = params_->presence_penalty,
      .frequency_penalty = params_->frequency_penalty,
      .num_logprobs = params_->num_logprobs,
      .seed = params_->seed,
      .sample_index = sample_index_,
      .token_index = token_index_,
  };
  result.adjustments_begin = static_cast<int32_t>(adjustments.size());
  adjustments.insert(adjustments.end(), adjustments_.begin(),
                     adjustments_.end());
  result.adjustments_end = static_cast<int32_t>(adjustments.size());
  return result;
}

}  // namespace overfill
