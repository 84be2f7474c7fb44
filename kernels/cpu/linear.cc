#include "kernels/cpu/linear.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/checked_math.h"
#include "base/status_macros.h"
#include "kernels/cpu/elementwise.h"

namespace overfill {
namespace {

template <typename T>
T ReadUnaligned(const std::byte* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

float ReadFloat(const HostTensor& tensor, int64_t index) {
  switch (tensor.dtype) {
    case DType::kF32:
      return ReadUnaligned<float>(tensor.data, index);
    case DType::kBF16:
      return FloatFromBFloat16(ReadUnaligned<uint16_t>(tensor.data, index));
    case DType::kF16:
      return FloatFromFloat16(ReadUnaligned<uint16_t>(tensor.data, index));
  }
  return 0;
}

// Puts `tensor` [rows, depth] into the packed output columns from `first`.
void PackF32(const HostTensor& tensor, int64_t first, int64_t panel_elements,
             float* panels) {
  const int64_t rows = tensor.shape[0];
  const int64_t depth = tensor.shape[1];
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t col = first + row;
    float* out = panels + col / kPanelCols * panel_elements + col % kPanelCols;
    for (int64_t k = 0; k < depth; ++k) {
      out[k * kPanelCols] = ReadFloat(tensor, row * depth + k);
    }
  }
}

void PackBF16(const HostTensor& tensor, int64_t first, int64_t panel_elements,
              uint16_t* panels) {
  const int64_t rows = tensor.shape[0];
  const int64_t depth = tensor.shape[1];
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t col = first + row;
    uint16_t* out =
        panels + col / kPanelCols * panel_elements + col % kPanelCols * 2;
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t index = row * depth + k;
      out[k / 2 * kPanelCols * 2 + k % 2] =
          tensor.dtype == DType::kBF16
              ? ReadUnaligned<uint16_t>(tensor.data, index)
              : BFloat16FromFloat(ReadFloat(tensor, index));
    }
  }
}

// Up to here a bf16 product takes its input to 16 bits, in two bf16 halves: the
// precision of f32 input at its cost, and no more than the weights' reading for
// a few rows. Rounding the input to 8 bits moves logits by up to 1 % of the
// largest, more than the KV's rounding does, and one greedy token in some
// 10,000 past what counts as a tie; steps with more rows than this accept that
// for twice the speed.
constexpr int64_t kMaxExactRows = 64;

// With fewer rows than these, tiles are mostly empty, and no faster than
// vectors.
constexpr int64_t kMinTileRows = 3;

// high = bf16(x), low = bf16(x - high).
void SplitToBF16(const float* x, int64_t count, uint16_t* high, uint16_t* low) {
  constexpr int64_t kChunk = 256;
  float rest[kChunk];
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t size = std::min(kChunk, count - begin);
    RoundToBF16(x + begin, size, high + begin);
    WidenBF16(high + begin, size, rest);
    for (int64_t i = 0; i < size; ++i) rest[i] = x[begin + i] - rest[i];
    RoundToBF16(rest, size, low + begin);
  }
}

// The stacked size of `weights`; INVALID_ARGUMENT where they do not stack.
struct StackedShape {
  int64_t in = 0;
  int64_t out = 0;
};
absl::StatusOr<StackedShape> CheckShapes(std::span<const HostTensor> weights,
                                         std::span<const HostTensor> biases) {
  if (weights.empty() || (!biases.empty() && biases.size() != weights.size())) {
    return absl::InvalidArgumentError("a linear needs a bias for each weight");
  }
  StackedShape shape;
  for (size_t i = 0; i < weights.size(); ++i) {
    const HostTensor& weight = weights[i];
    if (weight.shape.size() != 2 || weight.shape[0] <= 0 ||
        weight.shape[1] <= 0) {
      return absl::InvalidArgumentError("a linear's weight is not a matrix");
    }
    if (i > 0 && weight.shape[1] != shape.in) {
      return absl::InvalidArgumentError(
          absl::StrCat("weights of ", shape.in, " and ", weight.shape[1],
                       " input features do not stack"));
    }
    shape.in = weight.shape[1];
    shape.out += weight.shape[0];
    if (!biases.empty() &&
        biases[i].shape != std::vector<int64_t>{weight.shape[0]}) {
      return absl::InvalidArgumentError(
          "a linear's bias does not fit its weight");
    }
  }
  return shape;
}

}  // namespace

float HostElement(const HostTensor& tensor, int64_t index) {
  return ReadFloat(tensor, index);
}

CpuLinearWeight::CpuLinearWeight(int64_t in, int64_t out, DType dtype,
                                 int64_t num_panels, int64_t panel_bytes,
                                 std::unique_ptr<Buffer> panels,
                                 std::unique_ptr<Buffer> bias)
    : LinearWeight(in, out,
                   panels->bytes() + (bias == nullptr ? 0 : bias->bytes())),
      dtype_(dtype),
      num_panels_(num_panels),
      panel_bytes_(panel_bytes),
      panels_(std::move(panels)),
      bias_(std::move(bias)) {}

absl::StatusOr<std::unique_ptr<CpuLinearWeight>> CpuLinearWeight::Make(
    std::span<const HostTensor> weights, std::span<const HostTensor> biases,
    DType dtype, const std::shared_ptr<MemoryAccount>& account) {
  OVERFILL_CHECK(dtype == DType::kF32 || dtype == DType::kBF16);
  ASSIGN_OR_RETURN(const StackedShape shape, CheckShapes(weights, biases));
  const int64_t depth =
      dtype == DType::kBF16 ? RoundUp(shape.in, kPanelDepth) : shape.in;
  const int64_t num_panels = CeilDiv(shape.out, kPanelCols);
  const int64_t panel_elements = depth * kPanelCols;
  const int64_t panel_bytes = panel_elements * DTypeBytes(dtype);
  ASSIGN_OR_RETURN(auto panels,
                   AllocateCpuBuffer(account, num_panels * panel_bytes));
  int64_t first = 0;
  for (const HostTensor& weight : weights) {
    if (dtype == DType::kF32) {
      PackF32(weight, first, panel_elements,
              static_cast<float*>(panels->data()));
    } else {
      PackBF16(weight, first, panel_elements,
               static_cast<uint16_t*>(panels->data()));
    }
    first += weight.shape[0];
  }
  std::unique_ptr<Buffer> bias;
  if (!biases.empty()) {
    ASSIGN_OR_RETURN(bias, AllocateCpuBuffer(account, shape.out * 4));
    float* out = static_cast<float*>(bias->data());
    for (const HostTensor& part : biases) {
      for (int64_t i = 0; i < part.shape[0]; ++i) *out++ = ReadFloat(part, i);
    }
  }
  return std::unique_ptr<CpuLinearWeight>(
      new CpuLinearWeight(shape.in, shape.out, dtype, num_panels, panel_bytes,
                          std::move(panels), std::move(bias)));
}

int64_t CpuLinearWeight::panel_cols(int64_t panel) const {
  return std::min(kPanelCols, out_features() - panel * kPanelCols);
}

void CpuLinearWeight::CopyRow(int64_t row, float* out) const {
  const int64_t col = row % kPanelCols;
  const void* data = panel(row / kPanelCols);
  if (dtype_ == DType::kF32) {
    const float* in = static_cast<const float*>(data) + col;
    for (int64_t k = 0; k < in_features(); ++k) out[k] = in[k * kPanelCols];
    return;
  }
  const uint16_t* in = static_cast<const uint16_t*>(data) + col * 2;
  for (int64_t k = 0; k < in_features(); ++k) {
    out[k] = FloatFromBFloat16(in[k / 2 * kPanelCols * 2 + k % 2]);
  }
}

void MultiplyLinear(CpuStream& stream, ProductPath path, Matrix x,
                    const CpuLinearWeight& weight, Matrix out,
                    bool accumulate) {
  const int64_t depth = weight.in_features();
  PanelProduct all;
  all.x = x.data;
  all.x_stride = x.stride;
  all.rows = x.rows;
  all.depth = depth;
  all.out_stride = out.stride;
  all.accumulate = accumulate;
  const bool dot = path != ProductPath::kF32;
  if (dot) {
    const int64_t stride = RoundUp(depth, kPanelDepth);
    const bool exact = x.rows <= kMaxExactRows;
    uint16_t* high = stream.Scratch<uint16_t>(
        ScratchUse::kActivations, (exact ? 2 : 1) * x.rows * stride);
    uint16_t* low = high + x.rows * stride;
    constexpr int64_t kConvertGrain = 32 * 1024;
    stream.ParallelFor(x.rows, std::max<int64_t>(1, kConvertGrain / stride),
                       [&](int64_t begin, int64_t end, int /*thread*/) {
                         for (int64_t row = begin; row < end; ++row) {
                           const float* from = x.f32() + row * x.stride;
                           uint16_t* to = high + row * stride;
                           uint16_t* rest = low + row * stride;
                           if (exact) {
                             SplitToBF16(from, depth, to, rest);
                             std::fill(rest + depth, rest + stride,
                                       uint16_t{0});
                           } else {
                             RoundToBF16(from, depth, to);
                           }
                           std::fill(to + depth, to + stride, uint16_t{0});
                         }
                       });
    all.x = high;
    all.x_rest = exact ? low : nullptr;
    all.x_stride = stride;
  }
  const bool in_tiles = path == ProductPath::kAmx && x.rows >= kMinTileRows;
  const auto multiply = in_tiles                         ? MultiplyPanelAmx
                        : dot                            ? MultiplyPanelBF16Dot
                        : weight.dtype() == DType::kBF16 ? MultiplyPanelBF16
                                                         : MultiplyPanelF32;
  stream.ParallelFor(weight.num_panels(), 1,
                     [&](int64_t begin, int64_t end, int /*thread*/) {
                       for (int64_t panel = begin; panel < end; ++panel) {
                         PanelProduct part = all;
                         part.panel = weight.panel(panel);
                         part.cols = weight.panel_cols(panel);
                         part.out = out.f32() + panel * kPanelCols;
                         if (weight.bias() != nullptr) {
                           part.bias = weight.bias() + panel * kPanelCols;
                         }
                         multiply(part);
                       }
                     });
}

}  // namespace overfill
