// One Generate call: from the scheduler's events to the stream.
#ifndef OVERFILL_SERVER_GENERATE_CALL_H_
#define OVERFILL_SERVER_GENERATE_CALL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "scheduler/event_queue.h"
#include "scheduler/scheduler.h"
#include "server/stream_pump.h"

namespace overfill {

// Deltas of a client that does not read are joined up to so many bytes; then
// its request ends with RESOURCE_EXHAUSTED.
inline constexpr int64_t kMaxPendingBytes = 1 << 20;

// Thread-safe. Reactions come from gRPC's threads, Pump from the pump's, and
// events from the scheduler's; none of them blocks. At most one write is in
// flight, and Finish is called exactly once: after the terminal event, or for
// a request that was never admitted. The lock is never held while gRPC or the
// scheduler is called.
class GenerateCall : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                     public Pumpable,
                     public std::enable_shared_from_this<GenerateCall> {
 public:
  // Scheduler and pump outlive the call. `on_done` is called once, as the last
  // thing.
  static std::shared_ptr<GenerateCall> Create(
      Scheduler* scheduler, StreamPump* pump,
      std::function<void(GenerateCall*)> on_done);

  // One of the two, once.
  void Submit(Request request);
  void Refuse(const absl::Status& status);

  // Ends the request with `status`, from whatever state.
  void Cancel(absl::Status status);

  void Pump() override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 protected:
  GenerateCall(Scheduler* scheduler, StreamPump* pump,
               std::function<void(GenerateCall*)> on_done);
  // The call holds itself from now on until OnDone.
  void HoldSelf();

  // What gRPC does; tests put threads of their own in its place.
  virtual void SendHeaders() { StartSendInitialMetadata(); }
  virtual void Write(const grpc::ByteBuffer* message) { StartWrite(message); }
  virtual void EndCall(const grpc::Status& status) { Finish(status); }

 private:
  // What Pump is to do next, once the lock is free.
  struct Action {
    enum class Kind { kNone, kWrite, kFinish } kind = Kind::kNone;
    grpc::Status status;  // kFinish
  };
  Action NextAction();
  Action TakeEvent() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Scheduler* const scheduler_;
  StreamPump* const pump_;
  const std::function<void(GenerateCall*)> on_done_;

  Mutex mu_;
  // gRPC holds a plain pointer until OnDone.
  std::shared_ptr<GenerateCall> self_ ABSL_GUARDED_BY(mu_);
  // Null before Submit and after OnDone: the queue's callback owns the call.
  std::shared_ptr<EventQueue> queue_ ABSL_GUARDED_BY(mu_);
  SteadyTime deadline_ ABSL_GUARDED_BY(mu_) = SteadyTime::max();
  std::optional<uint64_t> uid_ ABSL_GUARDED_BY(mu_);  // set: admitted
  std::optional<absl::Status> cancelled_ ABSL_GUARDED_BY(mu_);
  bool headers_sent_ ABSL_GUARDED_BY(mu_) = false;
  bool write_in_flight_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;  // a write failed
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  // Belongs to gRPC while write_in_flight_.
  grpc::ByteBuffer message_;
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_GENERATE_CALL_H_
