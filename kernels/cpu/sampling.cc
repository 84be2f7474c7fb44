#include "kernels/cpu/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/philox.h"

namespace overfill {
namespace {

// The logit of an id that is out of the choice. Processed logits are kept
// above it.
constexpr float kDropped = -std::numeric_limits<float>::max();

// The order of candidates: better logits first, then lower ids. Top-k, top-p
// and min-p each keep a prefix of this order.
bool Better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// The processed logits of a row, relative to the best and over the
// temperature: 0 for the best one, negative for the others.
class Tempered {
 public:
  Tempered(std::span<const float> logits, float best, float temperature)
      : logits_(logits), best_(best), temperature_(temperature) {}
  int32_t size() const { return static_cast<int32_t>(logits_.size()); }
  bool dropped(int32_t id) const { return logits_[id] <= kDropped; }
  float operator[](int32_t id) const {
    return (logits_[id] - best_) / temperature_;
  }

 private:
  std::span<const float> logits_;
  const float best_;
  const float temperature_;
};

// The log-softmax of raw logits: logit - largest - log_sum.
struct RawSummary {
  bool finite = true;
  float largest = kDropped;
  double log_sum = 0;

  float LogProb(float logit) const {
    return static_cast<float>(double{logit} - largest - log_sum);
  }
};

// The best `num_top` of the raw logits, best first, lower ids first in a tie.
class TopList {
 public:
  explicit TopList(int32_t num_top) : num_top_(num_top) {}
  void Offer(float logit, int32_t id) {
    if (count_ == num_top_ &&
        (count_ == 0 || logit <= entries_[count_ - 1].logit)) {
      return;
    }
    if (count_ < num_top_) ++count_;
    int32_t at = count_ - 1;
    for (; at > 0 && entries_[at - 1].logit < logit; --at) {
      entries_[at] = entries_[at - 1];
    }
    entries_[at] = {logit, id};
  }
  std::span<const Candidate> entries() const {
    return {entries_.data(), static_cast<size_t>(count_)};
  }

 private:
  const int32_t num_top_;
  int32_t count_ = 0;
  std::array<Candidate, kMaxTopLogprobs> entries_;
};

RawSummary SummarizeRaw(std::span<const float> logits, const uint8_t* is_token,
                        int32_t num_top, SampleResult& result) {
  RawSummary summary;
  TopList top(num_top);
  const int32_t vocab_size = static_cast<int32_t>(logits.size());
  for (int32_t id = 0; id < vocab_size; ++id) {
    if (is_token != nullptr && is_token[id] == 0) continue;
    summary.finite = summary.finite && std::isfinite(logits[id]);
    summary.largest = std::max(summary.largest, logits[id]);
    top.Offer(logits[id], id);
  }
  if (!summary.finite) return summary;
  double sum = 0;
  for (int32_t id = 0; id < vocab_size; ++id) {
    if (is_token != nullptr && is_token[id] == 0) continue;
    sum += std::exp(logits[id] - summary.largest);
  }
  summary.log_sum = std::log(sum);
  for (const Candidate& entry : top.entries()) {
    result.top_ids[result.num_top] = entry.id;
    result.top_logprobs[result.num_top] = summary.LogProb(entry.logit);
    ++result.num_top;
  }
  return summary;
}

float ProcessedLogit(float logit, const SampleParams& params,
                     const TokenAdjustment& change) {
  logit += change.bias;
  if (change.seen != 0) {
    logit = logit > 0 ? logit / params.repetition_penalty
                      : logit * params.repetition_penalty;
  }
  logit -= params.frequency_penalty * static_cast<float>(change.output_count);
  if (change.output_count > 0) logit -= params.presence_penalty;
  // An extreme bias must not look like a logit that is not finite.
  constexpr float kLimit = -kDropped / 2;
  return logit >= -kLimit ? std::min(logit, kLimit) : -kLimit;
}

// Applies the row's adjustments in place and keeps the raw values; false when
// one meets a raw logit that is not finite.
bool Adjust(std::span<float> logits, const uint8_t* is_token,
            const SampleParams& params,
            std::span<const TokenAdjustment> adjustments, float* raw) {
  for (size_t i = 0; i < adjustments.size(); ++i) {
    const int32_t id = adjustments[i].token_id;
    raw[i] = logits[id];
    if (is_token != nullptr && is_token[id] == 0) continue;
    if (!std::isfinite(raw[i])) return false;
    logits[id] = adjustments[i].banned != 0
                     ? kDropped
                     : ProcessedLogit(raw[i], params, adjustments[i]);
  }
  return true;
}

// The best candidate, or id -1 where there is none. Drops the ids without a
// token; false when a logit is not finite.
bool FindBest(std::span<float> logits, const uint8_t* is_token,
              Candidate& best) {
  best = {kDropped, -1};
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    if (is_token != nullptr && is_token[id] == 0) logits[id] = kDropped;
    if (!std::isfinite(logits[id])) return false;
    if (logits[id] > best.logit) best = {logits[id], id};
  }
  return true;
}

// Histogram over the distance from the best logit, best first; the last bin
// takes all that is farther.
constexpr int kBinsPerUnit = 32;
constexpr int kNumBins = 2048;

int BinOf(float logit) {
  const float bin = -logit * kBinsPerUnit;
  return bin < kNumBins - 1 ? static_cast<int>(bin) : kNumBins - 1;
}

struct Histogram {
  int64_t num_candidates = 0;
  std::array<int64_t, kNumBins> counts = {};
  std::array<double, kNumBins> mass = {};  // sum of exp(logit)
};

void FillHistogram(const Tempered& logits, Histogram& histogram) {
  for (int32_t id = 0; id < logits.size(); ++id) {
    if (logits.dropped(id)) continue;
    const int bin = BinOf(logits[id]);
    ++histogram.num_candidates;
    ++histogram.counts[bin];
    histogram.mass[bin] += std::exp(logits[id]);
  }
}

// The candidates of one bin, in order.
std::span<const Candidate> SortedBin(const Tempered& logits, int bin,
                                     Candidate* candidates) {
  size_t count = 0;
  for (int32_t id = 0; id < logits.size(); ++id) {
    if (!logits.dropped(id) && BinOf(logits[id]) == bin) {
      candidates[count++] = {logits[id], id};
    }
  }
  std::sort(candidates, candidates + count, Better);
  return {candidates, count};
}

// The last member of the prefix that the mask keeps.
class Mask {
 public:
  Mask(const Tempered& logits, const SampleParams& params,
       Candidate* candidates)
      : logits_(logits), params_(params), candidates_(candidates) {
    if (params.top_k > 0 || params.top_p < 1) {
      FillHistogram(logits, histogram_);
      for (double mass : histogram_.mass) mass_ += mass;
      if (params.top_k > 0 && params.top_k < histogram_.num_candidates) {
        CutTopK();
      }
      if (params.top_p < 1) CutTopP();
    }
    if (params.min_p > 0) {
      const Candidate cut = {std::log(params.min_p),
                             std::numeric_limits<int32_t>::max()};
      if (Better(cut, last_)) last_ = cut;
    }
  }

  bool Keeps(float logit, int32_t id) const {
    return logit > last_.logit || (logit == last_.logit && id <= last_.id);
  }

 private:
  void CutTopK() {
    int64_t left = params_.top_k;
    mass_ = 0;
    for (last_bin_ = 0; left > histogram_.counts[last_bin_]; ++last_bin_) {
      left -= histogram_.counts[last_bin_];
      mass_ += histogram_.mass[last_bin_];
    }
    const auto members = SortedBin(logits_, last_bin_, candidates_);
    for (const Candidate& member : members.first(left)) {
      mass_ += std::exp(member.logit);
    }
    last_ = members[left - 1];
  }

  void CutTopP() {
    const double wanted = double{params_.top_p} * mass_;
    double sum = 0;
    int bin = 0;
    for (; bin < last_bin_ && sum + histogram_.mass[bin] < wanted; ++bin) {
      sum += histogram_.mass[bin];
    }
    for (const Candidate& member : SortedBin(logits_, bin, candidates_)) {
      if (!Better(member, last_)) return;
      sum += std::exp(member.logit);
      if (sum >= wanted) {
        last_ = member;
        return;
      }
    }
  }

  const Tempered& logits_;
  const SampleParams& params_;
  Candidate* const candidates_;
  Histogram histogram_;
  double mass_ = 0;              // of what is kept
  int last_bin_ = kNumBins - 1;  // where last_ is
  Candidate last_ = {-std::numeric_limits<float>::infinity(), -1};
};

// -log(-log(u)) for u = (bits + 1/2) / 2^32, to f32 precision at both ends.
float GumbelNoise(uint32_t bits) {
  const double above = (static_cast<double>(~bits) + 0.5) * 0x1p-32;  // 1 - u
  return static_cast<float>(-std::log(-std::log1p(-above)));
}

int32_t Draw(const Tempered& logits, const SampleParams& params,
             const Mask& mask) {
  // No noise is larger: a logit this far below is out without a draw.
  static const float kLargestNoise = GumbelNoise(0xffffffffu);
  Candidate best = {-std::numeric_limits<float>::infinity(), -1};
  std::array<uint32_t, 4> words = {};
  int32_t words_block = -1;
  for (int32_t id = 0; id < logits.size(); ++id) {
    const float logit = logits[id];
    if (logits.dropped(id) || !mask.Keeps(logit, id) ||
        logit + kLargestNoise < best.logit) {
      continue;
    }
    if (id / 4 != words_block) {
      words_block = id / 4;
      words = SampleNoiseBlock(params.seed, params.sample_index,
                               params.token_index, words_block);
    }
    const float noisy = logit + GumbelNoise(words[id % 4]);
    if (noisy > best.logit) best = {noisy, id};
  }
  return best.id;
}

}  // namespace

SampleResult SampleRow(std::span<float> logits, const uint8_t* is_token,
                       const SampleParams& params,
                       std::span<const TokenAdjustment> adjustments,
                       const SampleWork& work) {
  SampleResult result = {};
  result.token_id = -1;
  RawSummary raw;
  if (params.num_logprobs >= 0) {
    raw = SummarizeRaw(logits, is_token,
                       std::min(params.num_logprobs, kMaxTopLogprobs), result);
  }
  Candidate best = {kDropped, -1};
  if (!raw.finite ||
      !Adjust(logits, is_token, params, adjustments, work.adjusted_raw) ||
      !FindBest(logits, is_token, best)) {
    result.num_top = 0;
    result.outcome = SampleOutcome::kNonFinite;
    return result;
  }
  if (best.id < 0) {
    result.num_top = 0;
    result.outcome = SampleOutcome::kNoCandidate;
    return result;
  }
  result.token_id = best.id;
  if (params.temperature > 0) {
    const Tempered tempered(logits, best.logit, params.temperature);
    result.token_id =
        Draw(tempered, params, Mask(tempered, params, work.candidates));
  }
  if (params.num_logprobs >= 0) {
    float logit = logits[result.token_id];
    for (size_t i = 0; i < adjustments.size(); ++i) {
      if (adjustments[i].token_id == result.token_id) {
        logit = work.adjusted_raw[i];
      }
    }
    result.logprob = raw.LogProb(logit);
  }
  return result;
}

}  // namespace overfill
