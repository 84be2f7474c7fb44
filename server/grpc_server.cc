#include "server/grpc_server.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "google/protobuf/stubs/logging.h"
#include "grpc/grpc.h"
#include "grpc/support/log.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/impl/server_builder_option.h"
#include "grpcpp/impl/server_builder_plugin.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace overfill {
namespace {

// Load balancers ping connections without calls every 30 s or so; gRPC's
// default takes that for abuse.
constexpr int kMinPingIntervalMs = 10'000;
// A client that left without a word is noticed after the sum of the two.
constexpr int kKeepaliveTimeMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;

// Of one call's metadata. What is over it ends the connection, with all other
// calls on it, so that it is far above what gateways let through.
constexpr int kMaxMetadataBytes = 128 << 10;
// Of one connection to the health port.
constexpr int kMaxHealthStreams = 16;
// Who has not said hello by then is gone; gRPC's default is two minutes.
constexpr int kHandshakeTimeoutMs = 10'000;

constexpr std::chrono::milliseconds kCancelPeriod{50};

// How gRPC's own log begins the line of a handshake that OpenSSL refused. It
// tells nobody else.
constexpr absl::string_view kHandshakeFailed = "Handshake failed with fatal";
// Peers can make gRPC log at will.
constexpr int32_t kGrpcLinesPerSecond = 10;

std::atomic<bool> drop_grpc_log = false;
std::atomic<int64_t> handshake_failures = 0;

void LogOfGrpc(gpr_log_func_args* args) {
  if (drop_grpc_log) return;
  static auto& limiter = *new LogLimiter(kGrpcLinesPerSecond);
  const absl::string_view message = args->message;
  if (absl::StartsWith(message, kHandshakeFailed)) ++handshake_failures;
  int64_t suppressed = 0;
  if (!limiter.Pass(std::chrono::steady_clock::now(), suppressed)) return;
  LogFields fields;
  if (suppressed > 0) fields.emplace_back("lines_left_out", suppressed);
  Log(LogLevel::kWarning, absl::StrCat("grpc: ", message), fields);
}

// Linking reflection adds it to every server; this takes it out again.
class NoReflection : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>*
                         plugins) override {
    std::erase_if(*plugins, [](const auto& plugin) {
      return absl::StrContains(plugin->name(), "reflection");
    });
  }
};

absl::Status CannotListen(const HostPort& address, absl::string_view why) {
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", address.ToString(), ": ", why));
}

int ToMs(absl::Duration duration) {
  // Past some weeks it is for ever.
  return static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(duration),
                                            std::numeric_limits<int>::max()));
}

// What holds for every port.
void SetLimits(grpc::ServerBuilder& builder) {
  // gRPC unpacks a message before it looks at its size: some thousand bytes
  // from a client could take gigabytes here.
  for (const auto algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                             kHandshakeTimeoutMs);
  // Two servers that share a port by mistake would each get half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                             kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
}

void SetOptions(const GrpcServerOptions& options,
                grpc::ServerBuilder& builder) {
  SetLimits(builder);
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_request_bytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                             options.max_connection_streams);
  if (options.max_connection_age > absl::ZeroDuration()) {
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                               ToMs(options.max_connection_age));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                               ToMs(options.max_connection_age_grace));
  }
  if (!options.reflection) builder.SetOption(std::make_unique<NoReflection>());
}

// Null when an address cannot be bound.
std::unique_ptr<grpc::Server> Build(grpc::ServerBuilder& builder) {
  drop_grpc_log = true;
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  drop_grpc_log = false;
  if (server != nullptr) {
    server->GetHealthCheckService()->SetServingStatus(
        v1::Inference::service_full_name(), true);
  }
  return server;
}

}  // namespace

absl::Status CheckBindable(const HostPort& address) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(),
                  &hints, &found);
  if (error != 0) return CannotListen(address, gai_strerror(error));
  absl::Status status = CannotListen(address, "no address");
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    const int fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
    // As gRPC does it: a port whose last connections still fade is free.
    const int on = 1;
    const bool bound =
        fd >= 0 &&
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
        bind(fd, a->ai_addr, a->ai_addrlen) == 0;
    status =
        bound ? absl::OkStatus() : CannotListen(address, std::strerror(errno));
    if (fd >= 0) close(fd);
    if (bound) break;
  }
  freeaddrinfo(found);
  return status;
}

void RouteLibraryLogs() {
  google::protobuf::SetLogHandler(nullptr);
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
  gpr_set_log_function(LogOfGrpc);
}

int64_t TlsHandshakeFailures() { return handshake_failures; }

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(
    const GrpcServerOptions& options, InferenceService* service) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::unique_ptr<GrpcServer> result(new GrpcServer);
  grpc::ServerBuilder builder;
  SetOptions(options, builder);
  builder.AddListeningPort(options.listen.ToString(),
                           options.credentials != nullptr
                               ? options.credentials
                               : grpc::InsecureServerCredentials(),
                           &result->port_);
  builder.RegisterService(service);
  result->server_ = Build(builder);
  if (result->server_ == nullptr || result->port_ == 0) {
    return CannotListen(options.listen, "the address is taken or not ours");
  }
  if (options.health_listen) {
    RETURN_IF_ERROR(result->StartHealth(*options.health_listen));
  }
  return result;
}

absl::Status GrpcServer::StartHealth(const HostPort& listen) {
  grpc::ServerBuilder builder;
  SetLimits(builder);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                             kMaxHealthStreams);
  builder.SetOption(std::make_unique<NoReflection>());
  builder.AddListeningPort(listen.ToString(), grpc::InsecureServerCredentials(),
                           &health_port_);
  // gRPC builds no server without a service.
  builder.RegisterCallbackGenericService(&unimplemented_);
  health_server_ = Build(builder);
  if (health_server_ == nullptr || health_port_ == 0) {
    return CannotListen(listen, "the address is taken or not ours");
  }
  return absl::OkStatus();
}

GrpcServer::~GrpcServer() {
  if (server_ == nullptr || is_finished_) return;
  if (!shutdown_.joinable()) BeginShutdown();
  FinishShutdown(absl::ZeroDuration());
}

void GrpcServer::SetServing(bool is_serving) {
  for (grpc::Server* server : {server_.get(), health_server_.get()}) {
    if (server == nullptr) continue;
    server->GetHealthCheckService()->SetServingStatus(is_serving);
  }
}

void GrpcServer::SetNotServing() {
  for (grpc::Server* server : {server_.get(), health_server_.get()}) {
    if (server != nullptr) server->GetHealthCheckService()->Shutdown();
  }
}

void GrpcServer::BeginShutdown() {
  shutdown_ = std::thread([this] {
    server_->Shutdown();
    MutexLock lock(&mu_);
    is_shut_down_ = true;
    shut_down_.NotifyAll();
  });
}

bool GrpcServer::WaitShutDown(std::chrono::steady_clock::time_point end) {
  MutexLock lock(&mu_);
  while (!is_shut_down_) {
    const auto left = end - std::chrono::steady_clock::now();
    if (left <= std::chrono::nanoseconds(0)) return false;
    shut_down_.WaitFor(&mu_, left);
  }
  return true;
}

void GrpcServer::FinishShutdown(absl::Duration grace) {
  const auto end =
      std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(grace);
  while (!WaitShutDown(end)) {
    // Those who watch the health never end by themselves. More than once: the
    // shutdown may just begin, and calls still come in.
    grpc_server_cancel_all_calls(server_->c_server());
    if (WaitShutDown(std::chrono::steady_clock::now() + kCancelPeriod)) break;
  }
  shutdown_.join();
  is_finished_ = true;
  // The last, so that a probe sees NOT_SERVING until the end.
  if (health_server_ != nullptr) {
    health_server_->Shutdown(std::chrono::system_clock::now());
  }
}

}  // namespace overfill
