#include "base/checked_math.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace overfill {
namespace {

TEST(CheckedMathTest, OverflowHasNoValue) {
  EXPECT_EQ(CheckedMul(UINT32_MAX, UINT32_MAX), 0xfffffffe00000001u);
  EXPECT_EQ(CheckedMul(uint64_t{1} << 32, uint64_t{1} << 32), std::nullopt);
  EXPECT_EQ(CheckedAdd(UINT64_MAX, 0), UINT64_MAX);
  EXPECT_EQ(CheckedAdd(UINT64_MAX, 1), std::nullopt);
}

TEST(CheckedMathTest, ProductsOfDimensions) {
  EXPECT_EQ(CheckedProduct(std::vector<int64_t>{}), 1u);
  EXPECT_EQ(CheckedProduct(std::vector<int64_t>{3, 0, 5}), 0u);
  EXPECT_EQ(CheckedProduct(std::vector<int64_t>{3, 4, 5}), 60u);
  EXPECT_EQ(CheckedProduct(std::vector<int64_t>{3, -4}), std::nullopt);
  EXPECT_EQ(CheckedProduct(std::vector<int64_t>{INT64_MAX, 3}), std::nullopt);
}

TEST(CheckedMathTest, Rounding) {
  EXPECT_EQ(CeilDiv(0, 16), 0);
  EXPECT_EQ(CeilDiv(16, 16), 1);
  EXPECT_EQ(CeilDiv(17, 16), 2);
  EXPECT_EQ(RoundUp(1689, 64), 1728);
}

}  // namespace
}  // namespace overfill
