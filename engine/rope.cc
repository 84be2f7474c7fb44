#include <cmath>
#include <numbers>
#include <vector>

#include "engine/model_config.h"

namespace overfill {
namespace {

// A pair that turns less than low_freq_factor times over the context that the
// model was first trained on is slowed down by `factor`; one that turns more
// than high_freq_factor times is kept; between them the two are blended.
double ScaleFrequency(double frequency, const Llama3RopeScaling& scaling) {
  const double turns = static_cast<double>(scaling.original_max_positions) *
                       frequency / (2 * std::numbers::pi);
  if (turns < scaling.low_freq_factor) return frequency / scaling.factor;
  if (turns > scaling.high_freq_factor) return frequency;
  const double keep = (turns - scaling.low_freq_factor) /
                      (scaling.high_freq_factor - scaling.low_freq_factor);
  return keep * frequency + (1 - keep) * frequency / scaling.factor;
}

}  // namespace

std::vector<float> InverseFrequencies(const RopeConfig& rope,
                                      int32_t head_dim) {
  std::vector<float> result;
  for (int32_t i = 0; i < head_dim / 2; ++i) {
    double frequency = std::pow(rope.theta, -2.0 * i / head_dim);
    if (rope.llama3) frequency = ScaleFrequency(frequency, *rope.llama3);
    result.push_back(static_cast<float>(frequency));
  }
  return result;
}

}  // namespace overfill
