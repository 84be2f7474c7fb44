// What a load is drawn from: lengths in tokens, and gaps between arrivals.
#ifndef OVERFILL_BENCHMARKS_SERVING_DISTRIBUTIONS_H_
#define OVERFILL_BENCHMARKS_SERVING_DISTRIBUTIONS_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "benchmarks/serving/random.h"

namespace overfill {

// Lengths in tokens, at least 1.
class LengthDistribution {
 public:
  static constexpr int32_t kMaxTokens = 1 << 24;

  // Every length is `num_tokens`.
  static LengthDistribution Fixed(int32_t num_tokens) {
    return {Kind::kUniform, num_tokens, num_tokens, 0};
  }

  // fixed:N, uniform:MIN:MAX (both included), lognormal:MEDIAN:SIGMA:MAX
  // (SIGMA of the natural logarithm; longer ones are cut to MAX), or trace: the
  // lengths stand in a trace. INVALID_ARGUMENT says what is wrong.
  static absl::StatusOr<LengthDistribution> Parse(absl::string_view text);

  // The caller takes the length from its trace; Draw must not be called.
  bool from_trace() const { return kind_ == Kind::kTrace; }
  int32_t Draw(Random& random) const;

 private:
  enum class Kind { kUniform, kLognormal, kTrace };
  LengthDistribution(Kind kind, int32_t low, int32_t high, double sigma)
      : kind_(kind), low_(low), high_(high), sigma_(sigma) {}

  Kind kind_;
  int32_t low_;  // the median of a lognormal
  int32_t high_;
  double sigma_;
};

// The gaps of an open loop: arrivals do not wait for answers. Gamma gaps as
// `vllm bench serve` draws them: `burstiness` is the shape, 1 is a Poisson
// process, less is burstier (the gaps' standard deviation is their mean divided
// by the root of it), much more is a metronome.
class ArrivalProcess {
 public:
  // Of `rate` requests per second; infinite: all at once. Both above 0.
  ArrivalProcess(double rate, double burstiness)
      : rate_(rate), burstiness_(burstiness) {}

  double NextGapSeconds(Random& random) const;

 private:
  double rate_;
  double burstiness_;
};

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_DISTRIBUTIONS_H_
