// Sends a workload to a server and records what becomes of each request.
#ifndef OVERFILL_BENCHMARKS_SERVING_LOAD_CLIENT_H_
#define OVERFILL_BENCHMARKS_SERVING_LOAD_CLIENT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "benchmarks/serving/record.h"
#include "benchmarks/serving/stream_call.h"
#include "benchmarks/serving/workload.h"
#include "client/connection.h"
#include "overfill/v1/inference.grpc.pb.h"

namespace overfill {

struct RunOptions {
  int concurrency = 0;           // of a closed loop; 0: an open one
  int64_t num_requests = 0;      // 0: as many as come in the duration
  double duration_seconds = 0;   // of sending; 0: no bound
  bool cancel_at_end = false;    // what still runs after the duration
  double give_up_seconds = 600;  // after the last one was sent
  int32_t vocab_size = 0;        // of the prompts' ids
  v1::GenerateRequest request;   // what all have in common
  StreamCallOptions call;
};

struct RunRecords {
  std::vector<RequestRecord> records;  // in the order of their ends
  double begin = 0;                    // on the records' clock
  double send_end = 0;                 // the last request was sent by then
};

// A process has few threads for it: gRPC's own, and the caller of Run.
class LoadClient {
 public:
  // Slow and dead readers have connections of their own, which take no more
  // than what is being read; others share `num_channels`.
  LoadClient(const Connection& connection, int num_channels);
  ~LoadClient();

  // Waits for the server as long as `timeout_seconds`.
  absl::StatusOr<v1::GetModelInfoResponse> GetModelInfo(double timeout_seconds);

  // Returns when every request has its status.
  RunRecords Run(Workload workload, const RunOptions& options);

 private:
  class Runner;

  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs_;
  std::unique_ptr<v1::Inference::Stub> slow_stub_;
  std::unique_ptr<v1::Inference::Stub> dead_stub_;
};

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_LOAD_CLIENT_H_
