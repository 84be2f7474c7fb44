// One line of the log for each request, when it has ended.
#ifndef OVERFILL_SERVER_REQUEST_LOG_H_
#define OVERFILL_SERVER_REQUEST_LOG_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "base/log.h"
#include "scheduler/request.h"
#include "server/tenants.h"
#include "server/trace_context.h"

namespace overfill {

struct RequestLogOptions {
  bool log_requests = true;
  bool log_prompts = false;
};

// What is known of a request before it ends; a refused one may lack the rest.
struct RequestLogEntry {
  std::string request_id;
  std::string tenant;  // "": without authentication
  std::optional<TraceContext> trace;
  std::string peer;  // as gRPC writes it: "ipv4:10.0.0.7:41000"
  std::optional<DecodePath> path;
  int32_t priority = 0;
  int32_t n = 1;
  SteadyTime arrival;
  std::string prompt;  // empty without log_prompts
};

// Thread-safe. Lines of requests that were not admitted are limited, as a
// client without limits of its own could write as many as it likes.
class RequestLog {
 public:
  static constexpr size_t kMaxPromptBytes = 16 << 10;
  static constexpr int32_t kRefusalsPerSecond = 20;

  explicit RequestLog(const RequestLogOptions& options) : options_(options) {}

  bool wants_prompts() const {
    return options_.log_requests && options_.log_prompts;
  }

  // Of a request that was admitted.
  void Ended(const RequestLogEntry& entry, const Terminal& terminal);
  // Of one that was not. `reason`: as in the metrics; "": none is known.
  void Refused(const RequestLogEntry& entry, const absl::Status& status,
               absl::string_view reason);

 private:
  const RequestLogOptions options_;
  LogLimiter refusals_{kRefusalsPerSecond};
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_REQUEST_LOG_H_
