// One Generate call: from the scheduler's events to the stream.
#ifndef OVERFILL_SERVER_GENERATE_CALL_H_
#define OVERFILL_SERVER_GENERATE_CALL_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/mutex.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "overfill/v1/inference.pb.h"
#include "scheduler/event_queue.h"
#include "scheduler/scheduler.h"
#include "server/quotas.h"
#include "server/request_log.h"
#include "server/stream_pump.h"

namespace overfill {

// Deltas of a client that does not read are joined up to so many bytes; then
// its request ends with RESOURCE_EXHAUSTED.
inline constexpr int64_t kMaxPendingBytes = 1 << 20;

// Once its request has ended, a stream stays for a client that reads: each
// message may take so long, and a second more for so many of its bytes. Short
// enough that clients who never read hold little memory, long enough for a
// client that paused or has a poor line.
inline constexpr std::chrono::seconds kLinger{10};
inline constexpr int64_t kLeastBytesPerSecond = 64 << 10;

class GenerateCall;

// What a call works with; all of it outlives the call.
struct CallParts {
  Scheduler* scheduler = nullptr;
  StreamPump* pump = nullptr;
  // Told of requests that end before the scheduler has seen them.
  SchedulerObserver* observer = nullptr;
  RequestLog* log = nullptr;  // may be null
  // Called when a call ends without a request; gRPC may still have to deliver
  // its status. May be null.
  std::function<void(GenerateCall*)> on_refused = nullptr;
  std::chrono::nanoseconds linger = kLinger;
};

// Thread-safe. Reactions come from gRPC's threads, Pump from the pump's, and
// events from the scheduler's; none of them blocks. At most one write is in
// flight, and Finish is called exactly once: after the terminal event, or for
// a request that was never admitted. The lock is never held while gRPC or the
// scheduler is called.
class GenerateCall : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                     public Pumpable,
                     public std::enable_shared_from_this<GenerateCall> {
 public:
  // `context` is this call's, and lives until OnDone. `on_done` is called once,
  // as the last thing.
  static std::shared_ptr<GenerateCall> Create(
      grpc::CallbackServerContext* context, SteadyTime deadline,
      const CallParts& parts, std::function<void(GenerateCall*)> on_done);

  // Whose it is, before all else: what the log says of it, and its place among
  // its tenant's requests, null where there is none. The place is given back
  // before the client sees the end; after a cancel, with OnDone.
  void SetCaller(RequestLogEntry record, std::shared_ptr<QuotaPlace> place);

  // One of the three, once. No effect on a call that was cancelled before.
  // RESOURCE_EXHAUSTED comes with the time after which to try again, where none
  // is given the scheduler's. `reason` is a short constant for the observer;
  // quietly: it has been told.
  void Submit(Request request);
  void Refuse(const absl::Status& status, const char* reason,
              std::optional<std::chrono::nanoseconds> retry_after = {});
  void RefuseQuietly(const absl::Status& status);
  std::shared_ptr<QuotaPlace> place() const;
  // Before Submit: for the log.
  void SetPrompt(std::string prompt);

  // Ends the request with `status`, from whatever state; before Submit, the
  // call itself.
  void Cancel(absl::Status status);
  // The call has its status, or is about to get it: what is left to do for its
  // request is in vain.
  bool is_over() const;
  // Whether it is an admitted request of this tenant and id, and goes on.
  bool IsLive(absl::string_view tenant, absl::string_view request_id) const;

  // Cuts the stream off when its request has ended and the client has not read
  // the message under way for too long. To be called at regular times.
  void CutIfUnread(SteadyTime now);

  void Pump() override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 protected:
  GenerateCall(grpc::CallbackServerContext* context, SteadyTime deadline,
               const CallParts& parts,
               std::function<void(GenerateCall*)> on_done);
  // The call holds itself from now on until OnDone.
  void HoldSelf();

  // What gRPC does; tests put threads of their own in its place.
  virtual void SendHeaders() { StartSendInitialMetadata(); }
  virtual void Write(const grpc::ByteBuffer* message) { StartWrite(message); }
  virtual void EndCall(const grpc::Status& status) { Finish(status); }
  // Before EndCall: what gRPC's own retries wait for; negative: they end.
  virtual void SetRetryPushback(std::chrono::milliseconds delay) {
    context_->AddTrailingMetadata("grpc-retry-pushback-ms",
                                  std::to_string(delay.count()));
  }
  virtual void CutOff() { context_->TryCancel(); }

 private:
  // What Pump is to do next, once the lock is free.
  struct Action {
    enum class Kind { kNone, kWrite, kFinish } kind = Kind::kNone;
    Terminal terminal;  // kFinish
  };
  Action NextAction();
  Action TakeEvent() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Action StartWriting(const v1::GenerateResponse& response)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsUnread(SteadyTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The end of a call without a request; false when it has ended already. The
  // caller goes on with EndCall.
  [[nodiscard]] bool BeginEnd();
  void EndRefused(const absl::Status& status, absl::string_view reason,
                  std::optional<std::chrono::nanoseconds> retry_after);
  void EndAdmitted(const Terminal& terminal);
  RequestLogEntry record() const;

  grpc::CallbackServerContext* const context_;
  const SteadyTime deadline_;
  const CallParts parts_;
  const std::function<void(GenerateCall*)> on_done_;

  mutable Mutex mu_;
  RequestLogEntry record_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<QuotaPlace> place_ ABSL_GUARDED_BY(mu_);
  // gRPC holds a plain pointer until OnDone.
  std::shared_ptr<GenerateCall> self_ ABSL_GUARDED_BY(mu_);
  // Null before Submit and after OnDone: the queue's callback owns the call.
  std::shared_ptr<EventQueue> queue_ ABSL_GUARDED_BY(mu_);
  std::optional<uint64_t> uid_ ABSL_GUARDED_BY(mu_);  // set: admitted
  std::optional<absl::Status> cancelled_ ABSL_GUARDED_BY(mu_);
  bool headers_sent_ ABSL_GUARDED_BY(mu_) = false;
  bool write_in_flight_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;  // a write failed
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  // When the message under way was first seen unread, its request being over.
  std::optional<SteadyTime> unread_since_ ABSL_GUARDED_BY(mu_);
  int64_t message_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool is_cut_ ABSL_GUARDED_BY(mu_) = false;
  // CutOff is running: the context must stay, so that Finish waits.
  bool is_cutting_ ABSL_GUARDED_BY(mu_) = false;
  // Belongs to gRPC while write_in_flight_.
  grpc::ByteBuffer message_;
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_GENERATE_CALL_H_
