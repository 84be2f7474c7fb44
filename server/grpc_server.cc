#include "server/grpc_server.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "google/protobuf/stubs/logging.h"
#include "grpc/support/log.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
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

std::atomic<bool> drop_grpc_log = false;

absl::Status CannotListen(const HostPort& address, absl::string_view why) {
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", address.ToString(), ": ", why));
}

void SetOptions(int64_t max_request_bytes, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(static_cast<int>(max_request_bytes));
  // gRPC unpacks a message before it looks at its size: some thousand bytes
  // from a client could take gigabytes here.
  for (const auto algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
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
  gpr_set_log_function([](gpr_log_func_args* args) {
    if (!drop_grpc_log) LogWarning(absl::StrCat("grpc: ", args->message));
  });
}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(
    const HostPort& listen, int64_t max_request_bytes,
    InferenceService* service) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::unique_ptr<GrpcServer> result(new GrpcServer);
  grpc::ServerBuilder builder;
  SetOptions(max_request_bytes, builder);
  builder.AddListeningPort(listen.ToString(), grpc::InsecureServerCredentials(),
                           &result->port_);
  builder.RegisterService(service);
  drop_grpc_log = true;
  result->server_ = builder.BuildAndStart();
  drop_grpc_log = false;
  if (result->server_ == nullptr || result->port_ == 0) {
    return CannotListen(listen, "the address is taken or not ours");
  }
  result->server_->GetHealthCheckService()->SetServingStatus(
      v1::Inference::service_full_name(), true);
  return result;
}

GrpcServer::~GrpcServer() {
  if (server_ != nullptr) Shutdown(absl::ZeroDuration());
}

void GrpcServer::SetServing(bool is_serving) {
  server_->GetHealthCheckService()->SetServingStatus(is_serving);
}

void GrpcServer::SetNotServing() {
  server_->GetHealthCheckService()->Shutdown();
}

void GrpcServer::Shutdown(absl::Duration grace) {
  server_->Shutdown(std::chrono::system_clock::now() +
                    absl::ToChronoMilliseconds(grace));
}

}  // namespace overfill
