#include "kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/checked_math.h"
#include "base/status_macros.h"
#include "kernels/cpu/checks.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/sampling.h"

namespace overfill {
namespace {

// Elements of simple work that are worth a thread's attention.
constexpr int64_t kElementGrain = 16 * 1024;

// Rows of `cols` elements that make up one such piece.
int64_t RowGrain(int64_t cols) {
  return std::max<int64_t>(1, kElementGrain / std::max<int64_t>(cols, 1));
}

}  // namespace

absl::StatusOr<std::unique_ptr<LinearWeight>> CpuOps::MakeLinear(
    std::span<const HostTensor> weights, std::span<const HostTensor> biases,
    DType dtype) {
  return CpuLinearWeight::Make(weights, biases, dtype, account_);
}

absl::StatusOr<std::unique_ptr<Buffer>> CpuOps::MakeVector(
    const HostTensor& values) {
  int64_t count = 1;
  for (int64_t dim : values.shape) count *= dim;
  ASSIGN_OR_RETURN(auto buffer, AllocateCpuBuffer(account_, count * 4));
  float* out = static_cast<float*>(buffer->data());
  for (int64_t i = 0; i < count; ++i) out[i] = HostElement(values, i);
  return buffer;
}

void CpuOps::Embedding(Stream& stream, const LinearWeight& table,
                       const BatchView& batch, Matrix out) {
  CpuStream& cpu = AsCpuStream(stream);
  const auto& weight = static_cast<const CpuLinearWeight&>(table);
  CheckMatrix(out, batch.num_rows, table.in_features());
  if (!cpu.ok()) return;
  for (int32_t row = 0; row < batch.num_rows; ++row) {
    const int32_t id = batch.token_ids[row];
    if (id < 0 || id >= table.out_features()) {
      cpu.Fail(absl::InternalError(absl::StrCat("Embedding: token id ", id,
                                                " is not in 0..",
                                                table.out_features() - 1)));
      return;
    }
  }
  cpu.ParallelFor(batch.num_rows, RowGrain(4 * out.cols),
                  [&](int64_t begin, int64_t end, int /*thread*/) {
                    for (int64_t row = begin; row < end; ++row) {
                      weight.CopyRow(batch.token_ids[row],
                                     out.f32() + row * out.stride);
                    }
                  });
}

void CpuOps::RmsNorm(Stream& stream, Matrix x, const float* gain, float eps,
                     Matrix out) {
  CpuStream& cpu = AsCpuStream(stream);
  CheckMatrix(x, x.rows, x.cols);
  CheckMatrix(out, x.rows, x.cols);
  if (!cpu.ok()) return;
  cpu.ParallelFor(x.rows, RowGrain(x.cols),
                  [&](int64_t begin, int64_t end, int /*thread*/) {
                    for (int64_t row = begin; row < end; ++row) {
                      RmsNormRow(x.f32() + row * x.stride, gain, x.cols, eps,
                                 out.f32() + row * out.stride);
                    }
                  });
}

ProductPath CpuOps::PathOf(DType weights) const {
  const bool is_int8 = weights == DType::kInt8;
  // Only int8's sums have one order in every path.
  if (weights == DType::kF32 || (batch_invariant_ && !is_int8)) {
    return ProductPath::kAvx2;
  }
  switch (isa_) {
    case CpuIsa::kAmxBf16:
      return ProductPath::kAmx;
    case CpuIsa::kAvx512Bf16:
      return ProductPath::kDot;
    case CpuIsa::kAvx512:
      return is_int8 && HasAvx512Vnni() ? ProductPath::kDot
                                        : ProductPath::kAvx2;
    case CpuIsa::kAvx2:
      break;
  }
  return ProductPath::kAvx2;
}

void CpuOps::Linear(Stream& stream, Matrix x, const LinearWeight& weight,
                    Matrix out, bool accumulate) {
  CpuStream& cpu = AsCpuStream(stream);
  CheckMatrix(x, x.rows, weight.in_features());
  CheckMatrix(out, x.rows, weight.out_features());
  if (!cpu.ok() || x.rows == 0) return;
  const auto& packed = static_cast<const CpuLinearWeight&>(weight);
  MultiplyLinear(cpu, PathOf(packed.dtype()), x, packed, out, accumulate);
}

void CpuOps::RopeAngles(Stream& stream, const BatchView& batch,
                        const float* inverse_frequencies, Matrix cos_sin) {
  CpuStream& cpu = AsCpuStream(stream);
  CheckMatrix(cos_sin, batch.num_rows, cos_sin.cols);
  OVERFILL_CHECK_EQ(cos_sin.cols % 2, 0);
  if (!cpu.ok()) return;
  constexpr int64_t kSineCost = 16;  // against a simple element
  cpu.ParallelFor(
      batch.num_rows, RowGrain(kSineCost * cos_sin.cols),
      [&](int64_t begin, int64_t end, int /*thread*/) {
        for (int64_t row = begin; row < end; ++row) {
          float* out = cos_sin.f32() + row * cos_sin.stride;
          const float position = static_cast<float>(batch.positions[row]);
          for (int64_t pair = 0; pair < cos_sin.cols / 2; ++pair) {
            // The angle is rounded to f32 as in the models' training code.
            const double angle = position * inverse_frequencies[pair];
            out[2 * pair] = static_cast<float>(std::cos(angle));
            out[2 * pair + 1] = static_cast<float>(std::sin(angle));
          }
        }
      });
}

void CpuOps::SiluMul(Stream& stream, Matrix gate_up, Matrix gated) {
  CpuStream& cpu = AsCpuStream(stream);
  CheckMatrix(gate_up, gated.rows, 2 * gated.cols);
  CheckMatrix(gated, gated.rows, gated.cols);
  if (!cpu.ok()) return;
  cpu.ParallelFor(gated.rows, RowGrain(4 * gated.cols),
                  [&](int64_t begin, int64_t end, int /*thread*/) {
                    for (int64_t row = begin; row < end; ++row) {
                      const float* gate = gate_up.f32() + row * gate_up.stride;
                      SiluMulRow(gate, gate + gated.cols, gated.cols,
                                 gated.f32() + row * gated.stride);
                    }
                  });
}

void CpuOps::GatherRows(Stream& stream, Matrix x, const int32_t* rows,
                        Matrix out) {
  CpuStream& cpu = AsCpuStream(stream);
  CheckMatrix(x, x.rows, x.cols);
  CheckMatrix(out, out.rows, x.cols);
  if (!cpu.ok()) return;
  for (int64_t i = 0; i < out.rows; ++i) {
    OVERFILL_CHECK(rows[i] >= 0 && rows[i] < x.rows) << "row " << rows[i];
    std::memcpy(out.f32() + i * out.stride, x.f32() + rows[i] * x.stride,
                x.cols * sizeof(float));
  }
}

void CpuOps::CopyRows(Stream& stream, Matrix x, float* out) {
  CpuStream& cpu = AsCpuStream(stream);
  CheckMatrix(x, x.rows, x.cols);
  if (!cpu.ok()) return;
  for (int64_t row = 0; row < x.rows; ++row) {
    std::memcpy(out + row * x.cols, x.f32() + row * x.stride,
                x.cols * sizeof(float));
  }
}

void CpuOps::Sample(Stream& stream, Matrix logits, const uint8_t* is_token,
                    const SampleBatch& batch, SampleResult* results) {
  CpuStream& cpu = AsCpuStream(stream);
  CheckMatrix(logits, batch.num_rows, logits.cols);
  if (!cpu.ok()) return;
  int64_t most_adjustments = 0;
  for (int32_t row = 0; row < batch.num_rows; ++row) {
    const SampleParams& params = batch.params[row];
    most_adjustments = std::max<int64_t>(
        most_adjustments, params.adjustments_end - params.adjustments_begin);
  }
  // Per thread: candidates, then the raw logits of the adjusted ids.
  const int64_t work_floats = RoundUp(2 * logits.cols + most_adjustments, 16);
  float* memory = cpu.Scratch<float>(ScratchUse::kSampling,
                                     work_floats * cpu.num_threads());
  cpu.ParallelFor(
      batch.num_rows, 1, [&](int64_t begin, int64_t end, int thread) {
        SampleWork work;
        float* own = memory + thread * work_floats;
        work.candidates = reinterpret_cast<Candidate*>(own);
        work.adjusted_raw = own + 2 * logits.cols;
        for (int64_t row = begin; row < end; ++row) {
          const SampleParams& params = batch.params[row];
          const std::span<const TokenAdjustment> adjustments(
              batch.adjustments + params.adjustments_begin,
              batch.adjustments + params.adjustments_end);
          results[row] = SampleRow({logits.f32() + row * logits.stride,
                                    static_cast<size_t>(logits.cols)},
                                   is_token, params, adjustments, work);
        }
      });
}

}  // namespace overfill
