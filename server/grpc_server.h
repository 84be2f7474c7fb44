// The gRPC server around the service: port, limits, health, reflection.
#ifndef OVERFILL_SERVER_GRPC_SERVER_H_
#define OVERFILL_SERVER_GRPC_SERVER_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
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

// Answers grpc.health.v1 and server reflection beside the service. Serving
// from Start on.
class GrpcServer {
 public:
  // `service` outlives the server. UNAVAILABLE when the address cannot be
  // bound.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(
      const HostPort& listen, int64_t max_request_bytes,
      InferenceService* service);
  // Ends what is still open.
  ~GrpcServer();

  int32_t port() const { return port_; }
  // What health says; calls come in all the same. Thread-safe.
  void SetServing(bool is_serving);
  // Health is NOT_SERVING for good; calls still come in.
  void SetNotServing();
  // Takes no more calls, and gives open ones `grace` to end.
  void Shutdown(absl::Duration grace);

 private:
  GrpcServer() = default;

  std::unique_ptr<grpc::Server> server_;
  int32_t port_ = 0;
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_GRPC_SERVER_H_
