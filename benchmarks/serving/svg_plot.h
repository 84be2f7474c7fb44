// Line charts as SVG, for results that are looked at: latency against rate.
#ifndef OVERFILL_BENCHMARKS_SERVING_SVG_PLOT_H_
#define OVERFILL_BENCHMARKS_SERVING_SVG_PLOT_H_

#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace overfill {

struct PlotPoint {
  double x;
  double y;
};

// Drawn as a line with a mark at each point, in the points' order. Points that
// are not finite, or at or below 0 on a logarithmic axis, are left out.
struct PlotSeries {
  std::string name;
  std::vector<PlotPoint> points;
};

struct PlotPanel {
  std::string title;
  std::string x_label;
  std::string y_label;
  bool log_y = false;
  std::vector<PlotSeries> series;
};

// Round numbers that cover [min, max] (min < max, finite) from at or below to
// at or above, some four to ten of them.
std::vector<double> LinearTicks(double min, double max);
// Powers of ten that do, for 0 < min <= max; two at least.
std::vector<double> LogTicks(double min, double max);

// The panels, two in a row. Text is escaped.
std::string RenderSvg(absl::string_view title,
                      std::span<const PlotPanel> panels);

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_SVG_PLOT_H_
