#include "tests/kernels/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/philox.h"

namespace overfill::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

Matrix Linear(const Matrix& x, const Matrix& weight,
              std::span<const double> bias) {
  Matrix out(x.rows, weight.rows);
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < weight.rows; ++c) {
      double sum = bias.empty() ? 0 : bias[c];
      for (int64_t k = 0; k < x.cols; ++k) sum += x.at(r, k) * weight.at(c, k);
      out.at(r, c) = sum;
    }
  }
  return out;
}

Matrix LinearMagnitude(const Matrix& x, const Matrix& weight) {
  Matrix out(x.rows, weight.rows);
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < weight.rows; ++c) {
      double sum = 0;
      for (int64_t k = 0; k < x.cols; ++k) {
        sum += std::abs(x.at(r, k) * weight.at(c, k));
      }
      out.at(r, c) = sum;
    }
  }
  return out;
}

Matrix RmsNorm(const Matrix& x, std::span<const double> gain, double eps) {
  Matrix out(x.rows, x.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < x.cols; ++c) squares += x.at(r, c) * x.at(r, c);
    const double norm = std::sqrt(squares / static_cast<double>(x.cols) + eps);
    for (int64_t c = 0; c < x.cols; ++c) {
      out.at(r, c) = x.at(r, c) / norm * gain[c];
    }
  }
  return out;
}

Matrix SiluMul(const Matrix& gate_up) {
  Matrix out(gate_up.rows, gate_up.cols / 2);
  for (int64_t r = 0; r < out.rows; ++r) {
    for (int64_t c = 0; c < out.cols; ++c) {
      const double gate = gate_up.at(r, c);
      out.at(r, c) = gate / (1 + std::exp(-gate)) * gate_up.at(r, out.cols + c);
    }
  }
  return out;
}

Matrix RopeAngles(std::span<const int32_t> positions,
                  std::span<const float> inverse_frequencies) {
  const int64_t pairs = static_cast<int64_t>(inverse_frequencies.size());
  Matrix out(static_cast<int64_t>(positions.size()), 2 * pairs);
  for (int64_t r = 0; r < out.rows; ++r) {
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const float angle =
          static_cast<float>(positions[r]) * inverse_frequencies[pair];
      out.at(r, 2 * pair) = std::cos(static_cast<double>(angle));
      out.at(r, 2 * pair + 1) = std::sin(static_cast<double>(angle));
    }
  }
  return out;
}

std::vector<double> NormRotateHead(std::span<const double> head,
                                   std::span<const double> gain, double eps,
                                   std::span<const double> cos_sin) {
  std::vector<double> x(head.begin(), head.end());
  if (!gain.empty()) {
    Matrix row(1, static_cast<int64_t>(x.size()));
    row.data = x;
    x = RmsNorm(row, gain, eps).data;
  }
  const size_t pairs = x.size() / 2;
  std::vector<double> out(x.size());
  for (size_t i = 0; i < pairs; ++i) {
    const double c = cos_sin[2 * i];
    const double s = cos_sin[2 * i + 1];
    out[i] = x[i] * c - x[i + pairs] * s;
    out[i + pairs] = x[i + pairs] * c + x[i] * s;
  }
  return out;
}

std::vector<double> Attend(std::span<const double> q, const SequenceKv& kv,
                           int32_t kv_head, int32_t position) {
  const auto row = [&](const std::vector<double>& data, int32_t p) {
    return &data[(int64_t{p} * kv.num_kv_heads + kv_head) * kv.head_dim];
  };
  std::vector<double> scores(position + 1);
  for (int32_t p = 0; p <= position; ++p) {
    const double* k = row(kv.k, p);
    const double dot = std::inner_product(q.begin(), q.end(), k, 0.0);
    scores[p] = dot / std::sqrt(static_cast<double>(kv.head_dim));
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  std::vector<double> out(kv.head_dim, 0.0);
  for (int32_t p = 0; p <= position; ++p) {
    const double weight = std::exp(scores[p] - largest);
    total += weight;
    const double* v = row(kv.v, p);
    for (int32_t d = 0; d < kv.head_dim; ++d) out[d] += weight * v[d];
  }
  for (double& value : out) value /= total;
  return out;
}

std::vector<double> ProcessedLogits(std::span<const float> logits,
                                    const uint8_t* is_token,
                                    const SampleParams& params,
                                    std::span<const TokenAdjustment> changes) {
  std::vector<double> out(logits.begin(), logits.end());
  for (const TokenAdjustment& change : changes) {
    double& logit = out[change.token_id];
    logit += change.bias;
    if (change.seen != 0) {
      logit = logit > 0 ? logit / params.repetition_penalty
                        : logit * params.repetition_penalty;
    }
    logit -= double{params.frequency_penalty} * change.output_count;
    if (change.output_count > 0) logit -= params.presence_penalty;
    if (change.banned != 0) logit = -kInfinity;
  }
  for (size_t id = 0; id < out.size(); ++id) {
    if (is_token != nullptr && is_token[id] == 0) out[id] = -kInfinity;
    if (params.temperature > 0) out[id] /= params.temperature;
  }
  return out;
}

std::vector<int32_t> MaskedOrder(std::span<const double> processed,
                                 const SampleParams& params, double top_p,
                                 double min_p) {
  std::vector<int32_t> order;
  for (size_t id = 0; id < processed.size(); ++id) {
    if (processed[id] != -kInfinity) order.push_back(static_cast<int32_t>(id));
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return processed[a] > processed[b];
  });
  if (params.temperature == 0 || order.empty()) return order;
  if (params.top_k > 0 && params.top_k < static_cast<int32_t>(order.size())) {
    order.resize(params.top_k);
  }
  const double best = processed[order[0]];
  if (top_p < 1) {
    double total = 0;
    for (int32_t id : order) total += std::exp(processed[id] - best);
    double sum = 0;
    size_t kept = 0;
    while (kept < order.size() && sum < top_p * total) {
      sum += std::exp(processed[order[kept++]] - best);
    }
    order.resize(std::max<size_t>(kept, 1));
  }
  while (order.size() > 1 && std::exp(processed[order.back()] - best) < min_p) {
    order.pop_back();
  }
  return order;
}

double Noise(const SampleParams& params, int32_t token_id) {
  const uint32_t id = static_cast<uint32_t>(token_id);
  const uint32_t bits = SampleNoiseBlock(params.seed, params.sample_index,
                                         params.token_index, id / 4)[id % 4];
  return -std::log(-std::log((bits + 0.5) / 4294967296.0));
}

std::vector<double> LogSoftmax(std::span<const float> logits,
                               const uint8_t* is_token) {
  const auto real = [&](size_t id) {
    return is_token == nullptr || is_token[id] != 0;
  };
  double largest = -kInfinity;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (real(id)) largest = std::max<double>(largest, logits[id]);
  }
  double sum = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (real(id)) sum += std::exp(logits[id] - largest);
  }
  std::vector<double> out(logits.size(), -kInfinity);
  for (size_t id = 0; id < logits.size(); ++id) {
    if (real(id)) out[id] = logits[id] - largest - std::log(sum);
  }
  return out;
}

}  // namespace overfill::reference
