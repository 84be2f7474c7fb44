#include "server/request_log.h"

#include <chrono>
#include <utility>

#include "server/errors.h"

namespace overfill {
namespace {

// What clients see of the code: faults of our own are INTERNAL.
std::string CodeName(const absl::Status& status) {
  if (status.ok()) return "OK";
  return absl::StatusCodeToString(
      static_cast<absl::StatusCode>(ToGrpcCode(status)));
}

double SecondsSince(SteadyTime begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
      .count();
}

const char* FinishName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kEos:
      return "eos";
  }
  return "";
}

LogFields FieldsOf(const RequestLogEntry& entry, const absl::Status& status) {
  LogFields fields = {{"code", CodeName(status)}};
  const auto add = [&fields](const char* name, LogValue value) {
    fields.emplace_back(name, std::move(value));
  };
  if (!entry.request_id.empty()) add("request_id", entry.request_id);
  if (!entry.tenant.empty()) add("tenant", entry.tenant);
  if (!entry.peer.empty()) add("peer", entry.peer);
  if (entry.trace) {
    add("trace_id", entry.trace->trace_id);
    add("parent_span_id", entry.trace->parent_id);
  }
  if (entry.path) add("path", std::string(DecodePathName(*entry.path)));
  if (entry.priority != 0) add("priority", int64_t{entry.priority});
  if (entry.n != 1) add("n", int64_t{entry.n});
  if (!status.ok()) add("error", std::string(status.message()));
  return fields;
}

void AddPrompt(const RequestLogEntry& entry, LogFields& fields) {
  if (entry.prompt.empty()) return;
  fields.emplace_back("prompt",
                      entry.prompt.substr(0, RequestLog::kMaxPromptBytes));
}

}  // namespace

void RequestLog::Ended(const RequestLogEntry& entry, const Terminal& terminal) {
  if (!options_.log_requests) return;
  LogFields fields = FieldsOf(entry, terminal.status);
  const auto add = [&fields](const char* name, LogValue value) {
    fields.emplace_back(name, std::move(value));
  };
  if (terminal.status.ok()) {
    add("finish_reason", std::string(FinishName(terminal.finish_reason)));
  }
  add("prompt_tokens", int64_t{terminal.usage.prompt_tokens});
  add("cached_prompt_tokens", int64_t{terminal.usage.cached_prompt_tokens});
  add("completion_tokens", int64_t{terminal.usage.completion_tokens});
  add("queue_seconds", terminal.timings.queue_seconds);
  add("prefill_seconds", terminal.timings.prefill_seconds);
  add("migration_seconds", terminal.timings.migration_seconds);
  add("decode_seconds", terminal.timings.decode_seconds);
  add("ttft_seconds", terminal.timings.ttft_seconds);
  add("seconds", SecondsSince(entry.arrival));
  AddPrompt(entry, fields);
  Log(LogLevel::kInfo, "request", fields);
}

void RequestLog::Refused(const RequestLogEntry& entry,
                         const absl::Status& status, absl::string_view reason) {
  int64_t suppressed = 0;
  if (!options_.log_requests ||
      !refusals_.Pass(std::chrono::steady_clock::now(), suppressed)) {
    return;
  }
  LogFields fields = FieldsOf(entry, status);
  if (!reason.empty()) fields.emplace_back("reason", std::string(reason));
  fields.emplace_back("seconds", SecondsSince(entry.arrival));
  if (suppressed > 0) fields.emplace_back("lines_left_out", suppressed);
  AddPrompt(entry, fields);
  Log(LogLevel::kInfo, "request refused", fields);
}

}  // namespace overfill
