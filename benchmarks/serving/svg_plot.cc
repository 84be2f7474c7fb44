#include "benchmarks/serving/svg_plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace overfill {
namespace {

// In the units of the picture.
constexpr double kPanelWidth = 480, kPanelHeight = 320;
constexpr double kLeft = 70, kRight = 20, kTop = 40, kBottom = 50;
constexpr double kPlotWidth = kPanelWidth - kLeft - kRight;
constexpr double kPlotHeight = kPanelHeight - kTop - kBottom;
constexpr double kTitleHeight = 40;
constexpr double kLegendLine = 16;
constexpr size_t kColumns = 2;

// Distinct for colour-blind readers too (Okabe and Ito).
constexpr std::array<const char*, 6> kColors = {
    "#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"};

std::string Escape(absl::string_view text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string Text(double x, double y, absl::string_view anchor,
                 absl::string_view more, absl::string_view text) {
  return absl::StrFormat(
      "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>%s</text>\n", x, y,
      anchor, more, Escape(text));
}

std::string Line(double x1, double y1, double x2, double y2,
                 absl::string_view color) {
  return absl::StrFormat(
      "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" "
      "stroke=\"%s\"/>\n",
      x1, y1, x2, y2, color);
}

// Values to positions along one axis.
struct Axis {
  std::vector<double> ticks;
  bool log = false;

  double Share(double value) const {
    const double low = ticks.front(), high = ticks.back();
    if (log) {
      return (std::log10(value) - std::log10(low)) /
             (std::log10(high) - std::log10(low));
    }
    return (value - low) / (high - low);
  }
};

bool Drawable(const PlotPanel& panel, const PlotPoint& point) {
  return std::isfinite(point.x) && std::isfinite(point.y) &&
         (!panel.log_y || point.y > 0);
}

// Of everything drawable; nullptr member: x or y.
Axis MakeAxis(const PlotPanel& panel, double PlotPoint::*member, bool log) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const PlotSeries& series : panel.series) {
    for (const PlotPoint& point : series.points) {
      if (!Drawable(panel, point)) continue;
      low = std::min(low, point.*member);
      high = std::max(high, point.*member);
    }
  }
  if (low > high) low = log ? 1 : 0, high = 1;  // nothing to draw
  if (log) return {LogTicks(low, high), true};
  low = std::min(low, 0.0);
  if (high <= low) high = low + 1;
  return {LinearTicks(low, high), false};
}

std::string TickLabel(double value) { return absl::StrFormat("%.6g", value); }

std::string RenderAxes(const PlotPanel& panel, const Axis& x, const Axis& y) {
  std::string svg;
  for (const double tick : y.ticks) {
    const double at = kTop + kPlotHeight * (1 - y.Share(tick));
    absl::StrAppend(&svg, Line(kLeft, at, kLeft + kPlotWidth, at, "#dddddd"),
                    Text(kLeft - 6, at + 4, "end", "", TickLabel(tick)));
  }
  for (const double tick : x.ticks) {
    const double at = kLeft + kPlotWidth * x.Share(tick);
    absl::StrAppend(
        &svg, Line(at, kTop + kPlotHeight, at, kTop + kPlotHeight + 4, "#333"),
        Text(at, kTop + kPlotHeight + 18, "middle", "", TickLabel(tick)));
  }
  absl::StrAppend(&svg, Line(kLeft, kTop, kLeft, kTop + kPlotHeight, "#333"),
                  Line(kLeft, kTop + kPlotHeight, kLeft + kPlotWidth,
                       kTop + kPlotHeight, "#333"),
                  Text(kLeft + kPlotWidth / 2, kTop - 14, "middle",
                       " font-weight=\"bold\"", panel.title),
                  Text(kLeft + kPlotWidth / 2, kPanelHeight - 12, "middle", "",
                       panel.x_label),
                  Text(-(kTop + kPlotHeight / 2), 16, "middle",
                       " transform=\"rotate(-90)\"", panel.y_label));
  return svg;
}

std::string RenderSeries(const PlotPanel& panel, size_t number, const Axis& x,
                         const Axis& y) {
  const PlotSeries& series = panel.series[number];
  const char* color = kColors[number % kColors.size()];
  std::string path, marks;
  for (const PlotPoint& point : series.points) {
    if (!Drawable(panel, point)) continue;
    const double px = kLeft + kPlotWidth * x.Share(point.x);
    const double py = kTop + kPlotHeight * (1 - y.Share(point.y));
    absl::StrAppendFormat(&path, "%s%.1f,%.1f", path.empty() ? "" : " ", px,
                          py);
    absl::StrAppendFormat(
        &marks, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", px,
        py, color);
  }
  const double legend = kTop + 6 + kLegendLine * static_cast<double>(number);
  return absl::StrCat("<polyline fill=\"none\" stroke-width=\"2\" stroke=\"",
                      color, "\" points=\"", path, "\"/>\n", marks,
                      Line(kLeft + 10, legend, kLeft + 30, legend, color),
                      Text(kLeft + 36, legend + 4, "start", "", series.name));
}

}  // namespace

std::vector<double> LinearTicks(double min, double max) {
  const double rough = (max - min) / 5;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = power;
  for (const double factor : {2.0, 5.0, 10.0}) {
    if (step < rough) step = factor * power;
  }
  const double first = std::floor(min / step + 1e-9);
  const double last = std::ceil(max / step - 1e-9);
  std::vector<double> ticks;
  for (int i = 0; first + i <= last; ++i) ticks.push_back((first + i) * step);
  return ticks;
}

std::vector<double> LogTicks(double min, double max) {
  const int first = static_cast<int>(std::floor(std::log10(min) + 1e-9));
  const int last =
      std::max(first + 1, static_cast<int>(std::ceil(std::log10(max) - 1e-9)));
  std::vector<double> ticks;
  for (int power = first; power <= last; ++power) {
    ticks.push_back(std::pow(10, power));
  }
  return ticks;
}

std::string RenderSvg(absl::string_view title,
                      std::span<const PlotPanel> panels) {
  const size_t columns = std::min(kColumns, std::max<size_t>(1, panels.size()));
  const size_t rows = (panels.size() + columns - 1) / columns;
  const double width = kPanelWidth * static_cast<double>(columns);
  const double height = kTitleHeight + kPanelHeight * static_cast<double>(rows);
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
      "width=\"%.0f\" height=\"%.0f\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" "
      "fill=\"white\"/>\n",
      width, height, width, height);
  absl::StrAppend(&svg,
                  Text(width / 2, 24, "middle", " font-size=\"16\"", title));
  for (size_t i = 0; i < panels.size(); ++i) {
    const PlotPanel& panel = panels[i];
    const size_t row = i / columns;
    const Axis x = MakeAxis(panel, &PlotPoint::x, false);
    const Axis y = MakeAxis(panel, &PlotPoint::y, panel.log_y);
    absl::StrAppendFormat(
        &svg, "<g transform=\"translate(%.0f,%.0f)\">\n",
        kPanelWidth * static_cast<double>(i % columns),
        kTitleHeight + kPanelHeight * static_cast<double>(row));
    absl::StrAppend(&svg, RenderAxes(panel, x, y));
    for (size_t s = 0; s < panel.series.size(); ++s) {
      absl::StrAppend(&svg, RenderSeries(panel, s, x, y));
    }
    absl::StrAppend(&svg, "</g>\n");
  }
  absl::StrAppend(&svg, "</svg>\n");
  return svg;
}

}  // namespace overfill
