// overfill-client: streams one answer to standard output.
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/connection.h"
#include "client/options.h"
#include "client/printer.h"
#include "google/protobuf/stubs/logging.h"
#include "grpc/support/log.h"
#include "grpcpp/client_context.h"
#include "overfill/v1/inference.grpc.pb.h"

namespace overfill {
namespace {

constexpr int kExitError = 1;
constexpr int kExitBadFlags = 2;
constexpr int kExitInterrupted = 130;

// Cancels the call at SIGINT or SIGTERM; a second one ends the program.
class Interrupter {
 public:
  explicit Interrupter(grpc::ClientContext* context) : context_(context) {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    thread_ = std::thread([this] { Run(); });
  }
  ~Interrupter() {
    stopped_ = true;
    thread_.join();
  }
  bool interrupted() const { return interrupted_; }

 private:
  void Run() {
    const timespec poll = {.tv_sec = 0, .tv_nsec = 20'000'000};
    while (!stopped_) {
      if (sigtimedwait(&signals_, nullptr, &poll) <= 0) continue;
      if (interrupted_.exchange(true)) _exit(kExitInterrupted);
      context_->TryCancel();
    }
  }

  grpc::ClientContext* const context_;
  sigset_t signals_;
  std::atomic<bool> stopped_ = false;
  std::atomic<bool> interrupted_ = false;
  std::thread thread_;
};

void Print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

int Fail(int code, const std::string& line) {
  std::fprintf(stderr, "overfill-client: %s\n", line.c_str());
  return code;
}

std::string ReadInput() {
  return {std::istreambuf_iterator<char>(std::cin),
          std::istreambuf_iterator<char>()};
}

int Generate(const ClientOptions& options, const Connection& connection,
             const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  if (options.timeout > absl::ZeroDuration()) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
  }
  // Before the channel: its threads are to have the signals blocked too.
  Interrupter interrupter(&context);
  const auto stub = v1::Inference::NewStub(connection.NewChannel());
  const absl::Time begin = absl::Now();
  std::optional<absl::Duration> first_token;
  std::vector<v1::Completion> completions;
  AnswerText text(request.n());
  const auto reader = stub->Generate(&context, request);
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
    if (event.has_delta() && !first_token) first_token = absl::Now() - begin;
    if (event.has_completion()) completions.push_back(event.completion());
    if (options.json) {
      Print(EventJson(event) + "\n");
    } else {
      Print(text.Add(event));
    }
  }
  const grpc::Status status = reader->Finish();
  if (!options.json) Print(text.Finish());
  if (interrupter.interrupted()) return kExitInterrupted;
  if (!status.ok()) return Fail(kExitError, ErrorLine(status));
  if (!options.stats) return 0;
  for (const v1::Completion& completion : completions) {
    const std::string line = StatsLine(
        request, completion, first_token.value_or(absl::ZeroDuration()));
    std::fprintf(stderr, "%s%s\n",
                 AnswerPrefix(completion.index(), request.n()).c_str(),
                 line.c_str());
  }
  return 0;
}

int Main(const std::vector<std::string>& args) {
  // An error is one line, ours.
  gpr_set_log_function([](gpr_log_func_args*) {});
  google::protobuf::SetLogHandler(nullptr);
  const auto options = ParseClientOptions(args);
  if (!options.ok()) {
    return Fail(kExitBadFlags, std::string(options.status().message()));
  }
  if (options->action == ClientOptions::Action::kHelp) {
    Print(ClientHelp());
    return 0;
  }
  if (options->action == ClientOptions::Action::kVersion) {
    Print(std::string("overfill-client ") + ClientVersion() + "\n");
    return 0;
  }
  const auto connection = Connection::Create(options->connection);
  if (!connection.ok()) {
    return Fail(kExitBadFlags, std::string(connection.status().message()));
  }
  v1::GenerateRequest request = options->request;
  request.set_text(options->prompt == "-" ? ReadInput() : options->prompt);
  return Generate(*options, *connection, request);
}

}  // namespace
}  // namespace overfill

int main(int argc, char** argv) {
  return overfill::Main(std::vector<std::string>(argv + 1, argv + argc));
}
