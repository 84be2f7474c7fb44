// Row-wise vector kernels: norms, activations, rotations.
#ifndef OVERFILL_KERNELS_CPU_ELEMENTWISE_H_
#define OVERFILL_KERNELS_CPU_ELEMENTWISE_H_

#include <cstdint>

namespace overfill {

// out = x / sqrt(mean(x^2) + eps) * gain; out may be x.
void RmsNormRow(const float* x, const float* gain, int64_t count, float eps,
                float* out);

// out = silu(gate) * up.
void SiluMulRow(const float* gate, const float* up, int64_t count, float* out);

// Rotates one head of 2 * num_pairs elements: pair i is elements i and
// i + num_pairs, its angle's (cos, sin) is cos_sin[2 i], cos_sin[2 i + 1].
void RotateHead(const float* cos_sin, int64_t num_pairs, float* head);

// out = bf16(x), rounded to nearest even.
void RoundToBF16(const float* x, int64_t count, uint16_t* out);
// out = f32(x).
void WidenBF16(const uint16_t* x, int64_t count, float* out);

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_ELEMENTWISE_H_
