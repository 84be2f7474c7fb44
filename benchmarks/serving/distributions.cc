#include "benchmarks/serving/distributions.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/check.h"

namespace overfill {
namespace {

constexpr double kMaxSigma = 10;

absl::Status BadForm() {
  return absl::InvalidArgumentError(
      "must be fixed:N, uniform:MIN:MAX, lognormal:MEDIAN:SIGMA:MAX or trace");
}

bool ParseTokens(const std::string& text, int32_t* num_tokens) {
  return absl::SimpleAtoi(text, num_tokens) && *num_tokens >= 1 &&
         *num_tokens <= LengthDistribution::kMaxTokens;
}

}  // namespace

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(
    absl::string_view text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  if (text == "trace") return LengthDistribution(Kind::kTrace, 1, 1, 0);
  int32_t low, high;
  if (parts.size() == 2 && parts[0] == "fixed") {
    if (!ParseTokens(parts[1], &low)) return BadForm();
    return Fixed(low);
  }
  if (parts.size() == 3 && parts[0] == "uniform") {
    if (!ParseTokens(parts[1], &low) || !ParseTokens(parts[2], &high)) {
      return BadForm();
    }
    if (low > high) return absl::InvalidArgumentError("MIN is above MAX");
    return LengthDistribution(Kind::kUniform, low, high, 0);
  }
  if (parts.size() == 4 && parts[0] == "lognormal") {
    double sigma;
    if (!ParseTokens(parts[1], &low) || !absl::SimpleAtod(parts[2], &sigma) ||
        !(sigma >= 0 && sigma <= kMaxSigma) || !ParseTokens(parts[3], &high)) {
      return BadForm();
    }
    if (low > high) return absl::InvalidArgumentError("MEDIAN is above MAX");
    return LengthDistribution(Kind::kLognormal, low, high, sigma);
  }
  return BadForm();
}

int32_t LengthDistribution::Draw(Random& random) const {
  OVERFILL_CHECK(kind_ != Kind::kTrace);
  if (kind_ == Kind::kUniform) {
    return static_cast<int32_t>(DrawInt(random, low_, high_));
  }
  std::lognormal_distribution<double> lognormal(
      std::log(static_cast<double>(low_)), sigma_);
  const double drawn = std::round(lognormal(random));
  return static_cast<int32_t>(std::clamp(drawn, 1.0, 1.0 * high_));
}

double ArrivalProcess::NextGapSeconds(Random& random) const {
  if (std::isinf(rate_)) return 0;
  std::gamma_distribution<double> gamma(burstiness_, 1 / (rate_ * burstiness_));
  return gamma(random);
}

}  // namespace overfill
