#include "server/generate_call.h"

#include <chrono>
#include <utility>
#include <variant>

#include "base/check.h"
#include "server/convert.h"
#include "server/errors.h"
#include "server/wire.h"

namespace overfill {
namespace {

// Why a request that was never submitted has ended, for the metrics.
const char* CancelReason(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded:
      return "deadline";
    case absl::StatusCode::kUnavailable:
      return "draining";
    default:
      return "cancelled";
  }
}

// What gRPC's own retries are to wait; none: their own backoff, which is better
// for short waits, as each try counts. Negative: not to try, as the deadline
// comes first.
std::optional<std::chrono::milliseconds> RetryPushback(
    std::chrono::nanoseconds delay, std::chrono::nanoseconds left) {
  if (delay < std::chrono::seconds(1)) return std::nullopt;
  if (delay >= left) return std::chrono::milliseconds(-1);
  return std::chrono::ceil<std::chrono::milliseconds>(delay);
}

}  // namespace

std::shared_ptr<GenerateCall> GenerateCall::Create(
    grpc::CallbackServerContext* context, SteadyTime deadline,
    const CallParts& parts, std::function<void(GenerateCall*)> on_done) {
  std::shared_ptr<GenerateCall> call(
      new GenerateCall(context, deadline, parts, std::move(on_done)));
  call->HoldSelf();
  return call;
}

void GenerateCall::HoldSelf() {
  MutexLock lock(&mu_);
  self_ = shared_from_this();
}

GenerateCall::GenerateCall(grpc::CallbackServerContext* context,
                           SteadyTime deadline, const CallParts& parts,
                           std::function<void(GenerateCall*)> on_done)
    : context_(context),
      deadline_(deadline),
      parts_(parts),
      on_done_(std::move(on_done)) {}

void GenerateCall::Submit(Request request) {
  auto queue = std::make_shared<EventQueue>(
      kMaxPendingBytes,
      [pump = parts_.pump, call = shared_from_this()] { pump->Queue(call); });
  const auto prompt_tokens = static_cast<int64_t>(request.prompt_ids.size());
  {
    MutexLock lock(&mu_);
    if (finished_) return;
    queue_ = queue;
    record_.request_id = request.request_id;
    record_.path = request.path;
    record_.priority = request.priority;
    record_.n = request.n;
  }
  const auto uid =
      parts_.scheduler->Submit(std::move(request), std::move(queue));
  if (!uid.ok()) {
    RefuseQuietly(uid.status());
    return;
  }
  // The response's headers tell the client, and a retry policy, that the
  // request is admitted. Nothing is written before them.
  SendHeaders();
  std::optional<absl::Status> cancelled;
  {
    MutexLock lock(&mu_);
    uid_ = *uid;
    if (place_ != nullptr) place_->Charge(prompt_tokens);
    headers_sent_ = true;
    cancelled = cancelled_;
  }
  if (cancelled) parts_.scheduler->Cancel(*uid, *cancelled);
  Pump();
}

void GenerateCall::SetCaller(RequestLogEntry record,
                             std::shared_ptr<QuotaPlace> place) {
  MutexLock lock(&mu_);
  record_ = std::move(record);
  if (!finished_) place_ = std::move(place);
}

std::shared_ptr<QuotaPlace> GenerateCall::place() const {
  MutexLock lock(&mu_);
  return place_;
}

void GenerateCall::SetPrompt(std::string prompt) {
  MutexLock lock(&mu_);
  record_.prompt = std::move(prompt);
}

void GenerateCall::Refuse(const absl::Status& status, const char* reason,
                          std::optional<std::chrono::nanoseconds> retry_after) {
  if (!BeginEnd()) return;
  parts_.observer->OnReject(reason);
  EndRefused(status, reason, retry_after);
}

void GenerateCall::RefuseQuietly(const absl::Status& status) {
  if (BeginEnd()) EndRefused(status, /*reason=*/"", std::nullopt);
}

void GenerateCall::EndRefused(
    const absl::Status& status, absl::string_view reason,
    std::optional<std::chrono::nanoseconds> retry_after) {
  if (parts_.log != nullptr) parts_.log->Refused(record(), status, reason);
  std::chrono::nanoseconds delay{0};
  if (status.code() == absl::StatusCode::kResourceExhausted) {
    delay = retry_after ? *retry_after : parts_.scheduler->RetryAfter();
    const auto pushback =
        RetryPushback(delay, deadline_ - std::chrono::steady_clock::now());
    if (pushback) SetRetryPushback(*pushback);
  }
  if (parts_.on_refused != nullptr) parts_.on_refused(this);
  EndCall(ToGrpcStatus(RefusedStatus(status, delay)));
}

void GenerateCall::EndAdmitted(const Terminal& terminal) {
  if (parts_.log != nullptr) parts_.log->Ended(record(), terminal);
  EndCall(terminal.status.ok() ? grpc::Status::OK
                               : ToGrpcStatus(EndedStatus(terminal)));
}

RequestLogEntry GenerateCall::record() const {
  MutexLock lock(&mu_);
  return record_;
}

bool GenerateCall::BeginEnd() {
  MutexLock lock(&mu_);
  if (finished_) return false;
  finished_ = true;
  if (!cancelled_) place_.reset();
  queue_.reset();
  return true;
}

void GenerateCall::Cancel(absl::Status status) {
  std::optional<uint64_t> uid;
  {
    MutexLock lock(&mu_);
    if (finished_ || cancelled_) return;
    cancelled_ = status;
    uid = uid_;
    // Where Submit is under way, it cancels as soon as it has a uid.
    if (queue_ != nullptr && !uid) return;
    if (queue_ == nullptr) finished_ = true;
  }
  if (uid) {
    parts_.scheduler->Cancel(*uid, std::move(status));
  } else {
    const char* const reason = CancelReason(status);
    parts_.observer->OnReject(reason);
    EndRefused(status, reason, std::nullopt);
  }
}

bool GenerateCall::is_over() const {
  MutexLock lock(&mu_);
  return finished_;
}

bool GenerateCall::IsLive(absl::string_view tenant,
                          absl::string_view request_id) const {
  MutexLock lock(&mu_);
  // The id is free again once the request has ended, however long its stream is
  // being read.
  return uid_ && !finished_ && queue_ != nullptr && !queue_->is_finished() &&
         record_.tenant == tenant && record_.request_id == request_id;
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
      EndAdmitted(action.terminal);
      return;
  }
}

GenerateCall::Action GenerateCall::NextAction() {
  MutexLock lock(&mu_);
  if (!headers_sent_ || write_in_flight_ || finished_ || is_cutting_) return {};
  return TakeEvent();
}

GenerateCall::Action GenerateCall::TakeEvent() {
  while (std::optional<Event> event = queue_->Pop()) {
    if (const Delta* delta = std::get_if<Delta>(&*event)) {
      if (place_ != nullptr) {
        place_->Charge(static_cast<int64_t>(delta->token_ids.size()));
      }
      if (broken_) continue;
      return StartWriting(ToResponse(*delta));
    }
    if (const Completion* completion = std::get_if<Completion>(&*event)) {
      if (broken_) continue;
      return StartWriting(ToResponse(*completion));
    }
    finished_ = true;
    // What the client sees next is the end, after which it may come again. Who
    // cancels comes again before gRPC is done with the call: a flood of such
    // calls is to stay within the tenant's limit.
    if (!cancelled_) place_.reset();
    return {Action::Kind::kFinish, std::get<Terminal>(*std::move(event))};
  }
  return {};
}

GenerateCall::Action GenerateCall::StartWriting(
    const v1::GenerateResponse& response) {
  message_ = ToWire(response);
  message_bytes_ = static_cast<int64_t>(message_.Length());
  write_in_flight_ = true;
  unread_since_.reset();
  return {Action::Kind::kWrite, {}};
}

void GenerateCall::CutIfUnread(SteadyTime now) {
  {
    MutexLock lock(&mu_);
    if (!IsUnread(now)) return;
    is_cut_ = is_cutting_ = true;
  }
  // May run OnWriteDone and OnCancel before it returns.
  CutOff();
  {
    MutexLock lock(&mu_);
    is_cutting_ = false;
  }
  Pump();
}

bool GenerateCall::IsUnread(SteadyTime now) {
  if (!write_in_flight_ || is_cut_ || !queue_->is_finished()) return false;
  if (!unread_since_) unread_since_ = now;
  const auto patience =
      parts_.linger +
      std::chrono::seconds(message_bytes_ / kLeastBytesPerSecond);
  return now - *unread_since_ >= patience;
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
  // The client's deadline began to run before the request reached us, and gRPC
  // rounds it up by as much as a tenth of a second on the wire, so that the
  // client's end of the call comes a little before ours would.
  constexpr auto kOnTheWay = std::chrono::milliseconds(100);
  const bool is_late =
      deadline_ - kOnTheWay <= std::chrono::steady_clock::now();
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
    place_.reset();
  }
  on_done_(this);
}

}  // namespace overfill
