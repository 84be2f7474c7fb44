// The client's command line.
#ifndef OVERFILL_CLIENT_OPTIONS_H_
#define OVERFILL_CLIENT_OPTIONS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/connection.h"
#include "overfill/v1/inference.pb.h"

namespace overfill {

struct ClientOptions {
  enum class Action { kGenerate, kHelp, kVersion };
  Action action = Action::kGenerate;
  ConnectionOptions connection;
  v1::GenerateRequest request;                    // all but the prompt
  std::string prompt;                             // "-": standard input
  absl::Duration timeout = absl::ZeroDuration();  // 0: none
  bool json = false;
  bool stats = false;
};

std::string ClientHelp();
const char* ClientVersion();

// `args` without the program's name. INVALID_ARGUMENT is one line. Values are
// not checked here beyond their form: the server knows what it takes.
absl::StatusOr<ClientOptions> ParseClientOptions(
    const std::vector<std::string>& args);

}  // namespace overfill

#endif  // OVERFILL_CLIENT_OPTIONS_H_
