// Products with int8 weights.
#include "kernels/cpu/int8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/cpu_info.h"
#include "tests/kernels/backend_test.h"

namespace overfill {
namespace {

constexpr int64_t kGroup = 64;           // inputs that share a scale
constexpr int64_t kLargest = 127 * 128;  // of an input, in steps

class Int8Test : public BackendTest {
 protected:
  std::unique_ptr<LinearWeight> MakeWeight(const OwnedTensor& tensor,
                                           const OwnedTensor* bias = nullptr) {
    std::vector<HostTensor> biases;
    if (bias != nullptr) biases.push_back(bias->view);
    auto weight =
        ops().MakeLinear(std::vector{tensor.view}, biases, DType::kInt8);
    OVERFILL_CHECK_OK(weight.status());
    return *std::move(weight);
  }

  // The weights as the device holds them, [out, in].
  std::vector<float> HeldWeights(const LinearWeight& weight) {
    std::vector<int32_t> ids(weight.out_features());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    const auto device_ids = Upload(ids);
    BatchView batch;
    batch.num_rows = static_cast<int32_t>(ids.size());
    batch.token_ids = device_ids.data();
    const DeviceMatrix out = MakeMatrix(batch.num_rows, weight.in_features());
    ops().Embedding(*stream_, weight, batch, out.view);
    return out.Read();
  }

  std::vector<float> Product(const LinearWeight& weight, int64_t rows,
                             const std::vector<float>& x) {
    const DeviceMatrix in = MakeMatrix(rows, weight.in_features(), x);
    const DeviceMatrix out = MakeMatrix(rows, weight.out_features());
    {
      StreamScope scope(*stream_);
      ops().Linear(*stream_, in.view, weight, out.view, false);
    }
    EXPECT_TRUE(out.PaddingIntact());
    return out.Read();
  }

  // Rows that are held exactly: whole numbers, the largest of each group being
  // 127 * 128.
  std::vector<float> WholeRows(int64_t rows, int64_t cols) {
    std::vector<float> x(rows * cols);
    for (int64_t i = 0; i < rows * cols; ++i) {
      x[i] = static_cast<float>(
          i % cols % kGroup == 0 ? kLargest : Uniform(-kLargest, kLargest));
    }
    return x;
  }

  void CheckWhole(int64_t rows, int64_t in, int64_t out, bool has_bias,
                  bool accumulate);
};

// Of each element the largest magnitude in its group of a row.
std::vector<double> GroupMaxima(const std::vector<float>& x, int64_t cols) {
  std::vector<double> maxima(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const auto col = static_cast<int64_t>(i) % cols;
    const size_t begin = i - col % kGroup;
    const size_t end = std::min<size_t>(begin + kGroup, i - col + cols);
    for (size_t j = begin; j < end; ++j) {
      maxima[i] = std::max<double>(maxima[i], std::abs(x[j]));
    }
  }
  return maxima;
}

TEST_P(Int8Test, WeightsAreRoundedToTheNearestStep) {
  for (const auto& [in, out] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {63, 65}, {64, 64}, {65, 130}, {1126, 70}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      OwnedTensor tensor({out, in}, dtype, Normals(out * in));
      const auto weight = MakeWeight(tensor);
      EXPECT_GE(weight->bytes(), in * out);
      EXPECT_LT(weight->bytes(), 1.05 * (in + 64) * (out + 64));
      const std::vector<float> held = HeldWeights(*weight);
      const std::vector<float> values(tensor.values.begin(),
                                      tensor.values.end());
      const std::vector<double> maxima = GroupMaxima(values, in);
      for (size_t i = 0; i < held.size(); ++i) {
        // Half a step; the step itself is a bf16, rounded up.
        const double step = maxima[i] / 127 * (1 + 2 * kRoundoffBF16);
        ASSERT_LE(std::abs(held[i] - values[i]), step / 2 * 1.0001)
            << in << " x " << out << " at " << i;
      }
    }
  }
}

void Int8Test::CheckWhole(int64_t rows, int64_t in, int64_t out, bool has_bias,
                          bool accumulate) {
  SCOPED_TRACE(testing::Message() << rows << " rows, " << in << " -> " << out);
  const OwnedTensor tensor({out, in}, DType::kF32, Normals(out * in));
  const OwnedTensor bias({out}, DType::kF32, Normals(out));
  const auto weight = MakeWeight(tensor, has_bias ? &bias : nullptr);
  const std::vector<float> x = WholeRows(rows, in);
  const std::vector<float> old = Normals(rows * out);
  const DeviceMatrix in_matrix = MakeMatrix(rows, in, x);
  const DeviceMatrix result = MakeMatrix(rows, out, old);
  {
    StreamScope scope(*stream_);
    ops().Linear(*stream_, in_matrix.view, *weight, result.view, accumulate);
  }
  EXPECT_TRUE(result.PaddingIntact());
  const std::vector<float> actual = result.Read();
  const reference::Matrix x_reference = ToReference(rows, in, x);
  const reference::Matrix held = ToReference(out, in, HeldWeights(*weight));
  std::vector<double> biases;
  if (has_bias) biases.assign(bias.values.begin(), bias.values.end());
  const reference::Matrix expected =
      reference::Linear(x_reference, held, biases);
  const reference::Matrix magnitude =
      reference::LinearMagnitude(x_reference, held);
  for (int64_t i = 0; i < rows * out; ++i) {
    const double want = expected.data[i] + (accumulate ? old[i] : 0.0);
    const double tolerance = 8 * kRoundoffF32 * (magnitude.data[i] + 8);
    ASSERT_LE(std::abs(actual[i] - want), tolerance)
        << "[" << i / out << ", " << i % out << "]";
  }
}

TEST_P(Int8Test, SizesThatFitNothing) {
  for (const auto& [in, out] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1},
                                                {37, 37},
                                                {64, 64},
                                                {65, 63},
                                                {2, 200},
                                                {1126, 70},
                                                {70, 1126},
                                                {4505, 67}}) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 13, 16, 17, 31, 32, 33, 70}) {
      CheckWhole(rows, in, out, rows % 2 == 0, rows % 3 == 0);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Int8Test, ManyRows) {
  CheckWhole(257, 2080, 70, true, true);
  CheckWhole(300, 130, 300, false, false);
}

TEST_P(Int8Test, RandomSizes) {
  for (int i = 0; i < 40; ++i) {
    CheckWhole(Uniform(1, 80), Uniform(1, 400), Uniform(1, 300),
               Uniform(0, 1) != 0, Uniform(0, 1) != 0);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Int8Test, ErrorsAreThoseOfRounding) {
  constexpr int64_t kIn = 1126, kOut = 150;
  for (const int64_t rows : {1, 2, 8, 40}) {
    const OwnedTensor tensor({kOut, kIn}, DType::kF32, Normals(kOut * kIn));
    const std::vector<float> w(tensor.values.begin(), tensor.values.end());
    const std::vector<float> x = Normals(rows * kIn);
    const std::vector<float> actual = Product(*MakeWeight(tensor), rows, x);
    const std::vector<double> w_maxima = GroupMaxima(w, kIn);
    const std::vector<double> x_maxima = GroupMaxima(x, kIn);
    for (int64_t i = 0; i < rows * kOut; ++i) {
      const int64_t r = i / kOut * kIn, c = i % kOut * kIn;
      double want = 0, variance = 0;
      for (int64_t k = 0; k < kIn; ++k) {
        want += double{x[r + k]} * w[c + k];
        const double w_step = w_maxima[c + k] / 127 * (1 + 2 * kRoundoffBF16);
        const double x_step = x_maxima[r + k] / (127 * 128);
        // A rounding error is spread evenly over a step.
        variance +=
            (std::pow(x[r + k] * w_step, 2) + std::pow(w[c + k] * x_step, 2)) /
            12;
      }
      ASSERT_LE(std::abs(actual[i] - want), 8 * std::sqrt(variance) + 1e-5);
    }
  }
}

TEST_P(Int8Test, ARowHasTheSameBitsBesideOthers) {
  constexpr int64_t kIn = 333, kOut = 200, kRows = 40;
  const OwnedTensor tensor({kOut, kIn}, DType::kF32, Normals(kOut * kIn));
  const auto weight = MakeWeight(tensor);
  const std::vector<float> x = Normals(kRows * kIn);
  const std::vector<float> all = Product(*weight, kRows, x);
  for (const int64_t rows : {1, 2, 3, 7, 20, 33}) {
    for (int64_t first = 0; first + rows <= kRows; first += rows) {
      const std::vector<float> part(x.begin() + first * kIn,
                                    x.begin() + (first + rows) * kIn);
      const std::vector<float> some = Product(*weight, rows, part);
      ASSERT_EQ(std::memcmp(some.data(), all.data() + first * kOut,
                            some.size() * sizeof(float)),
                0)
          << rows << " rows from " << first;
    }
  }
}

TEST_P(Int8Test, NonFiniteRowsStayAlone) {
  constexpr int64_t kIn = 200, kOut = 70, kRows = 20;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const OwnedTensor tensor({kOut, kIn}, DType::kF32, Normals(kOut * kIn));
  const auto weight = MakeWeight(tensor);
  std::vector<float> x = Normals(kRows * kIn);
  const std::vector<float> clean = Product(*weight, kRows, x);
  for (const float bad : {std::nanf(""), kInfinity, -kInfinity}) {
    const int64_t row = Uniform(0, kRows - 1);
    std::vector<float> spoiled = x;
    spoiled[row * kIn + Uniform(0, kIn - 1)] = bad;
    const std::vector<float> actual = Product(*weight, kRows, spoiled);
    for (int64_t i = 0; i < kRows * kOut; ++i) {
      if (i / kOut == row) {
        ASSERT_FALSE(std::isfinite(actual[i]));
      } else {
        ASSERT_EQ(actual[i], clean[i]);
      }
    }
  }
}

TEST_P(Int8Test, NonFiniteWeightsAreNotHidden) {
  OwnedTensor tensor({3, 100}, DType::kF32, Normals(300));
  std::vector<float> values(tensor.values.begin(), tensor.values.end());
  values[150] = std::nanf("");
  const OwnedTensor spoiled({3, 100}, DType::kF32, values);
  const std::vector<float> actual =
      Product(*MakeWeight(spoiled), 1, Normals(100));
  EXPECT_TRUE(std::isfinite(actual[0]));
  EXPECT_TRUE(std::isnan(actual[1]));
  EXPECT_TRUE(std::isfinite(actual[2]));
}

TEST_P(Int8Test, NothingStaysNothing) {
  const OwnedTensor zeros({5, 130}, DType::kF32, std::vector<float>(650));
  for (float value : Product(*MakeWeight(zeros), 2, Normals(260))) {
    EXPECT_EQ(value, 0);
  }
  const OwnedTensor tensor({5, 130}, DType::kF32, Normals(650));
  // So small that the inverse of a scale would not be finite.
  for (const float tiny : {0.0f, 1e-45f, 1e-38f}) {
    for (float value :
         Product(*MakeWeight(tensor), 2, std::vector<float>(260, tiny))) {
      EXPECT_LE(std::abs(value), 1e-30f);
    }
  }
  const std::vector<float> huge =
      Product(*MakeWeight(tensor), 2, std::vector<float>(260, 1e36f));
  for (float value : huge) EXPECT_TRUE(std::isfinite(value));
}

OVERFILL_INSTANTIATE_BACKENDS(Int8Test);

// The CPU's kernels against each other, whichever the processor's choice is.
TEST(CpuInt8Kernels, GiveTheSameBits) {
  std::mt19937_64 random(TestSeed());
  const bool has_amx =
      *ChooseCpuIsa(TestDeviceOptions().cpu_isa) == CpuIsa::kAmxBf16;
  if (!HasAvx512Vnni()) GTEST_SKIP() << "no AVX-512 VNNI";
  for (int trial = 0; trial < 50; ++trial) {
    const auto rows = static_cast<int64_t>(random() % 40 + 1);
    const auto groups = static_cast<int64_t>(random() % 20 + 1);
    const auto cols = static_cast<int64_t>(random() % kPanelCols + 1);
    std::vector<Int8Group> panel(groups);
    for (Int8Group& group : panel) {
      for (uint16_t& scale : group.scales) {
        scale = static_cast<uint16_t>(0x3c00 + random() % 256);
      }
      auto* q = &group.q[0][0][0];
      for (size_t i = 0; i < sizeof(group.q); ++i) {
        q[i] = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
      }
    }
    std::vector<float> input(rows * groups * kGroupDepth), bias(cols);
    std::normal_distribution<float> normal;
    for (float& value : bias) value = normal(random);
    for (float& value : input) value = normal(random);
    std::vector<int8_t> high(input.size()), low(input.size());
    std::vector<float> scales(rows * groups);
    std::vector<int32_t> sums(rows * groups);
    for (int64_t row = 0; row < rows; ++row) {
      QuantizeInput(input.data() + row * groups * kGroupDepth,
                    groups * kGroupDepth,
                    high.data() + row * groups * kGroupDepth,
                    low.data() + row * groups * kGroupDepth,
                    scales.data() + row * groups, sums.data() + row * groups);
    }
    const auto run = [&](void (*multiply)(const Int8Product&)) {
      std::vector<float> out(rows * kPanelCols, 0.5f);
      Int8Product product;
      product.x_high = high.data();
      product.x_low = low.data();
      product.x_scales = scales.data();
      product.x_sums = sums.data();
      product.rows = rows;
      product.panel = panel.data();
      product.num_groups = groups;
      product.out = out.data();
      product.out_stride = kPanelCols;
      product.cols = cols;
      product.bias = trial % 3 == 0 ? bias.data() : nullptr;
      product.accumulate = trial % 2 == 0;
      multiply(product);
      return out;
    };
    const std::vector<float> avx2 = run(MultiplyPanelInt8Avx2);
    ASSERT_EQ(run(MultiplyPanelInt8Vnni), avx2) << rows << " rows";
    if (!has_amx) continue;
    ASSERT_EQ(run(MultiplyPanelInt8Amx), avx2) << rows << " rows";
  }
}

}  // namespace
}  // namespace overfill
