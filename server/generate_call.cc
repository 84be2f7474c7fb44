#include "server/generate_call.h"

#include <chrono>
#include <utility>
#include <variant>

#include "base/check.h"
#include "server/convert.h"
#include "server/errors.h"
#include "server/wire.h"

namespace overfill {

std::shared_ptr<GenerateCall> GenerateCall::Create(
    Scheduler* scheduler, StreamPump* pump,
    std::function<void(GenerateCall*)> on_done) {
  std::shared_ptr<GenerateCall> call(
      new GenerateCall(scheduler, pump, std::move(on_done)));
  call->HoldSelf();
  return call;
}

void GenerateCall::HoldSelf() {
  MutexLock lock(&mu_);
  self_ = shared_from_this();
}

GenerateCall::GenerateCall(Scheduler* scheduler, StreamPump* pump,
                           std::function<void(GenerateCall*)> on_done)
    : scheduler_(scheduler), pump_(pump), on_done_(std::move(on_done)) {}

void GenerateCall::Submit(Request request) {
  auto queue = std::make_shared<EventQueue>(
      kMaxPendingBytes,
      [pump = pump_, call = shared_from_this()] { pump->Queue(call); });
  {
    MutexLock lock(&mu_);
    queue_ = queue;
    deadline_ = request.deadline;
  }
  const auto uid = scheduler_->Submit(std::move(request), std::move(queue));
  if (!uid.ok()) {
    Refuse(RefusedStatus(uid.status()));
    return;
  }
  // The response's headers tell the client, and a retry policy, that the
  // request is admitted. Nothing is written before them.
  SendHeaders();
  std::optional<absl::Status> cancelled;
  {
    MutexLock lock(&mu_);
    uid_ = *uid;
    headers_sent_ = true;
    cancelled = cancelled_;
  }
  if (cancelled) scheduler_->Cancel(*uid, *cancelled);
  Pump();
}

void GenerateCall::Refuse(const absl::Status& status) {
  {
    MutexLock lock(&mu_);
    OVERFILL_CHECK(!finished_);
    finished_ = true;
    queue_.reset();
  }
  EndCall(ToGrpcStatus(status));
}

void GenerateCall::Cancel(absl::Status status) {
  std::optional<uint64_t> uid;
  {
    MutexLock lock(&mu_);
    if (finished_ || cancelled_) return;
    cancelled_ = status;
    uid = uid_;
  }
  // Where there is no uid yet, Submit cancels as soon as it has one.
  if (uid) scheduler_->Cancel(*uid, std::move(status));
}

void GenerateCall::Pump() {
  const Action action = NextAction();
  switch (action.kind) {
    case Action::Kind::kNone:
      return;
    case Action::Kind::kWrite:
      Write(&message_);
      return;
    case Action::Kind::kFinish:
      EndCall(action.status);
      return;
  }
}

GenerateCall::Action GenerateCall::NextAction() {
  MutexLock lock(&mu_);
  if (!headers_sent_ || write_in_flight_ || finished_) return {};
  return TakeEvent();
}

GenerateCall::Action GenerateCall::TakeEvent() {
  while (std::optional<Event> event = queue_->Pop()) {
    if (const Delta* delta = std::get_if<Delta>(&*event)) {
      if (broken_) continue;
      message_ = ToWire(ToResponse(*delta));
      write_in_flight_ = true;
      return {Action::Kind::kWrite, {}};
    }
    if (const Completion* completion = std::get_if<Completion>(&*event)) {
      if (broken_) continue;
      message_ = ToWire(ToResponse(*completion));
      write_in_flight_ = true;
      return {Action::Kind::kWrite, {}};
    }
    const Terminal& terminal = std::get<Terminal>(*event);
    finished_ = true;
    return {Action::Kind::kFinish, terminal.status.ok()
                                       ? grpc::Status::OK
                                       : ToGrpcStatus(EndedStatus(terminal))};
  }
  return {};
}

void GenerateCall::OnWriteDone(bool ok) {
  {
    MutexLock lock(&mu_);
    write_in_flight_ = false;
    if (!ok) broken_ = true;
  }
  if (!ok) Cancel(absl::CancelledError("the client is gone"));
  Pump();
}

// The client cancelled or left, or its deadline passed.
void GenerateCall::OnCancel() {
  SteadyTime deadline;
  {
    MutexLock lock(&mu_);
    deadline = deadline_;
  }
  // The client's deadline began to run before the request reached us, so that
  // its end of the call comes a little before ours would.
  constexpr auto kOnTheWay = std::chrono::milliseconds(20);
  const bool is_late = deadline - kOnTheWay <= std::chrono::steady_clock::now();
  Cancel(is_late ? absl::DeadlineExceededError("the deadline passed")
                 : absl::CancelledError("the client cancelled"));
}

void GenerateCall::OnDone() {
  std::shared_ptr<GenerateCall> self;
  std::shared_ptr<EventQueue> queue;
  {
    MutexLock lock(&mu_);
    self = std::move(self_);
    queue = std::move(queue_);
  }
  on_done_(this);
}

}  // namespace overfill
