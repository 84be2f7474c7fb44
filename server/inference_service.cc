#include "server/inference_service.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "server/errors.h"
#include "server/wire.h"

namespace overfill {
namespace {

// Parses, calls `handle`, and finishes a unary call.
template <typename RequestProto, typename Handle>
grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer& request,
                                 grpc::ByteBuffer* response, Handle handle) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  RequestProto proto;
  absl::Status status = FromWire(request, &proto);
  if (status.ok()) {
    auto answer = handle(proto);
    status = answer.status();
    if (status.ok()) *response = ToWire(*answer);
  }
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
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

InferenceService::InferenceService(Scheduler* scheduler,
                                   const Converter* converter,
                                   v1::GetModelInfoResponse model_info,
                                   SchedulerObserver* observer)
    : scheduler_(scheduler),
      converter_(converter),
      model_info_(std::move(model_info)),
      observer_(observer) {}

absl::StatusOr<Request> InferenceService::MakeRequest(
    const grpc::CallbackServerContext& context,
    const grpc::ByteBuffer& bytes) const {
  const SteadyTime arrival = std::chrono::steady_clock::now();
  v1::GenerateRequest proto;
  RETURN_IF_ERROR(FromWire(bytes, &proto));
  ASSIGN_OR_RETURN(Request request, converter_->ToRequest(proto, arrival));
  request.deadline = ToSteady(context.deadline());
  return request;
}

std::shared_ptr<GenerateCall> InferenceService::NewCall() {
  auto call =
      GenerateCall::Create(scheduler_, &pump_, [this](GenerateCall* ended) {
        MutexLock lock(&mu_);
        streams_.erase(ended);
        // Under the lock: the service may be gone right after.
        if (streams_.empty()) stream_ended_.NotifyAll();
      });
  MutexLock lock(&mu_);
  streams_.emplace(call.get(), call);
  return call;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  const std::shared_ptr<GenerateCall> call = NewCall();
  absl::StatusOr<Request> checked = MakeRequest(*context, *request);
  if (checked.ok()) {
    call->Submit(*std::move(checked));
  } else {
    if (observer_ != nullptr) observer_->OnReject("invalid_argument");
    call->Refuse(checked.status());
  }
  return call.get();
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return Answer<v1::TokenizeRequest>(
      context, *request, response,
      [this](const auto& proto) { return converter_->Tokenize(proto); });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return Answer<v1::DetokenizeRequest>(
      context, *request, response,
      [this](const auto& proto) { return converter_->Detokenize(proto); });
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return Answer<v1::GetModelInfoRequest>(
      context, *request, response, [this](const auto&) {
        return absl::StatusOr<v1::GetModelInfoResponse>(model_info_);
      });
}

void InferenceService::EndStreams(const absl::Status& status) {
  std::vector<std::shared_ptr<GenerateCall>> calls;
  {
    MutexLock lock(&mu_);
    for (const auto& [pointer, weak] : streams_) {
      if (auto call = weak.lock()) calls.push_back(std::move(call));
    }
  }
  for (const auto& call : calls) call->Cancel(status);
}

bool InferenceService::WaitNoStreams(std::chrono::nanoseconds timeout) {
  // A timeout may be as long as the clock is, so that nothing is added to it.
  constexpr std::chrono::nanoseconds kLongestWait = std::chrono::seconds(1);
  const SteadyTime begin = std::chrono::steady_clock::now();
  MutexLock lock(&mu_);
  while (!streams_.empty()) {
    const auto left = timeout - (std::chrono::steady_clock::now() - begin);
    if (left <= std::chrono::nanoseconds(0)) return false;
    stream_ended_.WaitFor(
        &mu_, std::min<std::chrono::nanoseconds>(left, kLongestWait));
  }
  return true;
}

}  // namespace overfill
