// The row-wise primitives.
#include <cmath>

#include "tests/kernels/backend_test.h"

namespace overfill {
namespace {

class ElementwiseTest : public BackendTest {
 protected:
  // |actual - expected| <= tolerance * |expected| + floor.
  void ExpectNear(const std::vector<float>& actual,
                  const reference::Matrix& expected, double tolerance,
                  double floor) {
    ASSERT_EQ(actual.size(), expected.data.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      ASSERT_LE(std::abs(actual[i] - expected.data[i]),
                tolerance * std::abs(expected.data[i]) + floor)
          << "element " << i << " is " << actual[i] << ", want "
          << expected.data[i];
    }
  }
};

TEST_P(ElementwiseTest, RmsNormDividesByTheTrueWidth) {
  for (const int64_t cols : {1, 7, 8, 37, 64, 70, 129, 1689, 2048, 4505}) {
    for (const int64_t rows : {1, 3, 40}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << cols);
      const std::vector<float> x = Normals(rows * cols, false, 3.0f);
      const std::vector<float> gain = Normals(cols);
      const float eps = 1e-5f;
      const reference::Matrix expected = reference::RmsNorm(
          ToReference(rows, cols, x),
          std::vector<double>(gain.begin(), gain.end()), eps);
      const DeviceMatrix in = MakeMatrix(rows, cols, x);
      const DeviceMatrix out = MakeMatrix(rows, cols);
      const auto device_gain = Upload(gain);
      ops().RmsNorm(*stream_, in.view, device_gain.data(), eps, out.view);
      // The sum of positive squares loses at most a few roundings per lane.
      const double tolerance =
          kRoundoffF32 * (8 + std::sqrt(static_cast<double>(cols)));
      ExpectNear(out.Read(), expected, tolerance, 1e-30);
      EXPECT_TRUE(out.PaddingIntact());
      // In place.
      ops().RmsNorm(*stream_, in.view, device_gain.data(), eps, in.view);
      EXPECT_EQ(in.Read(), out.Read());
    }
  }
}

TEST_P(ElementwiseTest, RmsNormOfZeroIsZero) {
  const int64_t cols = 50;
  const DeviceMatrix in = MakeMatrix(2, cols, std::vector<float>(2 * cols));
  const DeviceMatrix out = MakeMatrix(2, cols);
  const auto gain = Upload(Normals(cols));
  ops().RmsNorm(*stream_, in.view, gain.data(), 1e-6f, out.view);
  for (float value : out.Read()) EXPECT_EQ(value, 0.0f);
}

TEST_P(ElementwiseTest, SiluMul) {
  for (const int64_t width : {1, 7, 37, 193, 4505}) {
    for (const int64_t rows : {1, 5, 33}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << width);
      const std::vector<float> x = Normals(rows * 2 * width, false, 4.0f);
      const DeviceMatrix in = MakeMatrix(rows, 2 * width, x);
      const DeviceMatrix out = MakeMatrix(rows, width);
      ops().SiluMul(*stream_, in.view, out.view);
      ExpectNear(out.Read(),
                 reference::SiluMul(ToReference(rows, 2 * width, x)),
                 16 * kRoundoffF32, 1e-30);
      EXPECT_TRUE(out.PaddingIntact());
    }
  }
}

TEST_P(ElementwiseTest, SiluOfExtremes) {
  const std::vector<float> gates = {-1e30f, -200.f, -89.f, -88.f, -87.f, -0.f,
                                    0.f,    87.f,   89.f,  200.f, 1e30f};
  const int64_t width = static_cast<int64_t>(gates.size()) * 16;
  std::vector<float> x(2 * width, 1.0f);
  for (int64_t i = 0; i < width; ++i) x[i] = gates[i / 16];
  const DeviceMatrix in = MakeMatrix(1, 2 * width, x);
  const DeviceMatrix out = MakeMatrix(1, width);
  ops().SiluMul(*stream_, in.view, out.view);
  ExpectNear(out.Read(), reference::SiluMul(ToReference(1, 2 * width, x)),
             16 * kRoundoffF32, 1e-7);
}

TEST_P(ElementwiseTest, RopeAngles) {
  for (const int32_t head_dim : {8, 64, 80, 96, 128, 256}) {
    std::vector<float> frequencies;
    for (int32_t i = 0; i < head_dim / 2; ++i) {
      frequencies.push_back(
          static_cast<float>(std::pow(500000.0, -2.0 * i / head_dim)));
    }
    std::vector<int32_t> positions = {0, 1, 131071};
    for (int i = 0; i < 37; ++i) positions.push_back(Uniform(0, 131071));
    const auto device_positions = Upload(positions);
    const auto device_frequencies = Upload(frequencies);
    BatchView batch;
    batch.num_rows = static_cast<int32_t>(positions.size());
    batch.positions = device_positions.data();
    const DeviceMatrix out = MakeMatrix(batch.num_rows, head_dim);
    ops().RopeAngles(*stream_, batch, device_frequencies.data(), out.view);
    ExpectNear(out.Read(), reference::RopeAngles(positions, frequencies),
               2 * kRoundoffF32, 2 * kRoundoffF32);
    EXPECT_TRUE(out.PaddingIntact());
  }
}

TEST_P(ElementwiseTest, GatherAndCopyRows) {
  const int64_t rows = 23;
  const int64_t cols = 77;
  const std::vector<float> x = Normals(rows * cols);
  const DeviceMatrix in = MakeMatrix(rows, cols, x);
  const std::vector<int32_t> chosen = {22, 0, 5, 5, 17};
  const auto device_chosen = Upload(chosen);
  const DeviceMatrix out =
      MakeMatrix(static_cast<int64_t>(chosen.size()), cols);
  ops().GatherRows(*stream_, in.view, device_chosen.data(), out.view);
  const std::vector<float> actual = out.Read();
  EXPECT_TRUE(out.PaddingIntact());
  for (size_t i = 0; i < chosen.size(); ++i) {
    for (int64_t c = 0; c < cols; ++c) {
      ASSERT_EQ(actual[i * cols + c], x[chosen[i] * cols + c]);
    }
  }
  const auto dense = Upload(std::vector<float>(rows * cols, -7.0f));
  ops().CopyRows(*stream_, in.view, dense.data());
  EXPECT_EQ(dense.Read(), x);
}

OVERFILL_INSTANTIATE_BACKENDS(ElementwiseTest);

}  // namespace
}  // namespace overfill
