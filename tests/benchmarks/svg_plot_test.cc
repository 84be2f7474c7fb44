#include "benchmarks/serving/svg_plot.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

int Count(const std::string& text, const std::string& part) {
  return static_cast<int>(
             std::vector<std::string>(absl::StrSplit(text, part)).size()) -
         1;
}

TEST(TicksTest, AreRoundAndCover) {
  EXPECT_THAT(LinearTicks(0, 10), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(LogTicks(3, 250), ElementsAre(1, 10, 100, 1000));
  EXPECT_THAT(LogTicks(10, 10), ElementsAre(10, 100));
  std::mt19937_64 random(TestSeed());
  std::uniform_real_distribution<double> exponent(-6, 6), unit(0.01, 1);
  for (int i = 0; i < 1000; ++i) {
    const double max = std::pow(10, exponent(random));
    const double min = max * (1 - unit(random));
    const auto linear = LinearTicks(min, max);
    EXPECT_LE(linear.front(), min * (1 + 1e-6) + 1e-12);
    EXPECT_GE(linear.back(), max * (1 - 1e-6));
    EXPECT_GE(linear.size(), 3u);
    EXPECT_LE(linear.size(), 10u);
    if (min <= 0) continue;
    const auto log = LogTicks(min, max);
    EXPECT_LE(log.front(), min * (1 + 1e-6));
    EXPECT_GE(log.back(), max * (1 - 1e-6));
  }
}

TEST(SvgTest, DrawsEachPointWhereItBelongs) {
  const PlotPanel panel{
      "T", "x", "y", false, {{"a", {{0, 0}, {5, 10}, {10, 5}}}}};
  const std::string svg = RenderSvg("title", {&panel, 1});
  // The plot is 390 by 230 units, from (70, 40); both axes reach 10.
  EXPECT_THAT(svg, HasSubstr("points=\"70.0,270.0 265.0,40.0 460.0,155.0\""));
  EXPECT_EQ(Count(svg, "<circle "), 3);
}

TEST(SvgTest, LogarithmicAxesSpaceDecadesEvenly) {
  const PlotPanel panel{
      "T", "x", "y", true, {{"a", {{0, 1}, {5, 10}, {10, 100}}}}};
  EXPECT_THAT(RenderSvg("", {&panel, 1}),
              HasSubstr("points=\"70.0,270.0 265.0,155.0 460.0,40.0\""));
}

TEST(SvgTest, IsWellFormedWhateverTheTextAndTheValues) {
  const double nan = std::nan("");
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<PlotPanel> panels = {
      {"<a> & \"b\"", "x", "y", false, {{"s", {{1, nan}, {inf, 1}}}}},
      {"empty", "x", "y", true, {}},
      {"one", "x", "y", true, {{"s", {{1, 0}, {2, 7}}}}}};
  const std::string svg = RenderSvg("a<b", panels);
  EXPECT_THAT(svg, HasSubstr("&lt;a&gt; &amp; &quot;b&quot;"));
  EXPECT_THAT(svg, HasSubstr("a&lt;b"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  EXPECT_EQ(Count(svg, "<circle "), 1);
  for (const char* tag : {"svg", "g", "text"}) {
    EXPECT_EQ(Count(svg, std::string("<") + tag + " "),
              Count(svg, std::string("</") + tag + ">"));
  }
}

}  // namespace
}  // namespace overfill
