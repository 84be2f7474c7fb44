#include "server/inference_service.h"

#include <malloc.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/errors.h"
#include "server/trace_context.h"
#include "server/wire.h"

namespace overfill {
namespace {

// Smaller requests are parsed and tokenized at once, which takes less than a
// thread's wake-up and some hundred microseconds at most.
constexpr size_t kLargeRequestBytes = 4096;

// What may wait for the tokenizer's threads: seconds of work.
constexpr int64_t kMaxWaitingTasks = 256;
constexpr int64_t kMaxWaitingBytes = 64 << 20;

std::optional<TraceContext> TraceOf(
    const grpc::CallbackServerContext& context) {
  const auto found = context.client_metadata().find("traceparent");
  if (found == context.client_metadata().end()) return std::nullopt;
  return ParseTraceParent({found->second.data(), found->second.size()});
}

std::string PromptText(const v1::GenerateRequest& proto) {
  return proto.has_text()
             ? proto.text()
             : absl::StrCat("[", absl::StrJoin(proto.tokens().ids(), " "), "]");
}

}  // namespace

SteadyTime ToSteady(std::chrono::system_clock::time_point time) {
  // Farther than any request, and far from overflow.
  constexpr auto kFar = std::chrono::hours(24 * 365 * 10);
  const auto now = std::chrono::system_clock::now();
  if (time > now + kFar) return SteadyTime::max();
  if (time < now - kFar) time = now - kFar;
  return std::chrono::steady_clock::now() +
         std::chrono::duration_cast<std::chrono::steady_clock::duration>(time -
                                                                         now);
}

InferenceService::InferenceService(const ServiceOptions& options,
                                   Scheduler* scheduler,
                                   const Converter* converter,
                                   v1::GetModelInfoResponse model_info,
                                   SchedulerObserver* observer)
    : options_(options),
      scheduler_(scheduler),
      converter_(converter),
      model_info_(std::move(model_info)),
      observer_(observer != nullptr ? observer : &silent_),
      authenticator_(options.authenticator != nullptr ? options.authenticator
                                                      : &everyone_),
      tasks_(options.tokenizer_threads, kMaxWaitingTasks, kMaxWaitingBytes),
      cutter_(std::min<std::chrono::nanoseconds>(options.linger / 10,
                                                 std::chrono::seconds(1)),
              [this] {
                const SteadyTime now = std::chrono::steady_clock::now();
                for (const auto& call : Streams()) call->CutIfUnread(now);
                GiveMemoryBack();
              }) {}

std::shared_ptr<GenerateCall> InferenceService::Open(
    grpc::CallbackServerContext* context, SteadyTime deadline) {
  const CallParts parts = {.scheduler = scheduler_,
                           .pump = &pump_,
                           .observer = observer_,
                           .log = options_.log,
                           .on_refused =
                               [this](GenerateCall* refused) {
                                 MutexLock lock(&mu_);
                                 Uncount(streams_.find(refused)->second);
                               },
                           .linger = options_.linger};
  auto call = GenerateCall::Create(
      context, deadline, parts, [this](GenerateCall* ended) { Close(ended); });
  MutexLock lock(&mu_);
  streams_[call.get()] = {call, /*is_counted=*/false};
  return call;
}

void InferenceService::Close(GenerateCall* ended) {
  MutexLock lock(&mu_);
  const auto found = streams_.find(ended);
  Uncount(found->second);
  streams_.erase(found);
  ++num_ended_;
}

void InferenceService::Uncount(Stream& stream) {
  if (!stream.is_counted) return;
  stream.is_counted = false;
  if (--num_open_ == 0) call_ended_.NotifyAll();
}

void InferenceService::GiveMemoryBack() {
  constexpr int64_t kManyCalls = 1000;
  {
    MutexLock lock(&mu_);
    if (num_ended_ < kManyCalls || !streams_.empty()) return;
    num_ended_ = 0;
  }
  malloc_trim(0);
}

bool InferenceService::CountStream(GenerateCall* call) {
  MutexLock lock(&mu_);
  if (num_open_ >= options_.max_open_streams) return false;
  ++num_open_;
  streams_.find(call)->second.is_counted = true;
  return true;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  const SteadyTime arrival = std::chrono::steady_clock::now();
  const SteadyTime deadline = ToSteady(context->deadline());
  const StatusOrTenant tenant = TenantOf(*context);
  const std::shared_ptr<GenerateCall> call = Open(context, deadline);
  const size_t bytes = request->Length();
  if (!LetIn(*call, *context, tenant, arrival)) return call.get();
  // Not before: who is not let in takes nobody's place, however long it leaves
  // its refusal unread.
  if (!CountStream(call.get())) {
    call->Refuse(absl::ResourceExhaustedError("too many streams are open"),
                 "open_streams");
    return call.get();
  }
  const absl::Status precheck = scheduler_->Precheck(
      (*tenant)->name, static_cast<int64_t>(bytes), deadline);
  if (!precheck.ok()) {
    call->RefuseQuietly(precheck);
  } else if (bytes < kLargeRequestBytes) {
    Begin(*call, *request, **tenant, arrival, deadline);
  } else {
    // The copy shares the bytes, and outlives a call that is cancelled, as its
    // place does: there is work for it.
    const bool is_taken =
        tasks_.Submit(static_cast<int64_t>(bytes),
                      [this, call, place = call->place(), copy = *request,
                       tenant = *tenant, arrival, deadline] {
                        Begin(*call, copy, *tenant, arrival, deadline);
                      });
    if (!is_taken) {
      call->Refuse(
          absl::ResourceExhaustedError("too many prompts wait for a tokenizer"),
          "tokenizer_full");
    }
  }
  return call.get();
}

InferenceService::StatusOrTenant InferenceService::TenantOf(
    const grpc::CallbackServerContext& context) const {
  auto failure = Authenticator::Failure::kMissing;
  StatusOrTenant tenant =
      authenticator_->Authenticate(context.client_metadata(), &failure);
  if (!tenant.ok() && options_.on_unauthenticated != nullptr) {
    options_.on_unauthenticated(failure);
  }
  return tenant;
}

bool InferenceService::LetIn(GenerateCall& call,
                             const grpc::CallbackServerContext& context,
                             const StatusOrTenant& tenant, SteadyTime arrival) {
  RequestLogEntry entry;
  entry.peer = context.peer();
  entry.trace = TraceOf(context);
  entry.arrival = arrival;
  if (!tenant.ok()) {
    call.SetCaller(std::move(entry), nullptr);
    call.RefuseQuietly(tenant.status());
    return false;
  }
  entry.tenant = (*tenant)->name;
  if (!authenticator_->needs_token()) {
    call.SetCaller(std::move(entry), nullptr);
    return true;
  }
  QuotaRefusal refusal;
  call.SetCaller(std::move(entry), quotas_.Begin(**tenant, arrival, &refusal));
  if (refusal.status.ok()) return true;
  call.Refuse(refusal.status, refusal.reason, RetryAfter(refusal));
  return false;
}

std::chrono::nanoseconds InferenceService::RetryAfter(
    const QuotaRefusal& refusal) const {
  return refusal.retry_after.count() > 0 ? refusal.retry_after
                                         : scheduler_->RetryAfter();
}

void InferenceService::Begin(GenerateCall& call, const grpc::ByteBuffer& bytes,
                             const Tenant& tenant, SteadyTime arrival,
                             SteadyTime deadline) const {
  if (call.is_over()) return;
  v1::GenerateRequest proto;
  absl::Status status = FromWire(bytes, &proto);
  absl::StatusOr<Request> request =
      status.ok() ? converter_->ToRequest(proto, arrival) : status;
  if (!request.ok()) {
    call.Refuse(request.status(), "invalid_argument");
    return;
  }
  if (request->priority > tenant.limits.max_priority) {
    call.Refuse(FieldError("priority",
                           absl::StrCat("yours is at most ",
                                        tenant.limits.max_priority),
                           absl::StatusCode::kPermissionDenied),
                "permission");
    return;
  }
  if (options_.log != nullptr && options_.log->wants_prompts()) {
    call.SetPrompt(PromptText(proto));
  }
  request->deadline = deadline;
  request->tenant = tenant.name;
  call.Submit(*std::move(request));
}

// Checks who calls, parses, calls `handle`, and finishes a unary call.
template <typename RequestProto, typename Handle>
grpc::ServerUnaryReactor* InferenceService::Answer(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response, Handle handle) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const StatusOrTenant tenant = TenantOf(*context);
  if (!tenant.ok()) {
    reactor->Finish(ToGrpcStatus(tenant.status()));
    return reactor;
  }
  {
    MutexLock lock(&mu_);
    ++num_unary_;
  }
  const auto finish = [=, this](const absl::Status& status) {
    reactor->Finish(ToGrpcStatus(status));
    EndUnary();
  };
  // All of it is the call's, which stays until it is finished.
  const auto answer = [=] {
    RequestProto proto;
    absl::Status status = FromWire(*request, &proto);
    if (status.ok()) {
      auto result = handle(proto, **tenant);
      status = result.status();
      if (status.ok()) *response = ToWire(*result);
    }
    finish(status);
  };
  const size_t bytes = request->Length();
  if (bytes < kLargeRequestBytes) {
    answer();
    return reactor;
  }
  // Work for a tokenizer's thread counts among the tenant's requests.
  QuotaRefusal refusal;
  std::shared_ptr<QuotaPlace> place;
  if (authenticator_->needs_token()) {
    place = quotas_.Begin(**tenant, std::chrono::steady_clock::now(), &refusal);
  }
  const auto task = [=] {
    // `place` is held until here.
    static_cast<void>(place);
    if (context->IsCancelled()) {
      finish(absl::CancelledError("the client cancelled"));
    } else {
      answer();
    }
  };
  if (!refusal.status.ok()) {
    finish(RefusedStatus(refusal.status, RetryAfter(refusal)));
  } else if (!tasks_.Submit(static_cast<int64_t>(bytes), task)) {
    finish(RefusedStatus(
        absl::ResourceExhaustedError("too many texts wait for a tokenizer"),
        scheduler_->RetryAfter()));
  }
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return Answer<v1::TokenizeRequest>(context, request, response,
                                     [this](const auto& proto, const Tenant&) {
                                       return converter_->Tokenize(proto);
                                     });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return Answer<v1::DetokenizeRequest>(
      context, request, response, [this](const auto& proto, const Tenant&) {
        return converter_->Detokenize(proto);
      });
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return Answer<v1::GetModelInfoRequest>(
      context, request, response, [this](const auto&, const Tenant&) {
        return absl::StatusOr<v1::GetModelInfoResponse>(model_info_);
      });
}

grpc::ServerUnaryReactor* InferenceService::Cancel(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return Answer<v1::CancelRequest>(
      context, request, response,
      [this](const auto& proto,
             const Tenant& tenant) -> absl::StatusOr<v1::CancelResponse> {
        for (const auto& call : Streams()) {
          if (!call->IsLive(tenant.name, proto.request_id())) continue;
          call->Cancel(absl::CancelledError("the client cancelled"));
          return v1::CancelResponse();
        }
        // The same words for another tenant's.
        return FieldError("request_id",
                          "none of your live requests has this id",
                          absl::StatusCode::kNotFound);
      });
}

int32_t InferenceService::num_open_streams() const {
  MutexLock lock(&mu_);
  return num_open_;
}

std::vector<std::shared_ptr<GenerateCall>> InferenceService::Streams() const {
  std::vector<std::shared_ptr<GenerateCall>> calls;
  MutexLock lock(&mu_);
  calls.reserve(streams_.size());
  for (const auto& [pointer, stream] : streams_) {
    if (auto call = stream.call.lock()) calls.push_back(std::move(call));
  }
  return calls;
}

void InferenceService::EndStreams(const absl::Status& status) {
  for (const auto& call : Streams()) call->Cancel(status);
}

void InferenceService::EndUnary() {
  MutexLock lock(&mu_);
  if (--num_unary_ == 0) call_ended_.NotifyAll();
}

bool InferenceService::WaitNoStreams(std::chrono::nanoseconds timeout) {
  MutexLock lock(&mu_);
  return WaitUntil(timeout, [this] {
    mu_.AssertHeld();
    return num_open_ == 0;
  });
}

bool InferenceService::WaitNoUnaryCalls(std::chrono::nanoseconds timeout) {
  MutexLock lock(&mu_);
  return WaitUntil(timeout, [this] {
    mu_.AssertHeld();
    return num_unary_ == 0;
  });
}

bool InferenceService::WaitUntil(std::chrono::nanoseconds timeout,
                                 const std::function<bool()>& is_so) {
  // A timeout may be as long as the clock is, so that nothing is added to it.
  constexpr std::chrono::nanoseconds kLongestWait = std::chrono::seconds(1);
  const SteadyTime begin = std::chrono::steady_clock::now();
  while (!is_so()) {
    const auto left = timeout - (std::chrono::steady_clock::now() - begin);
    if (left <= std::chrono::nanoseconds(0)) return false;
    call_ended_.WaitFor(&mu_,
                        std::min<std::chrono::nanoseconds>(left, kLongestWait));
  }
  return true;
}

}  // namespace overfill
