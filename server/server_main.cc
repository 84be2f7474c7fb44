#include "server/server_main.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/log.h"
#include "server/config.h"
#include "server/model_info.h"
#include "server/serving.h"
#include "server/signals.h"

namespace overfill {
namespace {

constexpr int kExitBadSetup = 2;
// For the last bytes of streams that the drain has ended.
constexpr absl::Duration kFlush = absl::Seconds(1);
constexpr absl::Duration kLeastFlush = absl::Milliseconds(200);
// gRPC ends calls that are on their way in when it shuts down as cancelled. So
// for a moment longer all are let in, and refused with a status that clients
// try elsewhere.
constexpr absl::Duration kLastCalls = absl::Milliseconds(250);

void LogReady(const ServerConfig& config, const Serving& serving) {
  const auto at = [](HostPort address, int32_t port) {
    address.port = port;
    return address.ToString();
  };
  std::string line = absl::StrCat(
      "ready: listening on ", at(config.listen, serving.grpc_server->port()));
  if (serving.metrics_server != nullptr) {
    absl::StrAppend(&line, ", metrics on ",
                    at(config.metrics_listen, serving.metrics_server->port()));
  }
  if (config.health_enabled) {
    absl::StrAppend(
        &line, ", health on ",
        at(config.health_listen, serving.grpc_server->health_port()));
  }
  const bool is_tls = serving.certificates != nullptr;
  absl::StrAppend(
      &line, "; ",
      !is_tls                        ? "plaintext"
      : config.tls_client_ca.empty() ? "TLS"
                                     : "mutual TLS",
      serving.authenticator->needs_token() ? ", tokens needed" : "");
  LogInfo(line);
}

// First health says NOT_SERVING and requests are still taken, for those who
// have not heard of it yet. Then connections are told to go elsewhere, and
// streams may go on until the timeout, those that are only being read, too;
// then they end with UNAVAILABLE.
void Drain(const ServerConfig& config, Serving& serving) {
  const absl::Time end = absl::Now() + config.drain_timeout;
  const auto left_until = [](absl::Time time) {
    return absl::ToChronoNanoseconds(
        std::max(time - absl::Now(), absl::ZeroDuration()));
  };
  LogInfo("draining");
  if (config.drain_delay > absl::ZeroDuration()) {
    serving.grpc_server->SetNotServing();
    absl::SleepFor(config.drain_delay);
  }
  // In this order, whoever sees NOT_SERVING from now on is refused.
  serving.scheduler->StopAdmission();
  serving.grpc_server->SetNotServing();
  absl::SleepFor(std::min(kLastCalls, config.drain_timeout / 10));
  serving.grpc_server->BeginShutdown();
  // The last bytes have a part of the time.
  const absl::Duration flush = std::min(kFlush, config.drain_timeout / 10);
  if (!serving.service->WaitNoStreams(left_until(end - flush))) {
    LogWarning("the drain timeout passed; ending the open streams");
    serving.service->EndStreams(
        absl::UnavailableError("the server is shutting down"));
  }
  serving.service->WaitNoUnaryCalls(left_until(end - flush));
  serving.grpc_server->FinishShutdown(std::max(flush, kLeastFlush));
  // The scheduler may still be at the delivery of an event that its stream has
  // read already; the service is needed until then.
  serving.scheduler->WaitIdle(absl::ToChronoNanoseconds(kFlush));
  LogInfo("stopped");
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "overfill-server: %s\n",
               EscapeControls(status.message()).c_str());
  return kExitBadSetup;
}

}  // namespace

int RunServer(int argc, char** argv, const ServerHooks& hooks) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  const absl::StatusOr<CommandLine> command = ParseCommandLine(
      args, [](const char* name) { return std::getenv(name); });
  if (!command.ok()) return Fail(command.status());
  if (command->action == CommandLine::Action::kHelp) {
    std::fputs(ServerHelp().c_str(), stdout);
    return 0;
  }
  if (command->action == CommandLine::Action::kVersion) {
    std::printf("overfill-server %s\n", Version());
    return 0;
  }
  SignalWaiter signals;  // before any thread
  LogWriter log_writer;
  SetLogFormat(command->config.log_format);
  RouteLibraryLogs();
  Serving serving;
  const absl::Status status = StartServing(command->config, hooks, serving);
  if (!status.ok()) return Fail(status);
  signals.Arm();
  LogReady(command->config, serving);
  signals.Wait();
  Drain(command->config, serving);
  return 0;
}

}  // namespace overfill
