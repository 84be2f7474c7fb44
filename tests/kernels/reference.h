// The ops in double precision, written for the eye: what every backend is
// compared with.
#ifndef OVERFILL_TESTS_KERNELS_REFERENCE_H_
#define OVERFILL_TESTS_KERNELS_REFERENCE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops.h"

namespace overfill::reference {

// A dense matrix [rows, cols].
struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<double> data;

  Matrix() = default;
  Matrix(int64_t r, int64_t c) : rows(r), cols(c), data(r * c) {}
  double& at(int64_t r, int64_t c) { return data[r * cols + c]; }
  double at(int64_t r, int64_t c) const { return data[r * cols + c]; }
};

// x W^T + b; `bias` is empty or [out].
Matrix Linear(const Matrix& x, const Matrix& weight,
              std::span<const double> bias);
// The sum of |x| |w| behind each element of Linear: what its rounding errors
// are proportional to.
Matrix LinearMagnitude(const Matrix& x, const Matrix& weight);

Matrix RmsNorm(const Matrix& x, std::span<const double> gain, double eps);
Matrix SiluMul(const Matrix& gate_up);

// [T, 2 P] of (cos, sin); the angle is rounded to f32.
Matrix RopeAngles(std::span<const int32_t> positions,
                  std::span<const float> inverse_frequencies);

// One sequence's K and V: [position][kv_head][D].
struct SequenceKv {
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  std::vector<double> k;
  std::vector<double> v;
};

// One head after q/k norm (empty gain: none) and rotation.
std::vector<double> NormRotateHead(std::span<const double> head,
                                   std::span<const double> gain, double eps,
                                   std::span<const double> cos_sin);

// Attention of one row's query head [D] at `position` over positions
// 0..position.
std::vector<double> Attend(std::span<const double> q, const SequenceKv& kv,
                           int32_t kv_head, int32_t position);

// The processed logits of a row as SampleParams states them, -infinity where
// the id is out, before the mask; temperature 0 divides by nothing.
std::vector<double> ProcessedLogits(std::span<const float> logits,
                                    const uint8_t* is_token,
                                    const SampleParams& params,
                                    std::span<const TokenAdjustment> changes);

// The ids inside the mask, best first. `top_p` stands in for the params' own,
// so that a test can ask what the neighbouring values would give.
std::vector<int32_t> MaskedOrder(std::span<const double> processed,
                                 const SampleParams& params, double top_p,
                                 double min_p);

// The Gumbel noise of a token.
double Noise(const SampleParams& params, int32_t token_id);

// log-softmax over the ids with a token; -infinity for others.
std::vector<double> LogSoftmax(std::span<const float> logits,
                               const uint8_t* is_token);

}  // namespace overfill::reference

#endif  // OVERFILL_TESTS_KERNELS_REFERENCE_H_
