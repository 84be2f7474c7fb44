// What the client prints.
#ifndef OVERFILL_CLIENT_PRINTER_H_
#define OVERFILL_CLIENT_PRINTER_H_

#include <string>

#include "absl/time/time.h"
#include "grpcpp/support/status.h"
#include "overfill/v1/inference.pb.h"

namespace overfill {

// One line of JSON, without the line's end.
std::string EventJson(const v1::GenerateResponse& event);

// One line: the status, and the violations of fields where it has some.
std::string ErrorLine(const grpc::Status& status);

// One line: path, tokens, time to the first token as the client saw it, tokens
// per second after the first, and the server's timings.
std::string StatsLine(const v1::GenerateRequest& request,
                      const v1::Completion& completion,
                      absl::Duration first_token);

}  // namespace overfill

#endif  // OVERFILL_CLIENT_PRINTER_H_
