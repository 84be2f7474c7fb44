// Errors as clients see them. Within the server an error is an absl::Status;
// its payloads, keyed by type URL, become the details of the gRPC status.
#ifndef OVERFILL_SERVER_ERRORS_H_
#define OVERFILL_SERVER_ERRORS_H_

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "grpcpp/support/status.h"
#include "overfill/v1/inference.pb.h"
#include "scheduler/request.h"

namespace overfill {

// Collects what is wrong with a request. Of thousands of bad fields only the
// first few are kept: a status must fit into a header.
class Violations {
 public:
  static constexpr size_t kMaxKept = 8;

  // `field` is a path, "limits.stop[3]". `description` never holds what the
  // client sent.
  void Add(std::string field, std::string description);
  bool empty() const { return violations_.empty(); }
  // False when more would be dropped anyway.
  bool wants_more() const { return violations_.size() < kMaxKept; }

  // OK when there are none; else an error whose message is the first one, with
  // all of them as a google.rpc.BadRequest.
  absl::Status ToStatus(
      absl::StatusCode code = absl::StatusCode::kInvalidArgument) const;

 private:
  std::vector<std::pair<std::string, std::string>> violations_;
};

// The same for one field.
absl::Status FieldError(
    std::string field, std::string description,
    absl::StatusCode code = absl::StatusCode::kInvalidArgument);

// RESOURCE_EXHAUSTED for a limit of the caller's own, with a
// google.rpc.QuotaFailure whose subject is `limit`, a short constant.
absl::Status QuotaError(absl::string_view message, absl::string_view limit);

// A status that Scheduler::Submit refused with, fit for a client:
// RESOURCE_EXHAUSTED comes with a google.rpc.RetryInfo of `retry_after`, at
// least a millisecond.
absl::Status RefusedStatus(const absl::Status& status,
                           std::chrono::nanoseconds retry_after);

// The status of a request that ended with an error, fit for a client: usage
// and timings so far come as an overfill.v1.Completion without a finish reason.
absl::Status EndedStatus(const Terminal& terminal);

v1::Completion MakeCompletion(const Completion& completion);

// The code that a client sees.
grpc::StatusCode ToGrpcCode(const absl::Status& status);

// With the details. Only what is meant for clients passes: a code that stands
// for a fault of our own becomes a bare INTERNAL, and the log gets the rest.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace overfill

#endif  // OVERFILL_SERVER_ERRORS_H_
