#include "server/trace_context.h"

namespace overfill {
namespace {

// version "-" trace-id "-" parent-id "-" flags
constexpr size_t kTraceAt = 3;
constexpr size_t kTraceDigits = 32;
constexpr size_t kParentAt = kTraceAt + kTraceDigits + 1;
constexpr size_t kParentDigits = 16;
constexpr size_t kFlagsAt = kParentAt + kParentDigits + 1;
constexpr size_t kLength = kFlagsAt + 2;

// Capitals are not allowed.
bool IsHex(absl::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == absl::string_view::npos;
}

bool IsZero(absl::string_view text) {
  return text.find_first_not_of('0') == absl::string_view::npos;
}

}  // namespace

std::optional<TraceContext> ParseTraceParent(absl::string_view header) {
  if (header.size() < kLength) return std::nullopt;
  const absl::string_view version = header.substr(0, 2);
  const absl::string_view trace = header.substr(kTraceAt, kTraceDigits);
  const absl::string_view parent = header.substr(kParentAt, kParentDigits);
  const absl::string_view flags = header.substr(kFlagsAt, 2);
  const bool has_dashes = header[kTraceAt - 1] == '-' &&
                          header[kParentAt - 1] == '-' &&
                          header[kFlagsAt - 1] == '-';
  if (!has_dashes || !IsHex(version) || !IsHex(trace) || !IsHex(parent) ||
      !IsHex(flags) || version == "ff" || IsZero(trace) || IsZero(parent)) {
    return std::nullopt;
  }
  if (header.size() > kLength && (version == "00" || header[kLength] != '-')) {
    return std::nullopt;
  }
  return TraceContext{.trace_id = std::string(trace),
                      .parent_id = std::string(parent)};
}

}  // namespace overfill
