// One Generate call, read as its plan says.
#ifndef OVERFILL_BENCHMARKS_SERVING_STREAM_CALL_H_
#define OVERFILL_BENCHMARKS_SERVING_STREAM_CALL_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "benchmarks/serving/event_loop.h"
#include "benchmarks/serving/record.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "grpcpp/support/status.h"
#include "overfill/v1/inference.grpc.pb.h"

namespace overfill {

struct StreamCallOptions {
  double slow_delay_seconds = 0.5;  // of a slow reader, before each read
  double dead_hold_seconds = 60;    // after it a dead reader leaves
  bool keep_token_ids = false;
};

// Held by the calls' owner and by itself while it runs. gRPC's threads read;
// what waits for a time goes through the loop.
class StreamCall : public grpc::ClientReadReactor<v1::GenerateResponse>,
                   public std::enable_shared_from_this<StreamCall> {
 public:
  // `loop` outlives the call.
  StreamCall(StreamCallOptions options, PlannedRequest plan, double scheduled,
             EventLoop* loop);

  // Sends it. `on_end` is called in the loop's thread, once, after the status
  // has come.
  void Start(v1::Inference::Stub& stub, v1::GenerateRequest request,
             std::function<void()> on_end);

  // From any thread. `give_up`: the run waits no longer for it.
  void Cancel(bool give_up);

  // After the end.
  RequestRecord TakeRecord();

  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  void SetTimers();
  // True when the plan says to cancel now.
  bool RecordEvent(double now);
  void RecordDelta(const v1::Delta& delta, double now, SampleRecord& sample)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const StreamCallOptions options_;
  EventLoop* const loop_;
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  v1::GenerateResponse response_;  // of the read under way
  std::function<void()> on_end_;
  std::shared_ptr<StreamCall> self_;  // from Start to OnDone

  Mutex mu_;
  RequestRecord record_ ABSL_GUARDED_BY(mu_);
  int64_t num_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_STREAM_CALL_H_
