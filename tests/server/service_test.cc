// The service: what clients get, call by call.
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"
#include "tests/server/service_rig.h"

namespace overfill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(ServiceTest, StreamsDeltasThenOneCompletion) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  v1::GenerateResponse event;
  for (int i = 0; i < 3; ++i) {
    const std::string text(1, static_cast<char>('a' + i));
    ASSERT_TRUE(scheduler_.Push(uid, TextDelta(text, {i})));
    // Each comes at once, not with the next.
    ASSERT_TRUE(reader->Read(&event));
    EXPECT_EQ(event.delta().text(), text);
    EXPECT_THAT(event.delta().token_ids(), ElementsAre(i));
  }
  scheduler_.End(uid, Ended());
  const Answer rest = Drain(*reader);
  EXPECT_TRUE(rest.status.ok()) << rest.status.error_message();
  ASSERT_EQ(rest.completions.size(), 1u);
  const v1::Completion& completion = rest.completions[0];
  EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_EOS);
  EXPECT_EQ(completion.seed(), 5u);
  EXPECT_EQ(completion.usage().completion_tokens(), 7u);
  EXPECT_EQ(completion.timings().ttft(), 0.25);
}

TEST_F(ServiceTest, MatchedStopsAndLogprobsArrive) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  Delta delta = TextDelta("x", {3});
  delta.logprobs = {{-0.5f, {{3, -0.5f}, {4, -1.5f}}}};
  ASSERT_TRUE(scheduler_.Push(uid, std::move(delta)));
  v1::GenerateResponse event;
  ASSERT_TRUE(reader->Read(&event));
  ASSERT_EQ(event.delta().logprobs_size(), 1);
  EXPECT_EQ(event.delta().logprobs(0).logprob(), -0.5f);
  EXPECT_EQ(event.delta().logprobs(0).top(1).token_id(), 4);
  Terminal terminal = Ended();
  terminal.finish_reason = FinishReason::kStop;
  Completion completion;
  completion.matched_stop = std::string("end");
  scheduler_.End(uid, std::move(terminal), std::move(completion));
  const Answer rest = Drain(*reader);
  ASSERT_EQ(rest.completions.size(), 1u);
  EXPECT_EQ(rest.completions[0].finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(rest.completions[0].stop(), "end");
}

TEST_F(ServiceTest, HeadersComeWithAdmission) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  reader->WaitForInitialMetadata();  // no event has come yet
  scheduler_.End(uid, Ended());
  EXPECT_TRUE(Drain(*reader).status.ok());
}

TEST_F(ServiceTest, RefusalsSendNoHeadersSoThatClientsMayRetry) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(R"({"methodConfig": [{
      "name": [{"service": "overfill.v1.Inference"}],
      "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.01s",
          "maxBackoff": "0.01s", "backoffMultiplier": 1,
          "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]}}]})");
  const auto stub = v1::Inference::NewStub(NewChannel(arguments));
  scheduler_.RefuseNext(absl::ResourceExhaustedError("full"));
  scheduler_.RefuseNext(absl::UnavailableError("draining"));
  grpc::ClientContext context;
  // A client retries only while it reads.
  std::thread engine(
      [this] { scheduler_.End(scheduler_.WaitForRequest(0).uid, Ended()); });
  const auto reader = stub->Generate(&context, Prompt());
  EXPECT_TRUE(Drain(*reader).status.ok());
  engine.join();
  EXPECT_EQ(scheduler_.num_submits(), 3);
}

TEST_F(ServiceTest, RefusalsKeepTheirCodes) {
  scheduler_.RefuseNext(absl::ResourceExhaustedError("the queue is full"));
  Answer answer = Call(Prompt());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(answer.status.error_message(), "the queue is full");
  EXPECT_GE(
      DetailOf<google::rpc::RetryInfo>(answer.status).retry_delay().seconds(),
      1);
  scheduler_.RefuseNext(absl::AlreadyExistsError("a live request has this id"));
  answer = Call(Prompt());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(ServiceTest, RetryInfoIsTheSchedulersEstimate) {
  scheduler_.SetRetryAfter(milliseconds(2250));
  scheduler_.RefuseNext(absl::ResourceExhaustedError("the queue is full"));
  auto delay =
      DetailOf<google::rpc::RetryInfo>(Call(Prompt()).status).retry_delay();
  EXPECT_EQ(delay.seconds(), 2);
  EXPECT_EQ(delay.nanos(), 250'000'000);
  // Never "at once".
  scheduler_.SetRetryAfter(seconds(0));
  scheduler_.RefuseNext(absl::ResourceExhaustedError("the queue is full"));
  delay = DetailOf<google::rpc::RetryInfo>(Call(Prompt()).status).retry_delay();
  EXPECT_EQ(delay.seconds(), 0);
  EXPECT_EQ(delay.nanos(), 1'000'000);
}

TEST_F(ServiceTest, WhatHasNoChanceIsNotParsed) {
  scheduler_.SetPrecheck(absl::ResourceExhaustedError("the queue is full"));
  const grpc::Status status =
      CallRaw("/overfill.v1.Inference/Generate", "\xFF\xFF\xFF\xFF");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailOf<google::rpc::RetryInfo>(status).retry_delay().seconds(),
            1);
  const auto prechecks = scheduler_.prechecks();
  ASSERT_EQ(prechecks.size(), 1u);
  EXPECT_EQ(prechecks[0].prompt_bytes, 4);
  EXPECT_EQ(prechecks[0].deadline, SteadyTime::max());
  scheduler_.SetPrecheck(absl::UnavailableError("the server is going down"));
  EXPECT_EQ(Call(Prompt()).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  scheduler_.SetPrecheck(absl::DeadlineExceededError("not in time"));
  EXPECT_EQ(Call(Prompt()).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(scheduler_.num_submits(), 0);
  // The scheduler tells whoever counts.
  EXPECT_EQ(observer_.Total(), 0);
}

TEST_F(ServiceTest, EachSampleHasItsDeltasAndItsCompletion) {
  grpc::ClientContext context;
  v1::GenerateRequest request = Prompt();
  request.set_n(3);
  const auto reader = stub_->Generate(&context, request);
  const auto submitted = scheduler_.WaitForRequest(0);
  EXPECT_EQ(submitted.request.n, 3);
  const auto push = [&](int32_t index, const std::string& text) {
    Delta delta = TextDelta(text, {index});
    delta.index = index;
    EXPECT_TRUE(scheduler_.Push(submitted.uid, std::move(delta)));
  };
  const auto complete = [&](int32_t index, int32_t num_tokens) {
    Completion completion;
    completion.index = index;
    completion.seed = 5;
    completion.usage = {.prompt_tokens = 9,
                        .cached_prompt_tokens = 8,
                        .completion_tokens = num_tokens};
    scheduler_.Complete(submitted.uid, std::move(completion));
  };
  push(1, "b");
  push(0, "a");
  complete(1, 1);
  push(2, "c");
  push(0, "a");
  complete(0, 2);
  complete(2, 1);
  scheduler_.Finish(submitted.uid, Ended());
  std::map<uint32_t, std::string> texts;
  std::map<uint32_t, v1::Completion> completions;
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
    if (event.has_delta()) {
      const uint32_t index = event.delta().index();
      EXPECT_EQ(completions.count(index), 0u) << "a delta after its end";
      texts[index] += event.delta().text();
    } else {
      const uint32_t index = event.completion().index();
      EXPECT_EQ(completions.count(index), 0u);
      completions[index] = event.completion();
    }
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(texts,
            (std::map<uint32_t, std::string>{{0, "aa"}, {1, "b"}, {2, "c"}}));
  ASSERT_EQ(completions.size(), 3u);
  EXPECT_EQ(completions[0].usage().completion_tokens(), 2u);
  EXPECT_EQ(completions[2].usage().completion_tokens(), 1u);
  EXPECT_EQ(completions[2].usage().cached_prompt_tokens(), 8u);
}

TEST_F(ServiceTest, ErrorsTellTheUsageOfAllSamples) {
  grpc::ClientContext context;
  v1::GenerateRequest request = Prompt();
  request.set_n(2);
  const auto reader = stub_->Generate(&context, request);
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  Completion completion;
  completion.index = 1;
  completion.usage = {.prompt_tokens = 1, .completion_tokens = 3};
  scheduler_.Complete(uid, std::move(completion));
  scheduler_.Finish(uid, Ended(absl::DeadlineExceededError("too late")));
  const Answer answer = Drain(*reader);
  // What was complete before stays so.
  ASSERT_EQ(answer.completions.size(), 1u);
  EXPECT_EQ(answer.completions[0].index(), 1u);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  const auto details = DetailOf<v1::Completion>(answer.status);
  EXPECT_EQ(details.usage().completion_tokens(), 7u);
}

TEST_F(ServiceTest, FaultsOfOurOwnStayInside) {
  for (const absl::Status& fault :
       {absl::InternalError("/models/secret is broken"),
        absl::InvalidArgumentError("row 3 of block 7"),
        absl::UnknownError("what"), absl::NotFoundError("file")}) {
    scheduler_.RefuseNext(fault);
    Answer answer = Call(Prompt());
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_EQ(answer.status.error_message(), "internal error");
  }
}

TEST_F(ServiceTest, ErrorsTellTheUsageSoFar) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  ASSERT_TRUE(scheduler_.Push(uid, TextDelta("ab", {1, 2})));
  scheduler_.End(uid, Ended(absl::InternalError("logits of layer 3")));
  const Answer answer = Drain(*reader);
  EXPECT_EQ(answer.text, "ab");
  EXPECT_TRUE(answer.completions.empty());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(answer.status.error_details(), Not(HasSubstr("logits")));
  const auto completion = DetailOf<v1::Completion>(answer.status);
  EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
  EXPECT_EQ(completion.usage().completion_tokens(), 7u);
  EXPECT_EQ(completion.timings().ttft(), 0.25);
}

TEST_F(ServiceTest, BadRequestsNeverReachTheScheduler) {
  v1::GenerateRequest request = Prompt();
  request.mutable_sampling()->set_top_p(0);
  const Answer answer = Call(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(answer.status), ElementsAre("sampling.top_p"));
  EXPECT_EQ(scheduler_.num_submits(), 0);
  EXPECT_EQ(observer_.Count("invalid_argument"), 1);
}

TEST_F(ServiceTest, ClientsCancelReachesTheScheduler) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  context.TryCancel();
  EXPECT_EQ(scheduler_.WaitForCancel(uid).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(Drain(*reader).status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(ServiceTest, LostConnectionCancels) {
  auto stub = v1::Inference::NewStub(NewChannel({}));
  auto context = std::make_unique<grpc::ClientContext>();
  auto reader = stub->Generate(context.get(), Prompt());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  context->TryCancel();
  reader.reset();
  context.reset();
  stub.reset();
  EXPECT_EQ(scheduler_.WaitForCancel(uid).code(), absl::StatusCode::kCancelled);
}

TEST_F(ServiceTest, DeadlineReachesTheSchedulerBothWays) {
  grpc::ClientContext context;
  const auto begin = std::chrono::steady_clock::now();
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(300));
  const auto reader = stub_->Generate(&context, Prompt());
  const auto submitted = scheduler_.WaitForRequest(0);
  EXPECT_LE(submitted.request.deadline - begin, milliseconds(400));
  EXPECT_GE(submitted.request.deadline - begin, milliseconds(200));
  EXPECT_EQ(scheduler_.WaitForCancel(submitted.uid).code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Drain(*reader).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(ServiceTest, NoDeadlineIsNone) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt());
  const auto submitted = scheduler_.WaitForRequest(0);
  EXPECT_EQ(submitted.request.deadline, SteadyTime::max());
  scheduler_.End(submitted.uid, Ended());
  Drain(*reader);
}

// Deltas of a client that does not read are joined; past the bound the request
// ends, and neither the producer waits nor does memory grow.
TEST_F(ServiceTest, SlowReaderGetsAllUpToTheBound) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  const std::string text(1000, 'x');
  size_t num_pushed = 0;
  while (scheduler_.Push(uid, TextDelta(text, {1}))) {
    ASSERT_LT(++num_pushed, 100000u);
  }
  scheduler_.End(uid, Ended(absl::ResourceExhaustedError("slow reader")));
  const Answer answer = Drain(*reader);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(answer.text.size(), num_pushed * text.size());
  EXPECT_EQ(answer.ids.size(), num_pushed);
  EXPECT_EQ(DetailOf<v1::Completion>(answer.status).usage().prompt_tokens(),
            1u);
}

TEST_F(ServiceTest, EndStreamsEndsOpenOnes) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt());
  scheduler_.WaitForRequest(0);
  EXPECT_FALSE(service_->WaitNoStreams(milliseconds(20)));
  service_->EndStreams(absl::UnavailableError("the server is shutting down"));
  const Answer answer = Drain(*reader);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(service_->WaitNoStreams(seconds(10)));
}

TEST_F(ServiceTest, BytesThatAreNoMessageAreInvalid) {
  for (const char* method :
       {"/overfill.v1.Inference/Generate", "/overfill.v1.Inference/Tokenize",
        "/overfill.v1.Inference/Detokenize",
        "/overfill.v1.Inference/GetModelInfo"}) {
    const grpc::Status status = CallRaw(method, "\xFF\xFF\xFF\xFF");
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << method << ": " << status.error_message();
    EXPECT_THAT(FieldsOf(status), ElementsAre("request"));
  }
  const grpc::Status status = CallRaw("/overfill.v1.Inference/Generate",
                                      std::string("\x12\x02\xC3\x28", 4));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(FieldsOf(status), ElementsAre("text"));
}

TEST_F(ServiceTest, UnaryCallsAnswer) {
  grpc::ClientContext tokenize, detokenize, info;
  v1::TokenizeRequest text;
  text.set_text("hello");
  text.set_add_special_tokens(false);
  v1::TokenizeResponse ids;
  ASSERT_TRUE(stub_->Tokenize(&tokenize, text, &ids).ok());
  v1::DetokenizeRequest back;
  *back.mutable_ids() = ids.ids();
  v1::DetokenizeResponse text_again;
  ASSERT_TRUE(stub_->Detokenize(&detokenize, back, &text_again).ok());
  EXPECT_EQ(text_again.text(), "hello");
  v1::GetModelInfoResponse about;
  ASSERT_TRUE(
      stub_->GetModelInfo(&info, v1::GetModelInfoRequest(), &about).ok());
  EXPECT_EQ(about.pair_digest(), "abc");

  grpc::ClientContext bad_context;
  back.add_ids(-4);
  const grpc::Status bad = stub_->Detokenize(&bad_context, back, &text_again);
  EXPECT_EQ(bad.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

// Calls that end in every way at once, on every thread. What must hold: each
// admitted request ends once, each call is done, nothing is touched after.
TEST_F(ServiceTest, StormOfCancelsDeadlinesAndSlowReaders) {
  constexpr int kClients = 6, kCallsEach = 40;
  std::atomic<bool> stopped = false;
  std::vector<std::thread> producers;
  for (int p = 0; p < 2; ++p) {
    producers.emplace_back([&, p] {
      std::mt19937 random(p);
      while (!stopped) {
        for (const uint64_t uid : scheduler_.Live()) {
          if (random() % 8 == 0) {
            scheduler_.End(uid, Ended());
          } else if (!scheduler_.Push(uid, TextDelta("word ", {1}))) {
            scheduler_.End(uid, Ended(absl::ResourceExhaustedError("slow")));
          }
        }
        std::this_thread::yield();
      }
    });
  }
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      std::mt19937 random(100 + c);
      for (int i = 0; i < kCallsEach; ++i) {
        grpc::ClientContext context;
        const int kind = static_cast<int>(random() % 4);
        if (kind == 0) {
          context.set_deadline(std::chrono::system_clock::now() +
                               std::chrono::microseconds(random() % 3000));
        }
        const auto reader = stub_->Generate(&context, Prompt());
        if (kind == 1) context.TryCancel();
        if (kind == 2) {
          std::this_thread::sleep_for(
              std::chrono::microseconds(random() % 2000));
          context.TryCancel();
        }
        const Answer answer = Drain(*reader);
        // A client may cancel what has ended already.
        EXPECT_LE(answer.completions.size(), 1u);
        if (answer.status.ok()) {
          EXPECT_EQ(answer.completions.size(), 1u);
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(scheduler_.WaitIdle(seconds(30)));
  EXPECT_TRUE(service_->WaitNoStreams(seconds(30)));
  stopped = true;
  for (std::thread& producer : producers) producer.join();
  EXPECT_EQ(scheduler_.num_ended(), scheduler_.num_submits());
}

TEST(ToSteadyTest, FarTimesStayFar) {
  using System = std::chrono::system_clock;
  EXPECT_EQ(ToSteady(System::time_point::max()), SteadyTime::max());
  EXPECT_LT(ToSteady(System::time_point::min()),
            std::chrono::steady_clock::now());
  const auto soon =
      ToSteady(System::now() + seconds(5)) - std::chrono::steady_clock::now();
  EXPECT_LT(soon, seconds(6));
  EXPECT_GT(soon, seconds(4));
}

TEST(GrpcServerTest, TakenPortIsOneError) {
  FakeScheduler scheduler;
  const auto converter = TestConverter();
  InferenceService first({}, &scheduler, converter.get(), {}, nullptr);
  InferenceService second({}, &scheduler, converter.get(), {}, nullptr);
  const auto server = GrpcServer::Start({}, &first);
  ASSERT_TRUE(server.ok());
  const HostPort taken = {"127.0.0.1", (*server)->port()};
  EXPECT_EQ(CheckBindable(taken).code(), absl::StatusCode::kUnavailable);
  RouteLibraryLogs();
  const auto again = GrpcServer::Start({.listen = taken}, &second);
  EXPECT_EQ(again.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(again.status().message()),
              HasSubstr("cannot listen on 127.0.0.1"));
  EXPECT_FALSE(CheckBindable({"no.such.host.invalid", 1}).ok());
  EXPECT_TRUE(CheckBindable({"127.0.0.1", 0}).ok());
}

}  // namespace
}  // namespace overfill
