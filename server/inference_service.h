// The service overfill.v1.Inference.
#ifndef OVERFILL_SERVER_INFERENCE_SERVICE_H_
#define OVERFILL_SERVER_INFERENCE_SERVICE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "base/mutex.h"
#include "overfill/v1/inference.grpc.pb.h"
#include "scheduler/observer.h"
#include "scheduler/scheduler.h"
#include "server/authenticator.h"
#include "server/convert.h"
#include "server/generate_call.h"
#include "server/quotas.h"
#include "server/request_log.h"
#include "server/stream_pump.h"
#include "server/task_pool.h"
#include "server/ticker.h"

namespace overfill {

// The instant on the steady clock; the far ends of the system clock stay far.
SteadyTime ToSteady(std::chrono::system_clock::time_point time);

// Methods take the raw bytes of a message; see wire.h.
using RawInference = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_Tokenize<
        v1::Inference::WithRawCallbackMethod_Detokenize<
            v1::Inference::WithRawCallbackMethod_GetModelInfo<
                v1::Inference::WithRawCallbackMethod_Cancel<
                    v1::Inference::Service>>>>>;

struct ServiceOptions {
  int32_t max_open_streams = 1024;
  int32_t tokenizer_threads = 1;
  std::chrono::nanoseconds linger = kLinger;  // see generate_call.h
  // Both outlive the service. Null: everyone may call; no line is logged.
  const Authenticator* authenticator = nullptr;
  RequestLog* log = nullptr;
  // Told of each call that was not let in; may be null.
  std::function<void(Authenticator::Failure)> on_unauthenticated = nullptr;
};

// Thread-safe. Outlives the gRPC server that it is registered with.
class InferenceService : public RawInference {
 public:
  // What is pointed to outlives the service. `observer` may be null; it is
  // told of requests that end before the scheduler has seen them.
  InferenceService(const ServiceOptions& options, Scheduler* scheduler,
                   const Converter* converter,
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

  grpc::ServerUnaryReactor* Cancel(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response) override;

  // Streams of Generate that count against max_open_streams.
  int32_t num_open_streams() const;
  // Ends every stream that is open now with `status`.
  void EndStreams(const absl::Status& status);
  // Waits until none of them is open; false when `timeout` passed first.
  bool WaitNoStreams(std::chrono::nanoseconds timeout);
  // The same for all other calls.
  bool WaitNoUnaryCalls(std::chrono::nanoseconds timeout);

 private:
  struct Stream {
    std::weak_ptr<GenerateCall> call;
    bool is_counted = false;
  };
  using StatusOrTenant = absl::StatusOr<std::shared_ptr<const Tenant>>;

  // UNAUTHENTICATED is counted.
  StatusOrTenant TenantOf(const grpc::CallbackServerContext& context) const;
  std::shared_ptr<GenerateCall> Open(grpc::CallbackServerContext* context,
                                     SteadyTime deadline);
  void Close(GenerateCall* ended);
  // Of a call that was refused: what gRPC does with a flood of those afterwards
  // is no reason to refuse others.
  void Uncount(Stream& stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What a flood of calls held is the allocator's afterwards, by hundreds of
  // megabytes: where nothing is open it goes back to the system.
  void GiveMemoryBack();
  // False: there are max_open_streams.
  bool CountStream(GenerateCall* call);
  std::chrono::nanoseconds RetryAfter(const QuotaRefusal& refusal) const;
  // Finds out whose call it is and gives it its place; false: it is refused.
  bool LetIn(GenerateCall& call, const grpc::CallbackServerContext& context,
             const StatusOrTenant& tenant, SteadyTime arrival);
  void EndUnary();
  bool WaitUntil(std::chrono::nanoseconds timeout,
                 const std::function<bool()>& is_so)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::vector<std::shared_ptr<GenerateCall>> Streams() const;
  // Parses, checks, and submits or refuses.
  void Begin(GenerateCall& call, const grpc::ByteBuffer& bytes,
             const Tenant& tenant, SteadyTime arrival,
             SteadyTime deadline) const;
  template <typename RequestProto, typename Handle>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response, Handle handle);

  const ServiceOptions options_;
  Scheduler* const scheduler_;
  const Converter* const converter_;
  const v1::GetModelInfoResponse model_info_;
  SchedulerObserver silent_;
  SchedulerObserver* const observer_;
  const Authenticator everyone_;
  const Authenticator* const authenticator_;
  Quotas quotas_;

  mutable Mutex mu_;
  CondVar call_ended_;
  absl::flat_hash_map<GenerateCall*, Stream> streams_ ABSL_GUARDED_BY(mu_);
  int32_t num_open_ ABSL_GUARDED_BY(mu_) = 0;
  int32_t num_unary_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t num_ended_ ABSL_GUARDED_BY(mu_) = 0;  // since memory was given back
  // Threads: each uses what is above it.
  StreamPump pump_;
  TaskPool tasks_;
  Ticker cutter_;
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_INFERENCE_SERVICE_H_
