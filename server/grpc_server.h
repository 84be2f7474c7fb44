// The gRPC server around the service: port, limits, health, reflection.
#ifndef OVERFILL_SERVER_GRPC_SERVER_H_
#define OVERFILL_SERVER_GRPC_SERVER_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "server/config.h"
#include "server/inference_service.h"

namespace overfill {

// UNAVAILABLE when the address cannot be bound now. Opens nothing: it lets the
// program end before it has loaded a model in vain.
absl::Status CheckBindable(const HostPort& address);

// From now on, for the whole process: gRPC's own messages go to our log, but
// for those of an address that cannot be bound, which Start says better; those
// of the protobuf parser are dropped, as each is some client's bad input.
void RouteLibraryLogs();

// Handshakes that TLS has refused, in this process: a certificate that is
// missing, expired or of another CA, a client that does not speak TLS. Counted
// from RouteLibraryLogs on.
int64_t TlsHandshakeFailures();

struct GrpcServerOptions {
  HostPort listen = {"127.0.0.1", 0};
  // Plaintext, for grpc.health.v1 alone: probes that speak no TLS.
  std::optional<HostPort> health_listen = std::nullopt;
  // Null: plaintext.
  std::shared_ptr<grpc::ServerCredentials> credentials = nullptr;
  int64_t max_request_bytes = 4 << 20;
  int32_t max_connection_streams = 1024;
  // After it a connection takes no new calls, and ends with its last one, or
  // after the grace; zero: never.
  absl::Duration max_connection_age = absl::ZeroDuration();
  absl::Duration max_connection_age_grace = absl::Minutes(5);
  // Server reflection tells whoever asks what can be called.
  bool reflection = true;
};

// Answers grpc.health.v1 and server reflection beside the service. Serving
// from Start on.
class GrpcServer {
 public:
  // `service` outlives the server. UNAVAILABLE when an address cannot be
  // bound.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(
      const GrpcServerOptions& options, InferenceService* service);
  // Ends what is still open.
  ~GrpcServer();

  int32_t port() const { return port_; }
  int32_t health_port() const { return health_port_; }  // 0: none
  // What health says; calls come in all the same. Thread-safe.
  void SetServing(bool is_serving);
  // Health is NOT_SERVING for good; calls still come in.
  void SetNotServing();
  // Takes no more calls: clients are told to go elsewhere (GOAWAY) and open
  // calls go on. Does not wait.
  void BeginShutdown();
  // After BeginShutdown: gives open calls `grace` to end, then ends them.
  void FinishShutdown(absl::Duration grace);

 private:
  GrpcServer() = default;
  absl::Status StartHealth(const HostPort& listen);
  // False when `end` came first.
  bool WaitShutDown(std::chrono::steady_clock::time_point end);

  grpc::CallbackGenericService unimplemented_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<grpc::Server> health_server_;  // may be null
  int32_t port_ = 0;
  int32_t health_port_ = 0;
  bool is_finished_ = false;  // FinishShutdown has run
  std::thread shutdown_;      // in grpc::Server::Shutdown, which waits
  Mutex mu_;
  CondVar shut_down_;
  bool is_shut_down_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_GRPC_SERVER_H_
