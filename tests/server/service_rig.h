// The service in a real gRPC server, over a scheduler that the tests play.
#ifndef OVERFILL_TESTS_SERVER_SERVICE_RIG_H_
#define OVERFILL_TESTS_SERVER_SERVICE_RIG_H_

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/credentials.h"
#include "gtest/gtest.h"
#include "server/grpc_server.h"
#include "server/inference_service.h"
#include "tests/server/fake_scheduler.h"
#include "tests/server/test_converter.h"

namespace overfill {

using std::chrono::milliseconds;
using std::chrono::seconds;

inline Delta TextDelta(std::string text, std::vector<int32_t> ids) {
  Delta delta;
  delta.text = std::move(text);
  delta.token_ids = std::move(ids);
  return delta;
}

inline Terminal Ended(absl::Status status = absl::OkStatus()) {
  Terminal terminal;
  terminal.status = std::move(status);
  terminal.finish_reason = FinishReason::kEos;
  terminal.seed = 5;
  terminal.usage = {.prompt_tokens = 1, .completion_tokens = 7};
  terminal.timings.ttft_seconds = 0.25;
  return terminal;
}

inline v1::GenerateRequest Prompt() {
  v1::GenerateRequest request;
  request.mutable_tokens()->add_ids(5);
  return request;
}

struct CountingObserver : SchedulerObserver {
  void OnReject(absl::string_view reason) override {
    MutexLock lock(&mu);
    ++rejects[std::string(reason)];
  }
  int Count(const std::string& reason) {
    MutexLock lock(&mu);
    return rejects[reason];
  }
  // Of all reasons.
  int Total() {
    MutexLock lock(&mu);
    int total = 0;
    for (const auto& [reason, count] : rejects) total += count;
    return total;
  }
  Mutex mu;
  std::map<std::string, int> rejects ABSL_GUARDED_BY(mu);
};

class ServiceTest : public ::testing::Test {
 protected:
  explicit ServiceTest(const ServiceOptions& options = {},
                       ConvertOptions convert = TestConvertOptions())
      : converter_(TestConverter(std::move(convert))) {
    v1::GetModelInfoResponse info;
    info.set_pair_digest("abc");
    service_ = std::make_unique<InferenceService>(
        options, &scheduler_, converter_.get(), info, &observer_);
    auto server =
        GrpcServer::Start({.max_request_bytes = 8 << 20}, service_.get());
    OVERFILL_CHECK_OK(server.status());
    server_ = *std::move(server);
    channel_ = NewChannel({});
    stub_ = v1::Inference::NewStub(channel_);
  }

  ~ServiceTest() override {
    EXPECT_TRUE(service_->WaitNoStreams(seconds(30)));
    EXPECT_TRUE(scheduler_.Live().empty());
  }

  std::shared_ptr<grpc::Channel> NewChannel(grpc::ChannelArguments arguments) {
    // A connection of its own.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(
        absl::StrCat("127.0.0.1:", server_->port()),
        grpc::InsecureChannelCredentials(), arguments);
  }

  // Reads a stream to its end.
  struct Answer {
    std::string text;
    std::vector<int32_t> ids;
    std::vector<v1::Completion> completions;
    grpc::Status status;
  };
  static Answer Drain(grpc::ClientReader<v1::GenerateResponse>& reader) {
    Answer answer;
    v1::GenerateResponse event;
    while (reader.Read(&event)) {
      if (event.has_completion()) {
        answer.completions.push_back(event.completion());
        continue;
      }
      EXPECT_TRUE(answer.completions.empty());
      answer.text += event.delta().text();
      answer.ids.insert(answer.ids.end(), event.delta().token_ids().begin(),
                        event.delta().token_ids().end());
    }
    answer.status = reader.Finish();
    return answer;
  }
  Answer Call(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Drain(*stub_->Generate(&context, request));
  }
  // The status of a call with these bytes as its message.
  grpc::Status CallRaw(const char* method, const std::string& bytes) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    const auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
    call->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag;
    bool ok;
    queue.Next(&tag, &ok);
    return status;
  }

  FakeScheduler scheduler_;
  CountingObserver observer_;
  std::unique_ptr<Converter> converter_;
  std::unique_ptr<InferenceService> service_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_SERVER_SERVICE_RIG_H_
