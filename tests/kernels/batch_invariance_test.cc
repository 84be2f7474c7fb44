// With DeviceOptions::batch_invariant a row's bits depend on that row alone.
// Whole models are compared in tests/engine; here are the widths that are too
// large for them.
#include <cstring>

#include "tests/kernels/backend_test.h"

namespace overfill {
namespace {

class BatchInvarianceTest : public BackendTest {
 protected:
  std::vector<float> Product(const std::vector<float>& x, int64_t rows,
                             const LinearWeight& weight,
                             const std::vector<float>& old) {
    const DeviceMatrix in = MakeMatrix(rows, weight.in_features(), x);
    const DeviceMatrix out = MakeMatrix(rows, weight.out_features(), old);
    ops().Linear(*stream_, in.view, weight, out.view, !old.empty());
    return out.Read();
  }
};

TEST_P(BatchInvarianceTest, AProductsRowIsTheSameAmongAnyNumber) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kInt8}) {
    for (const int64_t in : {1, 63, 1689, 2048, 4505, 8171}) {
      const int64_t out = Uniform(1, 150);
      const OwnedTensor tensor({out, in}, DType::kF32, Normals(out * in));
      const OwnedTensor bias({out}, DType::kF32, Normals(out));
      const std::vector<HostTensor> weights = {tensor.view};
      const std::vector<HostTensor> biases = {bias.view};
      auto weight = ops().MakeLinear(weights, biases, dtype);
      ASSERT_TRUE(weight.ok()) << weight.status();
      const std::vector<float> x = Normals(in);
      const bool accumulate = Uniform(0, 1) != 0;
      const std::vector<float> old =
          accumulate ? Normals(out) : std::vector<float>();
      const std::vector<float> alone = Product(x, 1, **weight, old);
      for (const int64_t rows : {2, 3, 4, 5, 6, 7, 31, 64, 65, 130}) {
        const int64_t at = Uniform(0, rows - 1);
        std::vector<float> all = Normals(rows * in);
        std::copy(x.begin(), x.end(), all.begin() + at * in);
        std::vector<float> all_old =
            accumulate ? Normals(rows * out) : std::vector<float>();
        std::copy(old.begin(), old.end(),
                  all_old.begin() + (accumulate ? at * out : 0));
        const std::vector<float> together =
            Product(all, rows, **weight, all_old);
        ASSERT_EQ(std::memcmp(alone.data(), together.data() + at * out,
                              out * sizeof(float)),
                  0)
            << DTypeName(dtype) << " " << in << " -> " << out << ", row " << at
            << " of " << rows;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, BatchInvarianceTest,
                         ::testing::Values("cpu_batch_invariant"));

}  // namespace
}  // namespace overfill
