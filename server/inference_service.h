// The service overfill.v1.Inference.
#ifndef OVERFILL_SERVER_INFERENCE_SERVICE_H_
#define OVERFILL_SERVER_INFERENCE_SERVICE_H_

#include <chrono>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "base/mutex.h"
#include "overfill/v1/inference.grpc.pb.h"
#include "scheduler/observer.h"
#include "scheduler/scheduler.h"
#include "server/convert.h"
#include "server/generate_call.h"
#include "server/stream_pump.h"

namespace overfill {

// The instant on the steady clock; the far ends of the system clock stay far.
SteadyTime ToSteady(std::chrono::system_clock::time_point time);

// Methods take the raw bytes of a message; see wire.h.
using RawInference = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_Tokenize<
        v1::Inference::WithRawCallbackMethod_Detokenize<
            v1::Inference::WithRawCallbackMethod_GetModelInfo<
                v1::Inference::Service>>>>;

// Thread-safe. Outlives the gRPC server that it is registered with.
class InferenceService : public RawInference {
 public:
  // What is pointed to outlives the service. `observer` may be null; it is
  // told of requests that do not pass the converter.
  InferenceService(Scheduler* scheduler, const Converter* converter,
                   v1::GetModelInfoResponse model_info,
                   SchedulerObserver* observer);

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(
      grpc::CallbackServerContext* context,
      const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;

  // Ends every stream that is open now with `status`.
  void EndStreams(const absl::Status& status);
  // Waits until no stream is open; false when `timeout` passed first.
  bool WaitNoStreams(std::chrono::nanoseconds timeout);

 private:
  absl::StatusOr<Request> MakeRequest(
      const grpc::CallbackServerContext& context,
      const grpc::ByteBuffer& bytes) const;
  std::shared_ptr<GenerateCall> NewCall();

  Scheduler* const scheduler_;
  const Converter* const converter_;
  const v1::GetModelInfoResponse model_info_;
  SchedulerObserver* const observer_;

  Mutex mu_;
  CondVar stream_ended_;
  absl::flat_hash_map<GenerateCall*, std::weak_ptr<GenerateCall>> streams_
      ABSL_GUARDED_BY(mu_);
  StreamPump pump_;
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_INFERENCE_SERVICE_H_
