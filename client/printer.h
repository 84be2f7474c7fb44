// What the client prints.
#ifndef OVERFILL_CLIENT_PRINTER_H_
#define OVERFILL_CLIENT_PRINTER_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/time/time.h"
#include "grpcpp/support/status.h"
#include "overfill/v1/inference.pb.h"

namespace overfill {

// One line of JSON, without the line's end.
std::string EventJson(const v1::GenerateResponse& event);

// One line: the status, and the violations of fields where it has some.
std::string ErrorLine(const grpc::Status& status);

// The text of a stream as it is to be printed, piece by piece. A single answer
// comes as it is. Several come one after the other, each under a line "[I/N]":
// the first as it comes, the next once those before it are complete. Not
// thread-safe.
class AnswerText {
 public:
  explicit AnswerText(uint32_t n);  // answers asked for; 0 is 1

  // What the event lets be printed; often nothing.
  std::string Add(const v1::GenerateResponse& event);
  // The rest, when the stream has ended, in whatever way.
  std::string Finish();

 private:
  struct Answer {
    std::string text;  // not printed yet
    bool is_begun = false;
    bool is_complete = false;
  };
  // The text of the answer in turn; its line before it.
  std::string Flush(uint32_t index);

  const uint32_t n_;
  std::map<uint32_t, Answer> answers_;  // those that something has come of
  uint32_t turn_ = 0;                   // that is printed as it comes
};

// "[I/N] " before what is of one answer of several, else "".
std::string AnswerPrefix(uint32_t index, uint32_t n);

// One line: path, tokens, time to the first token as the client saw it, tokens
// per second after the first, and the server's timings.
std::string StatsLine(const v1::GenerateRequest& request,
                      const v1::Completion& completion,
                      absl::Duration first_token);

}  // namespace overfill

#endif  // OVERFILL_CLIENT_PRINTER_H_
