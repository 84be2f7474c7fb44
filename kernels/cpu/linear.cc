#include "kernels/cpu/linear.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/checked_math.h"
#include "base/status_macros.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/int8.h"
#include "kernels/cpu/pack.h"

namespace overfill {
namespace {

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
  OVERFILL_CHECK(dtype == DType::kF32 || dtype == DType::kBF16 ||
                 dtype == DType::kInt8);
  ASSIGN_OR_RETURN(const StackedShape shape, CheckShapes(weights, biases));
  const int64_t num_panels = CeilDiv(shape.out, kPanelCols);
  const int64_t panel_bytes = PanelBytes(dtype, shape.in);
  ASSIGN_OR_RETURN(auto panels,
                   AllocateCpuBuffer(account, num_panels * panel_bytes));
  int64_t first = 0;
  for (const HostTensor& weight : weights) {
    PackRows(weight, first, dtype, panels->data());
    first += weight.shape[0];
  }
  std::unique_ptr<Buffer> bias;
  if (!biases.empty()) {
    ASSIGN_OR_RETURN(bias, AllocateCpuBuffer(account, shape.out * 4));
    float* out = static_cast<float*>(bias->data());
    for (const HostTensor& part : biases) {
      for (int64_t i = 0; i < part.shape[0]; ++i) *out++ = HostElement(part, i);
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
  UnpackColumn(dtype_, panel(row / kPanelCols), row % kPanelCols, in_features(),
               out);
}

namespace {

// Rows of a conversion that are worth a thread's attention.
int64_t ConvertGrain(int64_t stride) {
  constexpr int64_t kElements = 32 * 1024;
  return std::max<int64_t>(1, kElements / stride);
}

// Columns [begin, begin + size) of a row in bf16, in one half or two.
struct ConvertedPart {
  static constexpr int64_t kCols = 256;
  static_assert(kCols % kPanelDepth == 0);
  uint16_t high[kCols];
  uint16_t low[kCols];

  // What lies behind the row's end becomes zeros.
  void Convert(const float* row, int64_t depth, int64_t begin, bool exact) {
    const int64_t size = std::clamp<int64_t>(depth - begin, 0, kCols);
    if (exact) {
      SplitToBF16(row + begin, size, high, low);
      std::fill(low + size, low + kCols, uint16_t{0});
    } else {
      RoundToBF16(row + begin, size, high);
    }
    std::fill(high + size, high + kCols, uint16_t{0});
  }
};

// The input of bf16 products: rows padded with zeros, in two halves for few
// rows. `in_tiles`: as MultiplyPanelAmx reads it.
void ConvertInput(CpuStream& stream, Matrix x, bool in_tiles,
                  PanelProduct& product) {
  const int64_t depth = x.cols;
  const int64_t padded = RoundUp(depth, kPanelDepth);
  const bool exact = x.rows <= kMaxExactRows;
  const int64_t rows = RoundUp(x.rows, kRowsTogether);
  uint16_t* high = stream.Scratch<uint16_t>(ScratchUse::kActivations,
                                            (exact ? 2 : 1) * rows * padded);
  uint16_t* low = high + rows * padded;
  // Between a row's pieces of kPanelDepth, and where the first one is.
  const int64_t step = in_tiles ? kRowsTogether * kPanelDepth : kPanelDepth;
  const auto first = [&](int64_t row) {
    return in_tiles ? row / kRowsTogether * kRowsTogether * padded +
                          row % kRowsTogether * kPanelDepth
                    : row * padded;
  };
  const auto convert = [&](int64_t row) {
    ConvertedPart part;
    for (int64_t begin = 0; begin < padded; begin += ConvertedPart::kCols) {
      part.Convert(x.f32() + row * x.stride, depth, begin, exact);
      const int64_t end = std::min(padded, begin + ConvertedPart::kCols);
      for (int64_t k = begin; k < end; k += kPanelDepth) {
        const int64_t to = first(row) + k / kPanelDepth * step;
        std::copy_n(part.high + (k - begin), kPanelDepth, high + to);
        if (exact) std::copy_n(part.low + (k - begin), kPanelDepth, low + to);
      }
    }
  };
  stream.ParallelFor(x.rows, ConvertGrain(padded),
                     [&](int64_t begin, int64_t end, int /*thread*/) {
                       for (int64_t row = begin; row < end; ++row) convert(row);
                     });
  product.x = high;
  product.x_rest = exact ? low : nullptr;
  product.x_stride = padded;
}

// The input of int8 products.
void QuantizeRows(CpuStream& stream, Matrix x, Int8Product& product) {
  const int64_t groups = CeilDiv(x.cols, kGroupDepth);
  const int64_t stride = groups * kGroupDepth;
  const int64_t q_bytes = x.rows * stride;
  const int64_t scale_bytes = x.rows * groups * sizeof(float);
  auto* memory = stream.Scratch<char>(ScratchUse::kActivations,
                                      2 * q_bytes + 2 * scale_bytes);
  auto* high = reinterpret_cast<int8_t*>(memory);
  int8_t* low = high + q_bytes;
  auto* scales = reinterpret_cast<float*>(memory + 2 * q_bytes);
  auto* sums = reinterpret_cast<int32_t*>(memory + 2 * q_bytes + scale_bytes);
  stream.ParallelFor(x.rows, ConvertGrain(stride),
                     [&](int64_t begin, int64_t end, int /*thread*/) {
                       for (int64_t row = begin; row < end; ++row) {
                         QuantizeInput(x.f32() + row * x.stride, x.cols,
                                       high + row * stride, low + row * stride,
                                       scales + row * groups,
                                       sums + row * groups);
                       }
                     });
  product.x_high = high;
  product.x_low = low;
  product.x_scales = scales;
  product.x_sums = sums;
  product.num_groups = groups;
}

// Calls multiply(product) for each panel, on all threads; the weight's part of
// the product is filled in here.
template <typename Product, typename Multiply>
void ForEachPanel(CpuStream& stream, const CpuLinearWeight& weight, Matrix out,
                  const Product& all, const Multiply& multiply,
                  int64_t panel_offset_bytes = 0) {
  using Panel = decltype(all.panel);
  stream.ParallelRanges(weight.num_panels(), [&](int64_t begin, int64_t end,
                                                 int /*thread*/) {
    for (int64_t panel = begin; panel < end; ++panel) {
      Product part = all;
      part.panel = static_cast<Panel>(weight.panel(panel, panel_offset_bytes));
      part.cols = weight.panel_cols(panel);
      part.out = out.f32() + panel * kPanelCols;
      if (weight.bias() != nullptr && panel_offset_bytes == 0) {
        part.bias = weight.bias() + panel * kPanelCols;
      }
      multiply(part);
    }
  });
}

// Of a product of many rows, what the second cache holds of the input: all
// panels pass before the next rows' or depths' turn.
constexpr int64_t kCachedDepth = 2048;
static_assert(kCachedDepth % kPanelDepth == 0);

void MultiplyInTiles(CpuStream& stream, const CpuLinearWeight& weight,
                     Matrix out, const PanelProduct& all) {
  for (int64_t row = 0; row < all.rows; row += kMaxPanelRows) {
    PanelProduct part = all;
    part.rows = std::min(all.rows - row, kMaxPanelRows);
    Matrix part_out = out;
    part_out.data = out.f32() + row * out.stride;
    const int64_t cached =
        part.rows > 2 * kRowsTogether ? kCachedDepth : all.depth;
    for (int64_t k = 0; k < all.depth; k += cached) {
      const int64_t at = row * all.x_stride + k * kRowsTogether;
      part.x = static_cast<const uint16_t*>(all.x) + at;
      part.x_rest = all.x_rest == nullptr ? nullptr : all.x_rest + at;
      part.depth = std::min(all.depth - k, cached);
      part.accumulate = all.accumulate || k > 0;
      ForEachPanel(stream, weight, part_out, part, MultiplyPanelAmx,
                   k * kPanelCols * 2);
    }
  }
}

// The same of an int8 product's input, which has two bytes for each element.
constexpr int64_t kCachedInt8Rows = 128;

void MultiplyInt8(CpuStream& stream, ProductPath path, Matrix x,
                  const CpuLinearWeight& weight, Matrix out, bool accumulate) {
  Int8Product all;
  all.rows = x.rows;
  all.out_stride = out.stride;
  all.accumulate = accumulate;
  QuantizeRows(stream, x, all);
  const bool in_tiles = path == ProductPath::kAmx && x.rows >= kMinTileRows;
  const auto multiply = in_tiles                     ? MultiplyPanelInt8Amx
                        : path != ProductPath::kAvx2 ? MultiplyPanelInt8Vnni
                                                     : MultiplyPanelInt8Avx2;
  for (int64_t row = 0; row < all.rows; row += kCachedInt8Rows) {
    Int8Product part = all;
    part.rows = std::min(all.rows - row, kCachedInt8Rows);
    part.x_high += row * all.num_groups * kGroupDepth;
    part.x_low += row * all.num_groups * kGroupDepth;
    part.x_scales += row * all.num_groups;
    part.x_sums += row * all.num_groups;
    Matrix part_out = out;
    part_out.data = out.f32() + row * out.stride;
    ForEachPanel(stream, weight, part_out, part, multiply);
  }
}

}  // namespace

void MultiplyLinear(CpuStream& stream, ProductPath path, Matrix x,
                    const CpuLinearWeight& weight, Matrix out,
                    bool accumulate) {
  if (weight.dtype() == DType::kInt8) {
    return MultiplyInt8(stream, path, x, weight, out, accumulate);
  }
  PanelProduct all;
  all.x = x.data;
  all.x_stride = x.stride;
  all.rows = x.rows;
  all.depth = weight.in_features();
  all.out_stride = out.stride;
  all.accumulate = accumulate;
  const bool dot = path != ProductPath::kAvx2;
  const bool in_tiles = path == ProductPath::kAmx && x.rows >= kMinTileRows;
  if (dot) ConvertInput(stream, x, in_tiles, all);
  if (in_tiles) return MultiplyInTiles(stream, weight, out, all);
  const auto multiply = dot                              ? MultiplyPanelBF16Dot
                        : weight.dtype() == DType::kBF16 ? MultiplyPanelBF16
                                                         : MultiplyPanelF32;
  ForEachPanel(stream, weight, out, all, multiply);
}

}  // namespace overfill
