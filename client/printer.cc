#include "client/printer.h"

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
