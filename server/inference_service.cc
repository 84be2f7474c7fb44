#include "server/inference_service.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "server/errors.h"
#include "server/wire.h"

namespace overfill {
namespace {

// Smaller requests are parsed and tokenized at once, which takes less than a
// thread's wake-up and some hundred microseconds at most.
constexpr size_t kLargeRequestBytes = 4096;

// What may wait for the tokenizer's threads: seconds of work.
constexpr int64_t kMaxWaitingTasks = 256;
constexpr int64_t kMaxWaitingBytes = 64 << 20;

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
      tasks_(options.tokenizer_threads, kMaxWaitingTasks, kMaxWaitingBytes),
      cutter_(std::min<std::chrono::nanoseconds>(options.linger / 10,
                                                 std::chrono::seconds(1)),
              [this] {
                const SteadyTime now = std::chrono::steady_clock::now();
                for (const auto& call : Streams()) call->CutIfUnread(now);
              }) {}

InferenceService::NewStream InferenceService::Open(
    grpc::CallbackServerContext* context, SteadyTime deadline) {
  const CallParts parts = {.scheduler = scheduler_,
                           .pump = &pump_,
                           .observer = observer_,
                           .linger = options_.linger};
  NewStream result;
  result.call = GenerateCall::Create(context, deadline, parts,
                                     [this](GenerateCall* ended) {
                                       MutexLock lock(&mu_);
                                       const auto found = streams_.find(ended);
                                       if (found->second.is_counted)
                                         --num_open_;
                                       streams_.erase(found);
                                       // Under the lock: the service may be
                                       // gone right after.
                                       if (streams_.empty())
                                         stream_ended_.NotifyAll();
                                     });
  MutexLock lock(&mu_);
  result.is_over_bound = num_open_ >= options_.max_open_streams;
  if (!result.is_over_bound) ++num_open_;
  streams_[result.call.get()] = {result.call, !result.is_over_bound};
  return result;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  const SteadyTime arrival = std::chrono::steady_clock::now();
  const SteadyTime deadline = ToSteady(context->deadline());
  const auto [call, is_over_bound] = Open(context, deadline);
  const size_t bytes = request->Length();
  if (is_over_bound) {
    call->Refuse(absl::ResourceExhaustedError("too many streams are open"),
                 "open_streams");
    return call.get();
  }
  const absl::Status precheck = scheduler_->Precheck(
      /*tenant=*/"", static_cast<int64_t>(bytes), deadline);
  if (!precheck.ok()) {
    call->RefuseQuietly(precheck);
  } else if (bytes < kLargeRequestBytes) {
    Begin(*call, *request, arrival, deadline);
  } else {
    // The copy shares the bytes, and outlives a call that is cancelled.
    const bool is_taken =
        tasks_.Submit(static_cast<int64_t>(bytes),
                      [this, call = call, copy = *request, arrival, deadline] {
                        Begin(*call, copy, arrival, deadline);
                      });
    if (!is_taken) {
      call->Refuse(
          absl::ResourceExhaustedError("too many prompts wait for a tokenizer"),
          "tokenizer_full");
    }
  }
  return call.get();
}

void InferenceService::Begin(GenerateCall& call, const grpc::ByteBuffer& bytes,
                             SteadyTime arrival, SteadyTime deadline) const {
  if (call.is_over()) return;
  absl::StatusOr<Request> request = MakeRequest(bytes, arrival);
  if (!request.ok()) {
    call.Refuse(request.status(), "invalid_argument");
    return;
  }
  request->deadline = deadline;
  call.Submit(*std::move(request));
}

absl::StatusOr<Request> InferenceService::MakeRequest(
    const grpc::ByteBuffer& bytes, SteadyTime arrival) const {
  v1::GenerateRequest proto;
  RETURN_IF_ERROR(FromWire(bytes, &proto));
  return converter_->ToRequest(proto, arrival);
}

// Parses, calls `handle`, and finishes a unary call.
template <typename RequestProto, typename Handle>
grpc::ServerUnaryReactor* InferenceService::Answer(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response, Handle handle) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  // All of it is the call's, which stays until it is finished.
  const auto answer = [=] {
    RequestProto proto;
    absl::Status status = FromWire(*request, &proto);
    if (status.ok()) {
      auto result = handle(proto);
      status = result.status();
      if (status.ok()) *response = ToWire(*result);
    }
    reactor->Finish(ToGrpcStatus(status));
  };
  const size_t bytes = request->Length();
  if (bytes < kLargeRequestBytes) {
    answer();
  } else if (!tasks_.Submit(static_cast<int64_t>(bytes), answer)) {
    reactor->Finish(ToGrpcStatus(RefusedStatus(
        absl::ResourceExhaustedError("too many texts wait for a tokenizer"),
        scheduler_->RetryAfter())));
  }
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return Answer<v1::TokenizeRequest>(
      context, request, response,
      [this](const auto& proto) { return converter_->Tokenize(proto); });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return Answer<v1::DetokenizeRequest>(
      context, request, response,
      [this](const auto& proto) { return converter_->Detokenize(proto); });
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return Answer<v1::GetModelInfoRequest>(
      context, request, response, [this](const auto&) {
        return absl::StatusOr<v1::GetModelInfoResponse>(model_info_);
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
