// All parts of a running server, from its flags to its open ports.
#ifndef OVERFILL_SERVER_SERVING_H_
#define OVERFILL_SERVER_SERVING_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "engine/pair.h"
#include "engine/pair_engine.h"
#include "kernels/device.h"
#include "scheduler/kv_transport.h"
#include "scheduler/scheduler.h"
#include "server/authenticator.h"
#include "server/certificates.h"
#include "server/config.h"
#include "server/convert.h"
#include "server/grpc_server.h"
#include "server/inference_service.h"
#include "server/metrics.h"
#include "server/request_log.h"
#include "server/ticker.h"
#include "server/watchdog.h"

namespace overfill {

// What another program may put into the server.
struct ServerHooks {
  // Wraps what moves KV; null: nothing does. For servers that are tested with
  // planted faults.
  std::function<std::unique_ptr<KvTransport>(std::unique_ptr<KvTransport>)>
      decorate_transport = nullptr;
};

// All that serves, in the order of construction; destroyed in reverse.
struct Serving {
  std::unique_ptr<Device> device;
  std::unique_ptr<Pair> pair;
  std::unique_ptr<PairEngine> engine;
  std::unique_ptr<ServerMetrics> metrics;
  std::unique_ptr<Certificates> certificates;  // null: plaintext
  std::unique_ptr<Authenticator> authenticator;
  std::unique_ptr<RequestLog> request_log;
  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<Converter> converter;
  std::unique_ptr<InferenceService> service;
  std::unique_ptr<MetricsServer> metrics_server;
  std::unique_ptr<GrpcServer> grpc_server;
  std::unique_ptr<Watchdog> watchdog;
  std::unique_ptr<Ticker> watchdog_thread;
  std::unique_ptr<Ticker> reload_thread;
};

// Loads, warms up, opens the ports, starts the watchdog and the looks at
// changed files. `serving` is empty before, stays where it is, and after an
// error only waits to be destroyed. An error is one line for the operator.
absl::Status StartServing(const ServerConfig& config, const ServerHooks& hooks,
                          Serving& serving);

}  // namespace overfill

#endif  // OVERFILL_SERVER_SERVING_H_
