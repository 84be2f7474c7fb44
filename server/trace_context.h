// The W3C trace context of a call (https://www.w3.org/TR/trace-context/), so
// that a line of the log finds its trace.
#ifndef OVERFILL_SERVER_TRACE_CONTEXT_H_
#define OVERFILL_SERVER_TRACE_CONTEXT_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace overfill {

struct TraceContext {
  std::string trace_id;   // 32 hex digits, not all 0
  std::string parent_id;  // the caller's span: 16 hex digits, not all 0
};

// Of the header `traceparent`; nothing where it is not one, as the standard
// asks. Of versions to come the known part is read.
std::optional<TraceContext> ParseTraceParent(absl::string_view header);

}  // namespace overfill

#endif  // OVERFILL_SERVER_TRACE_CONTEXT_H_
