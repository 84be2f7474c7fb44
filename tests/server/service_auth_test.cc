// The service with tokens: who is let in, and to what.
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/connection.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/service_rig.h"
#include "tests/server/temp_file.h"

namespace overfill {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string HashOf(absl::string_view token) {
  Sha256 hasher;
  hasher.Update(token);
  return HexString(hasher.Finish());
}

const Authenticator* TestAuthenticator() {
  static const Authenticator* const made = [] {
    const TempFile file(
        "service_tokens.json",
        absl::StrCat(R"({"tenants": [{"name": "one", "token_sha256": [")",
                     HashOf("token-1"),
                     R"("], "max_requests_in_flight": 2, "max_priority": 3},)",
                     R"({"name": "two", "token_sha256": [")", HashOf("token-2"),
                     R"("], "max_tokens_per_minute": 20}]})"));
    auto authenticator = Authenticator::FromFile(file.path());
    OVERFILL_CHECK_OK(authenticator.status());
    return authenticator->release();
  }();
  return made;
}

Mutex failures_mu;
std::vector<Authenticator::Failure> failures ABSL_GUARDED_BY(failures_mu);

ServiceOptions WithTokens() {
  ServiceOptions options;
  options.authenticator = TestAuthenticator();
  options.on_unauthenticated = [](Authenticator::Failure failure) {
    MutexLock lock(&failures_mu);
    failures.push_back(failure);
  };
  return options;
}

class ServiceAuthTest : public ServiceTest {
 protected:
  ServiceAuthTest() : ServiceTest(WithTokens()) {
    MutexLock lock(&failures_mu);
    failures.clear();
  }

  static void SetToken(grpc::ClientContext& context, const std::string& token) {
    if (!token.empty()) {
      context.AddMetadata("authorization", "Bearer " + token);
    }
  }
  // A stream that the scheduler has, or that was refused.
  struct Stream {
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
  };
  Stream Begin(const std::string& token,
               const v1::GenerateRequest& request = Prompt()) {
    Stream stream;
    stream.context = std::make_unique<grpc::ClientContext>();
    SetToken(*stream.context, token);
    stream.reader = stub_->Generate(stream.context.get(), request);
    return stream;
  }
  grpc::Status StatusOf(const std::string& token,
                        const v1::GenerateRequest& request = Prompt()) {
    const Stream stream = Begin(token, request);
    return Drain(*stream.reader).status;
  }
  grpc::Status Cancel(const std::string& token, const std::string& id) {
    grpc::ClientContext context;
    SetToken(context, token);
    v1::CancelRequest request;
    request.set_request_id(id);
    v1::CancelResponse response;
    return stub_->Cancel(&context, request, &response);
  }
  void EndAll() {
    for (const uint64_t uid : scheduler_.Live()) scheduler_.End(uid, Ended());
  }
};

TEST_F(ServiceAuthTest, NothingWithoutAToken) {
  for (const std::string& token : {std::string(), std::string("token-3")}) {
    const std::vector<grpc::Status> statuses = {
        StatusOf(token), Cancel(token, "x"),
        [&] {
          grpc::ClientContext context;
          SetToken(context, token);
          v1::TokenizeResponse response;
          return stub_->Tokenize(&context, {}, &response);
        }(),
        [&] {
          grpc::ClientContext context;
          SetToken(context, token);
          v1::DetokenizeResponse response;
          return stub_->Detokenize(&context, {}, &response);
        }(),
        [&] {
          grpc::ClientContext context;
          SetToken(context, token);
          v1::GetModelInfoResponse response;
          return stub_->GetModelInfo(&context, {}, &response);
        }()};
    for (const grpc::Status& status : statuses) {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
      EXPECT_THAT(status.error_message(), Not(HasSubstr("one")));
    }
  }
  EXPECT_EQ(scheduler_.num_submits(), 0);
  EXPECT_EQ(observer_.Total(), 0);  // counted apart
  MutexLock lock(&failures_mu);
  ASSERT_EQ(failures.size(), 10u);
  EXPECT_EQ(failures[0], Authenticator::Failure::kMissing);
  EXPECT_EQ(failures[9], Authenticator::Failure::kUnknown);
}

TEST_F(ServiceAuthTest, TheTokenOfAConnectionComesWithEachCall) {
  const TempFile token("connection_token", "token-1\n");
  ConnectionOptions options;
  options.target = absl::StrCat("127.0.0.1:", server_->port());
  options.token_file = token.path();
  const auto connection = Connection::Create(options);
  ASSERT_TRUE(connection.ok()) << connection.status();
  const auto stub = v1::Inference::NewStub(connection->NewChannel());
  for (int i = 0; i < 2; ++i) {
    grpc::ClientContext context;
    v1::GetModelInfoResponse response;
    const grpc::Status status = stub->GetModelInfo(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.pair_digest(), "abc");
  }
}

TEST_F(ServiceAuthTest, TheSchedulerKnowsTheTenant) {
  const Stream one = Begin("token-1");
  EXPECT_EQ(scheduler_.WaitForRequest(0).request.tenant, "one");
  const Stream two = Begin("token-2");
  EXPECT_EQ(scheduler_.WaitForRequest(1).request.tenant, "two");
  EndAll();
  EXPECT_TRUE(Drain(*one.reader).status.ok());
  EXPECT_TRUE(Drain(*two.reader).status.ok());
}

TEST_F(ServiceAuthTest, RequestsInFlightAreBounded) {
  const Stream first = Begin("token-1");
  const Stream second = Begin("token-1");
  scheduler_.WaitForRequest(1);
  const grpc::Status refused = StatusOf("token-1");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(
      DetailOf<google::rpc::QuotaFailure>(refused).violations(0).subject(),
      "requests_in_flight");
  EXPECT_TRUE(DetailOf<google::rpc::RetryInfo>(refused).has_retry_delay());
  EXPECT_EQ(observer_.Count("tenant_in_flight"), 1);
  // Another tenant does not feel it.
  const Stream other = Begin("token-2");
  scheduler_.WaitForRequest(2);
  EndAll();
  EXPECT_TRUE(Drain(*first.reader).status.ok());
  // The end that the client has seen has made room.
  const Stream third = Begin("token-1");
  scheduler_.WaitForRequest(3);
  EndAll();
  for (const Stream* stream : {&second, &other, &third}) {
    EXPECT_TRUE(Drain(*stream->reader).status.ok());
  }
}

TEST_F(ServiceAuthTest, ACancelledRequestMakesRoom) {
  for (int i = 0; i < 5; ++i) {
    const Stream stream = Begin("token-1");
    scheduler_.WaitForRequest(static_cast<size_t>(i));
    stream.context->TryCancel();
    EXPECT_EQ(Drain(*stream.reader).status.error_code(),
              grpc::StatusCode::CANCELLED);
    ASSERT_TRUE(service_->WaitNoStreams(seconds(30)));
  }
}

TEST_F(ServiceAuthTest, TokensOfAMinuteAreBounded) {
  v1::GenerateRequest request;
  for (int i = 0; i < 10; ++i) request.mutable_tokens()->add_ids(5);
  const Stream stream = Begin("token-2", request);
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  EXPECT_TRUE(scheduler_.Push(uid, TextDelta("x", {1, 2, 3, 4, 5, 6, 7, 8})));
  EXPECT_TRUE(scheduler_.Push(uid, TextDelta("y", {1, 2, 3, 4, 5, 6, 7, 8})));
  scheduler_.End(uid, Ended());
  EXPECT_TRUE(Drain(*stream.reader).status.ok());
  // 26 of 20 are used.
  const grpc::Status refused = StatusOf("token-2");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(
      DetailOf<google::rpc::QuotaFailure>(refused).violations(0).subject(),
      "tokens_per_minute");
  const auto delay = DetailOf<google::rpc::RetryInfo>(refused).retry_delay();
  EXPECT_GE(delay.seconds(), 18);
  EXPECT_LE(delay.seconds(), 21);
  EXPECT_EQ(observer_.Count("tenant_rate"), 1);
}

TEST_F(ServiceAuthTest, PriorityHasACeiling) {
  v1::GenerateRequest request = Prompt();
  request.set_priority(4);
  const grpc::Status refused = StatusOf("token-1", request);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(refused.error_message(), "priority: yours is at most 3");
  EXPECT_EQ(observer_.Count("permission"), 1);
  request.set_priority(3);
  const Stream stream = Begin("token-1", request);
  EXPECT_EQ(scheduler_.WaitForRequest(0).request.priority, 3);
  EndAll();
  EXPECT_TRUE(Drain(*stream.reader).status.ok());
}

TEST_F(ServiceAuthTest, OnlyOnesOwnRequestsCanBeCancelled) {
  v1::GenerateRequest request = Prompt();
  request.set_request_id("r-1");
  const Stream stream = Begin("token-1", request);
  scheduler_.WaitForRequest(0);
  // Until the call knows that it was admitted.
  v1::GenerateResponse event;
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  ASSERT_TRUE(scheduler_.Push(uid, TextDelta("x", {3})));
  ASSERT_TRUE(stream.reader->Read(&event));

  const grpc::Status others = Cancel("token-2", "r-1");
  const grpc::Status unknown = Cancel("token-1", "r-2");
  EXPECT_EQ(others.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(others.error_message(), unknown.error_message());
  EXPECT_EQ(others.error_details(), unknown.error_details());
  EXPECT_EQ(scheduler_.Live().size(), 1u);

  EXPECT_TRUE(Cancel("token-1", "r-1").ok());
  EXPECT_EQ(Drain(*stream.reader).status.error_code(),
            grpc::StatusCode::CANCELLED);
  EXPECT_EQ(Cancel("token-1", "r-1").error_code(), grpc::StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace overfill
