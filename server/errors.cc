#include "server/errors.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "google/protobuf/message.h"
#include "overfill/rpc/error_details.pb.h"
#include "overfill/rpc/status.pb.h"

namespace overfill {
namespace {

std::string TypeUrl(const google::protobuf::Message& message) {
  return absl::StrCat("type.googleapis.com/",
                      message.GetDescriptor()->full_name());
}

void Attach(const google::protobuf::Message& detail, absl::Status* status) {
  status->SetPayload(TypeUrl(detail), absl::Cord(detail.SerializeAsString()));
}

// The codes that the API documents. Those that speak of what a client sent
// count only where a field is named: without one it is a layer below that found
// a fault of ours.
bool IsForClients(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
      return status
          .GetPayload(TypeUrl(google::rpc::BadRequest::default_instance()))
          .has_value();
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kUnavailable:
      return true;
    default:
      return false;
  }
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kEos:
      return v1::FINISH_REASON_EOS;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void SetCosts(uint64_t seed, const Usage& usage, const Timings& timings,
              v1::Completion& proto) {
  proto.set_seed(seed);
  v1::Usage& counts = *proto.mutable_usage();
  counts.set_prompt_tokens(usage.prompt_tokens);
  counts.set_cached_prompt_tokens(usage.cached_prompt_tokens);
  counts.set_completion_tokens(usage.completion_tokens);
  v1::Timings& seconds = *proto.mutable_timings();
  seconds.set_queue(timings.queue_seconds);
  seconds.set_prefill(timings.prefill_seconds);
  seconds.set_migration(timings.migration_seconds);
  seconds.set_decode(timings.decode_seconds);
  seconds.set_ttft(timings.ttft_seconds);
}

}  // namespace

void Violations::Add(std::string field, std::string description) {
  if (!wants_more()) return;
  violations_.emplace_back(std::move(field), std::move(description));
}

absl::Status Violations::ToStatus(absl::StatusCode code) const {
  if (empty()) return absl::OkStatus();
  const auto& [field, description] = violations_.front();
  absl::Status status(code, absl::StrCat(field, ": ", description));
  google::rpc::BadRequest details;
  for (const auto& [f, d] : violations_) {
    auto* violation = details.add_field_violations();
    violation->set_field(f);
    violation->set_description(d);
  }
  Attach(details, &status);
  return status;
}

absl::Status FieldError(std::string field, std::string description,
                        absl::StatusCode code) {
  Violations violations;
  violations.Add(std::move(field), std::move(description));
  return violations.ToStatus(code);
}

absl::Status QuotaError(absl::string_view message, absl::string_view limit) {
  absl::Status status = absl::ResourceExhaustedError(message);
  google::rpc::QuotaFailure details;
  auto* violation = details.add_violations();
  violation->set_subject(std::string(limit));
  violation->set_description(std::string(message));
  Attach(details, &status);
  return status;
}

absl::Status RefusedStatus(const absl::Status& status,
                           std::chrono::nanoseconds retry_after) {
  using std::chrono::nanoseconds;
  using std::chrono::seconds;
  absl::Status result = status;
  if (result.code() == absl::StatusCode::kResourceExhausted) {
    // None at all would be an invitation to try again at once.
    const auto delay =
        std::max<nanoseconds>(retry_after, std::chrono::milliseconds(1));
    const auto whole = std::chrono::duration_cast<seconds>(delay);
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(whole.count());
    retry.mutable_retry_delay()->set_nanos(
        static_cast<int32_t>((delay - whole).count()));
    Attach(retry, &result);
  }
  return result;
}

v1::Completion MakeCompletion(const Completion& completion) {
  v1::Completion proto;
  proto.set_index(completion.index);
  proto.set_finish_reason(ToProto(completion.finish_reason));
  if (const auto* stop = std::get_if<std::string>(&completion.matched_stop)) {
    proto.set_stop(*stop);
  } else if (const auto* id = std::get_if<int32_t>(&completion.matched_stop)) {
    proto.set_stop_token_id(*id);
  }
  SetCosts(completion.seed, completion.usage, completion.timings, proto);
  return proto;
}

absl::Status EndedStatus(const Terminal& terminal) {
  v1::Completion proto;
  SetCosts(terminal.seed, terminal.usage, terminal.timings, proto);
  absl::Status result = terminal.status;
  Attach(proto, &result);
  return result;
}

grpc::StatusCode ToGrpcCode(const absl::Status& status) {
  if (status.ok()) return grpc::StatusCode::OK;
  return IsForClients(status) ? static_cast<grpc::StatusCode>(status.code())
                              : grpc::StatusCode::INTERNAL;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status details;
  details.set_code(ToGrpcCode(status));
  if (IsForClients(status)) {
    details.set_message(std::string(status.message()));
  } else {
    LogError(absl::StrCat(
        "a request failed: ", absl::StatusCodeToString(status.code()), ": ",
        status.message()));
    details.set_message("internal error");
  }
  status.ForEachPayload(
      [&details](absl::string_view type_url, const absl::Cord& value) {
        auto* any = details.add_details();
        any->set_type_url(std::string(type_url));
        any->set_value(std::string(value));
      });
  return grpc::Status(static_cast<grpc::StatusCode>(details.code()),
                      details.message(), details.SerializeAsString());
}

}  // namespace overfill
