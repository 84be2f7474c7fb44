#include "kernels/cpu/pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/checked_math.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/int8.h"

namespace overfill {
namespace {

// A panel is made of units of 32 bits, each with a column's next depths: one
// in f32, a pair in bf16, a quad in int8. A unit's columns lie side by side;
// in int8 a group's units come behind its scales.
constexpr int64_t kGroupUnits = kGroupDepth / 4;
constexpr int64_t kScaleUnits = sizeof(Int8Group::scales) / 4;
static_assert(sizeof(Int8Group) ==
              4 * (kScaleUnits + kGroupUnits * kPanelCols));

// Units that are moved at once: as many of one column as fill a cache line.
constexpr int64_t kUnitBlock = 16;
static_assert(kUnitBlock == kGroupUnits);

int64_t PaddedDepth(DType dtype, int64_t depth) {
  return dtype == DType::kF32    ? depth
         : dtype == DType::kBF16 ? RoundUp(depth, kPanelDepth)
                                 : RoundUp(depth, kGroupDepth);
}

template <typename T>
T ReadUnaligned(const std::byte* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

// Rows of a tensor in the type of the panels, for one panel's columns.
class UnitRows {
 public:
  UnitRows(DType dtype, int64_t depth)
      : dtype_(dtype),
        depth_(depth),
        num_units_(PaddedDepth(dtype, depth) * DTypeBytes(dtype) / 4),
        units_(kPanelCols * num_units_),
        floats_(depth),
        scales_(kPanelCols * CeilDiv(depth, kGroupDepth)) {}

  int64_t num_units() const { return num_units_; }
  const uint32_t* units(int64_t col) const {
    return units_.data() + col * num_units_;
  }
  uint16_t scale(int64_t col, int64_t group) const {
    return scales_[col * CeilDiv(depth_, kGroupDepth) + group];
  }

  // Column `col` becomes row `row` of the tensor.
  void Load(const HostTensor& tensor, int64_t row, int64_t col) {
    void* to = units_.data() + col * num_units_;
    if (dtype_ == DType::kBF16 && tensor.dtype == DType::kBF16) {
      std::memcpy(to, tensor.data + row * depth_ * 2, depth_ * 2);
      return;
    }
    ReadFloats(tensor, row);
    if (dtype_ == DType::kF32) {
      std::memcpy(to, floats_.data(), depth_ * sizeof(float));
    } else if (dtype_ == DType::kBF16) {
      RoundToBF16(floats_.data(), depth_, static_cast<uint16_t*>(to));
    } else {
      Quantize(static_cast<int8_t*>(to), col);
    }
  }

 private:
  void ReadFloats(const HostTensor& tensor, int64_t row) {
    if (tensor.dtype == DType::kF32) {
      std::memcpy(floats_.data(), tensor.data + row * depth_ * 4, depth_ * 4);
      return;
    }
    for (int64_t k = 0; k < depth_; ++k) {
      floats_[k] = HostElement(tensor, row * depth_ + k);
    }
  }

  void Quantize(int8_t* q, int64_t col) {
    const int64_t num_groups = CeilDiv(depth_, kGroupDepth);
    QuantizeWeights(floats_.data(), depth_, q,
                    scales_.data() + col * num_groups);
  }

  const DType dtype_;
  const int64_t depth_;
  const int64_t num_units_;       // of a column
  std::vector<uint32_t> units_;   // [kPanelCols, num_units]
  std::vector<float> floats_;     // [depth] of one row
  std::vector<uint16_t> scales_;  // [kPanelCols, groups] int8's
};

// Where the units from `unit`, the first of a block, begin in a panel.
int64_t UnitOffset(DType dtype, int64_t unit) {
  const int64_t scales =
      dtype == DType::kInt8 ? (unit / kGroupUnits + 1) * kScaleUnits : 0;
  return unit * kPanelCols + scales;
}

// Columns [begin, end) of one panel.
void StoreColumns(const UnitRows& rows, DType dtype, int64_t begin, int64_t end,
                  uint32_t* panel) {
  for (int64_t unit = 0; unit < rows.num_units(); unit += kUnitBlock) {
    uint32_t* out = panel + UnitOffset(dtype, unit);
    const int64_t count = std::min(kUnitBlock, rows.num_units() - unit);
    for (int64_t col = begin; col < end; ++col) {
      const uint32_t* in = rows.units(col) + unit;
      for (int64_t i = 0; i < count; ++i) out[i * kPanelCols + col] = in[i];
    }
    if (dtype != DType::kInt8) continue;
    auto* group = reinterpret_cast<Int8Group*>(out - kScaleUnits);
    for (int64_t col = begin; col < end; ++col) {
      group->scales[col] = rows.scale(col, unit / kGroupUnits);
    }
  }
}

}  // namespace

int64_t PanelBytes(DType dtype, int64_t depth) {
  if (dtype == DType::kInt8) {
    return CeilDiv(depth, kGroupDepth) *
           static_cast<int64_t>(sizeof(Int8Group));
  }
  return PaddedDepth(dtype, depth) * kPanelCols * DTypeBytes(dtype);
}

void PackRows(const HostTensor& tensor, int64_t first, DType dtype,
              void* panels) {
  const int64_t num_rows = tensor.shape[0];
  const int64_t depth = tensor.shape[1];
  const int64_t panel_units = PanelBytes(dtype, depth) / 4;
  UnitRows rows(dtype, depth);
  for (int64_t row = 0; row < num_rows;) {
    const int64_t begin = (first + row) % kPanelCols;
    const int64_t end = std::min(kPanelCols, begin + num_rows - row);
    for (int64_t col = begin; col < end; ++col) {
      rows.Load(tensor, row + col - begin, col);
    }
    StoreColumns(rows, dtype, begin, end,
                 static_cast<uint32_t*>(panels) +
                     (first + row) / kPanelCols * panel_units);
    row += end - begin;
  }
}

void UnpackColumn(DType dtype, const void* panel, int64_t col, int64_t depth,
                  float* out) {
  if (dtype == DType::kF32) {
    const float* in = static_cast<const float*>(panel) + col;
    for (int64_t k = 0; k < depth; ++k) out[k] = in[k * kPanelCols];
  } else if (dtype == DType::kBF16) {
    const uint16_t* in = static_cast<const uint16_t*>(panel) + col * 2;
    for (int64_t k = 0; k < depth; ++k) {
      out[k] = FloatFromBFloat16(in[k / 2 * kPanelCols * 2 + k % 2]);
    }
  } else {
    OVERFILL_CHECK(dtype == DType::kInt8);
    const auto* groups = static_cast<const Int8Group*>(panel);
    for (int64_t k = 0; k < depth; ++k) {
      const Int8Group& group = groups[k / kGroupDepth];
      const int64_t quad = k % kGroupDepth / 4;
      const auto q = static_cast<float>(group.q[quad][col][k % 4]);
      out[k] = FloatFromBFloat16(group.scales[col]) * q;
    }
  }
}

float HostElement(const HostTensor& tensor, int64_t index) {
  switch (tensor.dtype) {
    case DType::kF32:
      return ReadUnaligned<float>(tensor.data, index);
    case DType::kBF16:
      return FloatFromBFloat16(ReadUnaligned<uint16_t>(tensor.data, index));
    case DType::kF16:
      return FloatFromFloat16(ReadUnaligned<uint16_t>(tensor.data, index));
    case DType::kInt8:
      break;
  }
  OVERFILL_CHECK(false) << "a host tensor of int8";
  return 0;
}

}  // namespace overfill
