// Products with weights, and what reads weights otherwise.
#include <algorithm>
#include <cmath>

#include "tests/kernels/backend_test.h"

namespace overfill {
namespace {

// Rows up to which the CPU keeps more of their input than bf16 holds.
constexpr int64_t kMaxExactRows = 64;

class LinearTest : public BackendTest {
 protected:
  // One product against the reference. With `exact_x` the rows hold bf16
  // values, so that rounding them changes nothing and the tolerance is f32's.
  void Check(int64_t rows, int64_t in, std::vector<int64_t> outs, DType dtype,
             DType file_dtype, bool bias, bool accumulate, bool exact_x);
};

void LinearTest::Check(int64_t rows, int64_t in, std::vector<int64_t> outs,
                       DType dtype, DType file_dtype, bool bias,
                       bool accumulate, bool exact_x) {
  SCOPED_TRACE(testing::Message()
               << rows << " rows, " << in << " -> " << outs[0] << " x "
               << outs.size() << ", " << DTypeName(dtype) << " from "
               << DTypeName(file_dtype) << (bias ? ", bias" : "")
               << (accumulate ? ", accumulate" : ""));
  std::vector<OwnedTensor> tensors, bias_tensors;
  std::vector<HostTensor> weights, biases;
  reference::Matrix expected_weight;
  std::vector<double> expected_bias;
  expected_weight.cols = in;
  for (int64_t out : outs) {
    tensors.emplace_back(std::vector<int64_t>{out, in}, file_dtype,
                         Normals(out * in));
    for (double value : tensors.back().values) {
      expected_weight.data.push_back(
          dtype == DType::kBF16 ? FloatFromBFloat16(BFloat16FromFloat(value))
                                : value);
    }
    expected_weight.rows += out;
    if (bias) {
      bias_tensors.emplace_back(std::vector<int64_t>{out}, file_dtype,
                                Normals(out));
      expected_bias.insert(expected_bias.end(),
                           bias_tensors.back().values.begin(),
                           bias_tensors.back().values.end());
    }
  }
  for (const OwnedTensor& tensor : tensors) weights.push_back(tensor.view);
  for (const OwnedTensor& tensor : bias_tensors) biases.push_back(tensor.view);
  auto weight = ops().MakeLinear(weights, biases, dtype);
  ASSERT_TRUE(weight.ok()) << weight.status().ToString();
  EXPECT_EQ((*weight)->in_features(), in);
  EXPECT_EQ((*weight)->out_features(), expected_weight.rows);
  EXPECT_GE((*weight)->bytes(), in * expected_weight.rows * DTypeBytes(dtype));

  const int64_t out = expected_weight.rows;
  const std::vector<float> x = Normals(rows * in, exact_x);
  const DeviceMatrix x_matrix = MakeMatrix(rows, in, x);
  const std::vector<float> old = Normals(rows * out);
  const DeviceMatrix result =
      accumulate ? MakeMatrix(rows, out, old) : MakeMatrix(rows, out);
  {
    StreamScope scope(*stream_);
    ops().Linear(*stream_, x_matrix.view, **weight, result.view, accumulate);
  }
  const std::vector<float> actual = result.Read();
  EXPECT_TRUE(result.PaddingIntact());

  const reference::Matrix x_reference = ToReference(rows, in, x);
  const reference::Matrix expected =
      reference::Linear(x_reference, expected_weight, expected_bias);
  const reference::Matrix magnitude =
      reference::LinearMagnitude(x_reference, expected_weight);
  int64_t bad = 0;
  for (int64_t i = 0; i < rows * out && bad < 3; ++i) {
    const double want = expected.data[i] + (accumulate ? old[i] : 0.0);
    // Rounding errors of a sum of random signs grow like its magnitude; bf16
    // rounding of x adds independent errors, which grow like the root of K.
    double tolerance = 8 * kRoundoffF32 * (magnitude.data[i] + 8);
    if (dtype == DType::kBF16 && !exact_x) {
      // A CPU keeps 16 bits of few rows' input, in two halves.
      const bool is_exact =
          rows <= kMaxExactRows && device_->info().name == "cpu";
      const double roundoff =
          is_exact ? kRoundoffBF16 * kRoundoffBF16 : kRoundoffBF16;
      tolerance +=
          8 * roundoff * magnitude.data[i] / std::sqrt(static_cast<double>(in));
    }
    if (std::abs(actual[i] - want) > tolerance || std::isnan(actual[i])) {
      ++bad;
      ADD_FAILURE() << "[" << i / out << ", " << i % out << "] is " << actual[i]
                    << ", want " << want << " +- " << tolerance;
    }
  }
}

TEST_P(LinearTest, SizesThatFitNothing) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const auto& [in, out] :
         std::vector<std::pair<int64_t, int64_t>>{{1, 1},
                                                  {37, 37},
                                                  {63, 65},
                                                  {64, 64},
                                                  {129, 1},
                                                  {2, 200},
                                                  {333, 128},
                                                  {1689, 70},
                                                  {70, 1689}}) {
      for (const int64_t rows : {1, 2, 3, 5, 6, 7, 13, 33, 70}) {
        Check(rows, in, {out}, dtype, DType::kBF16, rows % 2 == 0,
              rows % 3 == 0, /*exact_x=*/true);
      }
    }
  }
}

TEST_P(LinearTest, OddWidthsOfPrunedModels) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t rows : {1, 4, 9, 40}) {
      Check(rows, 4505, {211}, dtype, DType::kBF16, false, true, true);
      Check(rows, 2334, {130}, dtype, DType::kBF16, true, false, true);
      Check(rows, 8171, {67}, dtype, DType::kBF16, false, false, true);
    }
  }
}

TEST_P(LinearTest, MoreRowsAndDepthsThanOneBlockHolds) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t rows : {64, 65, 257, 300, 515}) {
      Check(rows, 2080, {70}, dtype, DType::kBF16, true, true, true);
      Check(rows, 4505, {31}, dtype, DType::kBF16, true, false, true);
    }
  }
}

TEST_P(LinearTest, StacksAndConverts) {
  for (const DType file_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Check(3, 100, {50, 7, 131}, dtype, file_dtype, true, false, true);
      Check(40, 77, {9, 9}, dtype, file_dtype, false, true, true);
    }
  }
}

TEST_P(LinearTest, RowsThatBF16CannotHold) {
  for (const int64_t rows : {1, 2, 3, 4, 7, 16, 17, 32, 33, 50, 64, 65, 300}) {
    Check(rows, 1000, {150}, DType::kBF16, DType::kBF16, false, false, false);
    Check(rows, 2081, {67}, DType::kBF16, DType::kBF16, true, true, false);
  }
  for (const int64_t rows : {1, 8, 50}) {
    Check(rows, 1000, {150}, DType::kF32, DType::kF32, true, true, false);
  }
}

TEST_P(LinearTest, RandomSizes) {
  for (int i = 0; i < 40; ++i) {
    Check(Uniform(1, 80), Uniform(1, 400), {Uniform(1, 300)},
          Uniform(0, 1) != 0 ? DType::kF32 : DType::kBF16, DType::kF32,
          Uniform(0, 1) != 0, Uniform(0, 1) != 0, true);
  }
}

TEST_P(LinearTest, RefusesWhatDoesNotStack) {
  const OwnedTensor a({3, 5}, DType::kF32, Normals(15));
  const OwnedTensor b({3, 4}, DType::kF32, Normals(12));
  const OwnedTensor bias({3}, DType::kF32, Normals(3));
  const std::vector<HostTensor> uneven = {a.view, b.view};
  EXPECT_TRUE(absl::IsInvalidArgument(
      ops().MakeLinear(uneven, {}, DType::kF32).status()));
  const std::vector<HostTensor> one = {a.view};
  const std::vector<HostTensor> two_biases = {bias.view, bias.view};
  EXPECT_TRUE(absl::IsInvalidArgument(
      ops().MakeLinear(one, two_biases, DType::kF32).status()));
  const std::vector<HostTensor> vector = {bias.view};
  EXPECT_TRUE(absl::IsInvalidArgument(
      ops().MakeLinear(vector, {}, DType::kF32).status()));
  EXPECT_TRUE(ops().MakeLinear(one, vector, DType::kF32).ok());
}

TEST_P(LinearTest, EmbeddingReadsRows) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const int64_t vocab_size = 301;
    const int64_t width = 131;
    const OwnedTensor table({vocab_size, width}, DType::kBF16,
                            Normals(vocab_size * width));
    const std::vector<HostTensor> weights = {table.view};
    auto weight = ops().MakeLinear(weights, {}, dtype);
    ASSERT_TRUE(weight.ok());
    std::vector<int32_t> ids = {0, 300, 63, 64, 300};
    for (int i = 0; i < 50; ++i) ids.push_back(Uniform(0, vocab_size - 1));
    const auto device_ids = Upload(ids);
    BatchView batch;
    batch.num_rows = static_cast<int32_t>(ids.size());
    batch.token_ids = device_ids.data();
    const DeviceMatrix out = MakeMatrix(batch.num_rows, width);
    ops().Embedding(*stream_, **weight, batch, out.view);
    const std::vector<float> actual = out.Read();
    EXPECT_TRUE(out.PaddingIntact());
    for (size_t i = 0; i < ids.size(); ++i) {
      for (int64_t c = 0; c < width; ++c) {
        ASSERT_EQ(actual[i * width + c], table.values[ids[i] * width + c]);
      }
    }
  }
}

TEST_P(LinearTest, VectorsAreFloats) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const OwnedTensor tensor({77}, dtype, Normals(77));
    auto vector = ops().MakeVector(tensor.view);
    ASSERT_TRUE(vector.ok());
    std::vector<float> actual(77);
    stream_->CopyToHost(actual.data(), (*vector)->data(), 77 * 4);
    ASSERT_TRUE(stream_->Synchronize().ok());
    for (int i = 0; i < 77; ++i) EXPECT_EQ(actual[i], tensor.values[i]);
  }
}

OVERFILL_INSTANTIATE_BACKENDS(LinearTest);

}  // namespace
}  // namespace overfill
