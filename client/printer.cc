#include "client/printer.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "base/check.h"
#include "google/protobuf/util/json_util.h"
#include "overfill/rpc/error_details.pb.h"
#include "overfill/rpc/status.pb.h"

namespace overfill {
namespace {

// As grpc.io names the codes.
const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  const int index = static_cast<int>(code);
  return index >= 0 && index < 17 ? kNames[index] : "UNKNOWN";
}

std::string PathName(v1::DecodePath path) {
  if (path == v1::DECODE_PATH_UNSPECIFIED) path = v1::DECODE_PATH_TWO_STAGE;
  std::string name = v1::DecodePath_Name(path);
  return absl::AsciiStrToLower(absl::StripPrefix(name, "DECODE_PATH_"));
}

}  // namespace

std::string EventJson(const v1::GenerateResponse& event) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status =
      google::protobuf::util::MessageToJsonString(event, &json, options);
  OVERFILL_CHECK(status.ok());
  return json;
}

AnswerText::AnswerText(uint32_t n) : n_(std::max<uint32_t>(1, n)) {}

std::string AnswerText::Add(const v1::GenerateResponse& event) {
  const uint32_t index =
      event.has_delta() ? event.delta().index() : event.completion().index();
  if (index >= n_) return "";  // not what was asked for
  Answer& answer = answers_[index];
  if (event.has_delta()) {
    answer.text += event.delta().text();
    return index == turn_ ? Flush(index) : "";
  }
  answer.is_complete = true;
  std::string out;
  while (turn_ < n_) {
    out += Flush(turn_);
    if (!answers_[turn_].is_complete) break;
    out += "\n";
    ++turn_;
  }
  return out;
}

std::string AnswerText::Finish() {
  std::string out;
  for (auto it = answers_.lower_bound(turn_); it != answers_.end(); ++it) {
    out += Flush(it->first) + "\n";
  }
  turn_ = n_;
  return out;
}

std::string AnswerText::Flush(uint32_t index) {
  Answer& answer = answers_[index];
  std::string out;
  if (!answer.is_begun && n_ > 1) {
    out = absl::StrCat("[", index + 1, "/", n_, "]\n");
  }
  answer.is_begun = true;
  out += answer.text;
  answer.text.clear();
  return out;
}

std::string AnswerPrefix(uint32_t index, uint32_t n) {
  return n > 1 ? absl::StrCat("[", index + 1, "/", n, "] ") : "";
}

std::string ErrorLine(const grpc::Status& status) {
  std::string line =
      absl::StrCat(CodeName(status.error_code()), ": ", status.error_message());
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& any : details.details()) {
      google::rpc::BadRequest bad;
      if (!any.UnpackTo(&bad)) continue;
      for (const auto& violation : bad.field_violations()) {
        const std::string text =
            absl::StrCat(violation.field(), ": ", violation.description());
        // The first one is the message already.
        if (text != status.error_message()) absl::StrAppend(&line, "; ", text);
      }
    }
  }
  return absl::Utf8SafeCHexEscape(line);
}

std::string StatsLine(const v1::GenerateRequest& request,
                      const v1::Completion& completion,
                      absl::Duration first_token) {
  const v1::Usage& usage = completion.usage();
  const v1::Timings& timings = completion.timings();
  const double rate = usage.completion_tokens() > 1 && timings.decode() > 0
                          ? (usage.completion_tokens() - 1) / timings.decode()
                          : 0;
  return absl::StrFormat(
      "path %s, %d prompt tokens, %d tokens, ttft %.1f ms, %.1f tokens/s "
      "(queue %.1f ms, prefill %.1f ms, migration %.3f ms, decode %.1f ms, "
      "seed %d)",
      PathName(request.path()), usage.prompt_tokens(),
      usage.completion_tokens(), absl::ToDoubleMilliseconds(first_token), rate,
      timings.queue() * 1e3, timings.prefill() * 1e3, timings.migration() * 1e3,
      timings.decode() * 1e3, completion.seed());
}

}  // namespace overfill
