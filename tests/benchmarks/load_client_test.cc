#include "benchmarks/serving/load_client.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/mutex.h"
#include "benchmarks/serving/event_loop.h"
#include "benchmarks/serving/summary.h"
#include "gmock/gmock.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

Connection ConnectionTo(const std::string& target) {
  ConnectionOptions options;
  options.target = target;
  auto connection = Connection::Create(options);
  OVERFILL_CHECK_OK(connection.status());
  return *std::move(connection);
}

using ::testing::Each;
using ::testing::Field;

constexpr int32_t kVocabSize = 50;

using Writer = grpc::ServerWriter<v1::GenerateResponse>;

bool WriteDelta(Writer* writer, uint32_t index, std::vector<int32_t> ids) {
  v1::GenerateResponse response;
  response.mutable_delta()->set_index(index);
  response.mutable_delta()->mutable_token_ids()->Add(ids.begin(), ids.end());
  return writer->Write(response);
}

bool WriteCompletion(Writer* writer, uint32_t index, uint32_t num_tokens) {
  v1::GenerateResponse response;
  v1::Completion& completion = *response.mutable_completion();
  completion.set_index(index);
  completion.mutable_usage()->set_prompt_tokens(9);
  completion.mutable_usage()->set_cached_prompt_tokens(4);
  completion.mutable_usage()->set_completion_tokens(num_tokens);
  return writer->Write(response);
}

grpc::Status WaitForCancel(grpc::ServerContext* context) {
  while (!context->IsCancelled()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const bool late = context->deadline() <= std::chrono::system_clock::now();
  return late ? grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "late")
              : grpc::Status::CANCELLED;
}

// Answers as the test says, and keeps what it was asked.
class PlayedServer final : public v1::Inference::Service {
 public:
  using Answer = std::function<grpc::Status(
      grpc::ServerContext*, const v1::GenerateRequest&, Writer*)>;

  explicit PlayedServer(Answer answer) : answer_(std::move(answer)) {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    target_ = absl::StrCat("127.0.0.1:", port);
  }
  ~PlayedServer() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  const std::string& target() const { return target_; }
  std::vector<v1::GenerateRequest> requests() {
    MutexLock lock(&mu_);
    return requests_;
  }
  int most_at_once() {
    MutexLock lock(&mu_);
    return most_at_once_;
  }

  grpc::Status GetModelInfo(grpc::ServerContext*,
                            const v1::GetModelInfoRequest*,
                            v1::GetModelInfoResponse* response) override {
    response->mutable_full()->set_vocab_size(kVocabSize);
    return grpc::Status::OK;
  }

  grpc::Status Generate(grpc::ServerContext* context,
                        const v1::GenerateRequest* request,
                        Writer* writer) override {
    {
      MutexLock lock(&mu_);
      requests_.push_back(*request);
      most_at_once_ = std::max(most_at_once_, ++at_once_);
    }
    const grpc::Status status = answer_(context, *request, writer);
    MutexLock lock(&mu_);
    --at_once_;
    return status;
  }

 private:
  const Answer answer_;
  std::unique_ptr<grpc::Server> server_;
  std::string target_;
  Mutex mu_;
  std::vector<v1::GenerateRequest> requests_ ABSL_GUARDED_BY(mu_);
  int at_once_ ABSL_GUARDED_BY(mu_) = 0;
  int most_at_once_ ABSL_GUARDED_BY(mu_) = 0;
};

// All its tokens in messages of one, for each of the n answers.
grpc::Status AnswerWhole(grpc::ServerContext*, const v1::GenerateRequest& asked,
                         Writer* writer) {
  const auto num_tokens = static_cast<uint32_t>(asked.limits().max_tokens());
  for (uint32_t index = 0; index < std::max(1u, asked.n()); ++index) {
    for (uint32_t i = 0; i < num_tokens; ++i) {
      WriteDelta(writer, index, {static_cast<int32_t>(i)});
    }
    WriteCompletion(writer, index, num_tokens);
  }
  return grpc::Status::OK;
}

grpc::Status AnswerForEver(grpc::ServerContext*, const v1::GenerateRequest&,
                           Writer* writer) {
  // A stream that is not read blocks here.
  while (WriteDelta(writer, 0, std::vector<int32_t>(512, 7))) {
  }
  return grpc::Status::CANCELLED;
}

grpc::Status SaysNothing(grpc::ServerContext* context,
                         const v1::GenerateRequest&, Writer*) {
  return WaitForCancel(context);
}

WorkloadOptions Load() {
  WorkloadOptions options;
  options.seed = TestSeed();
  options.rate = 200;
  options.prompt = *LengthDistribution::Parse("uniform:5:12");
  options.output = *LengthDistribution::Parse("uniform:1:6");
  return options;
}

RunOptions Requests(int64_t num_requests) {
  RunOptions options;
  options.num_requests = num_requests;
  options.vocab_size = kVocabSize;
  return options;
}

std::vector<RequestRecord> RunLoad(PlayedServer& server,
                                   const WorkloadOptions& load,
                                   const RunOptions& options) {
  LoadClient client(ConnectionTo(server.target()), 2);
  auto workload = Workload::Make(load);
  EXPECT_TRUE(workload.ok()) << workload.status();
  return client.Run(*std::move(workload), options).records;
}

RunSummary SummarizeAll(const std::vector<RequestRecord>& records) {
  return Summarize(records, 0, 1e18, {});
}

TEST(LoadClientTest, AsksForTheVocabulary) {
  PlayedServer server(AnswerWhole);
  LoadClient client(ConnectionTo(server.target()), 1);
  const auto info = client.GetModelInfo(10);
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->full().vocab_size(), static_cast<uint32_t>(kVocabSize));
  EXPECT_FALSE(
      LoadClient(ConnectionTo("127.0.0.1:1"), 1).GetModelInfo(0.1).ok());
}

TEST(LoadClientTest, SendsWhatWasPlannedAndRecordsEachOnce) {
  PlayedServer server(AnswerWhole);
  WorkloadOptions load = Load();
  load.min_priority = -5;
  load.max_priority = 5;
  load.paths = {"full", "pruned", "two_stage"};
  RunOptions options = Requests(40);
  options.request.set_n(2);
  options.call.keep_token_ids = true;
  const auto records = RunLoad(server, load, options);

  ASSERT_EQ(records.size(), 40u);
  std::map<uint64_t, v1::GenerateRequest> by_seed;
  for (const auto& request : server.requests()) {
    by_seed[request.sampling().seed()] = request;
  }
  EXPECT_EQ(by_seed.size(), 40u);
  const Workload workload = *Workload::Make(load);
  for (const RequestRecord& record : records) {
    const PlannedRequest& plan = record.plan;
    const v1::GenerateRequest& sent = by_seed.at(plan.sampling_seed);
    EXPECT_EQ(std::vector<int32_t>(sent.tokens().ids().begin(),
                                   sent.tokens().ids().end()),
              workload.PromptTokens(plan, kVocabSize));
    EXPECT_EQ(sent.limits().max_tokens(), plan.max_tokens);
    EXPECT_EQ(sent.priority(), plan.priority);
    EXPECT_EQ(v1::DecodePath_Name(sent.path()),
              plan.path == "full"     ? "DECODE_PATH_FULL"
              : plan.path == "pruned" ? "DECODE_PATH_PRUNED"
                                      : "DECODE_PATH_TWO_STAGE");
    EXPECT_GE(record.sent, record.scheduled);
    EXPECT_GE(record.ended, record.sent);
    ASSERT_EQ(record.samples.size(), 2u);
    for (const SampleRecord& sample : record.samples) {
      EXPECT_EQ(sample.num_tokens(), plan.max_tokens);
      EXPECT_EQ(static_cast<int32_t>(sample.token_ids.size()), plan.max_tokens);
    }
    EXPECT_EQ(record.usage_cached_prompt_tokens, 4);
  }
  const RunSummary summary = SummarizeAll(records);
  EXPECT_TRUE(summary.valid());
  EXPECT_EQ(summary.completed, 40);
}

TEST(LoadClientTest, AnOpenLoopWaitsForNoAnswer) {
  PlayedServer server(SaysNothing);
  RunOptions options;
  options.vocab_size = kVocabSize;
  options.duration_seconds = 0.3;
  options.cancel_at_end = true;
  WorkloadOptions load = Load();
  load.rate = 50;
  load.burstiness = 1e6;  // a metronome
  const auto records = RunLoad(server, load, options);
  EXPECT_GE(records.size(), 14u);
  EXPECT_LE(records.size(), 15u);
  EXPECT_THAT(records, Each(Field(&RequestRecord::status_code,
                                  static_cast<int>(kStatusCancelled))));
  const RunSummary summary = SummarizeAll(records);
  EXPECT_TRUE(summary.valid());
  EXPECT_EQ(summary.sent, summary.by_status[kStatusCancelled]);
}

TEST(LoadClientTest, AClosedLoopKeepsItsNumber) {
  PlayedServer server([](grpc::ServerContext* context,
                         const v1::GenerateRequest& request, Writer* writer) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return AnswerWhole(context, request, writer);
  });
  RunOptions options = Requests(30);
  options.concurrency = 3;
  const auto records = RunLoad(server, Load(), options);
  EXPECT_EQ(records.size(), 30u);
  EXPECT_EQ(server.requests().size(), 30u);
  // A handler may still be returning when its client has gone on.
  EXPECT_GE(server.most_at_once(), 2);
  EXPECT_LE(server.most_at_once(), 6);
}

TEST(LoadClientTest, FollowsATraceToItsEnd) {
  PlayedServer server(AnswerWhole);
  WorkloadOptions load = Load();
  load.trace = {{0, 3, 2}, {0.05, 4, 1}};
  load.prompt = load.output = *LengthDistribution::Parse("trace");
  const double begin = SteadySeconds();
  const auto records = RunLoad(server, load, Requests(0));
  EXPECT_GE(SteadySeconds(), begin + 0.05);
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1].plan.num_prompt_tokens, 4);
}

TEST(LoadClientTest, EachStatusIsWhatTheServerSaid) {
  PlayedServer server(
      [](grpc::ServerContext*, const v1::GenerateRequest& asked, Writer*) {
        return asked.priority() % 2 == 0
                   ? grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full")
                   : grpc::Status(grpc::StatusCode::INTERNAL, "a fault");
      });
  WorkloadOptions load = Load();
  load.max_priority = 1;
  const RunSummary summary = SummarizeAll(RunLoad(server, load, Requests(40)));
  EXPECT_EQ(summary.sent, 40);
  EXPECT_EQ(summary.by_status[kStatusResourceExhausted] + summary.by_status[13],
            40);
  EXPECT_GT(summary.by_status[13], 0);
  EXPECT_EQ(summary.refusal.count, summary.by_status[kStatusResourceExhausted]);
  EXPECT_TRUE(summary.valid());
}

TEST(LoadClientTest, CancelsAfterItsTokens) {
  PlayedServer server(AnswerForEver);
  WorkloadOptions load = Load();
  load.cancel_fraction = 1;
  load.output = LengthDistribution::Fixed(2000);
  for (const RequestRecord& record : RunLoad(server, load, Requests(5))) {
    EXPECT_EQ(record.status_code, kStatusCancelled);
    EXPECT_TRUE(record.cancelled_by_client);
    EXPECT_FALSE(record.unfinished);
    EXPECT_GE(record.samples[0].num_tokens(), *record.plan.cancel_after_tokens);
  }
}

TEST(LoadClientTest, CancelsInTimeWhereNoTokenComes) {
  PlayedServer server(SaysNothing);
  WorkloadOptions load = Load();
  load.cancel_fraction = 1;
  load.cancel_within_seconds = 0.1;
  for (const RequestRecord& record : RunLoad(server, load, Requests(5))) {
    EXPECT_EQ(record.status_code, kStatusCancelled);
    EXPECT_GE(record.ended - record.sent, *record.plan.cancel_after_seconds);
    EXPECT_FALSE(record.unfinished);
  }
}

TEST(LoadClientTest, TinyDeadlinesPass) {
  PlayedServer server(SaysNothing);
  WorkloadOptions load = Load();
  load.deadline_fraction = 1;
  const RunSummary summary = SummarizeAll(RunLoad(server, load, Requests(10)));
  EXPECT_EQ(summary.by_status[kStatusDeadlineExceeded], 10);
  EXPECT_TRUE(summary.valid());
}

TEST(LoadClientTest, ADeadReaderReadsNothingAndLeaves) {
  PlayedServer server(AnswerForEver);
  WorkloadOptions load = Load();
  load.dead_fraction = 1;
  RunOptions options = Requests(4);
  options.call.dead_hold_seconds = 0.2;
  const auto records = RunLoad(server, load, options);
  ASSERT_EQ(records.size(), 4u);
  for (const RequestRecord& record : records) {
    EXPECT_TRUE(record.samples[0].arrivals.empty());
    EXPECT_EQ(record.status_code, kStatusCancelled);
    EXPECT_GE(record.ended - record.sent, 0.2);
  }
  EXPECT_TRUE(SummarizeAll(records).valid());
}

TEST(LoadClientTest, ASlowReaderWaitsBeforeEachRead) {
  PlayedServer server(AnswerWhole);
  WorkloadOptions load = Load();
  load.slow_fraction = 1;
  load.output = LengthDistribution::Fixed(4);
  RunOptions options = Requests(3);
  options.call.slow_delay_seconds = 0.03;
  const auto records = RunLoad(server, load, options);
  for (const RequestRecord& record : records) {
    const auto& arrivals = record.samples[0].arrivals;
    ASSERT_EQ(arrivals.size(), 4u);
    for (size_t i = 1; i < arrivals.size(); ++i) {
      EXPECT_GE(arrivals[i].at - arrivals[i - 1].at, 0.03);
    }
    EXPECT_EQ(record.status_code, kStatusOk);
  }
  EXPECT_TRUE(SummarizeAll(records).valid());
}

TEST(LoadClientTest, GivesUpOnAStreamThatNeverEnds) {
  PlayedServer server(SaysNothing);
  RunOptions options = Requests(3);
  options.give_up_seconds = 0.1;
  const auto records = RunLoad(server, Load(), options);
  ASSERT_EQ(records.size(), 3u);
  const RunSummary summary = SummarizeAll(records);
  EXPECT_EQ(summary.anomalies.unfinished, 3);
  EXPECT_FALSE(summary.valid());
}

// What a server may not do, as a client sees it.
Anomalies AnomaliesOf(PlayedServer::Answer answer) {
  PlayedServer server(std::move(answer));
  RunOptions options = Requests(1);
  const RunSummary summary =
      SummarizeAll(RunLoad(server, Load(), std::move(options)));
  EXPECT_EQ(summary.anomalies.Sum(), 1);
  return summary.anomalies;
}

TEST(LoadClientTest, SeesWhatAServerMayNotDo) {
  using Context = grpc::ServerContext;
  using Request = v1::GenerateRequest;
  EXPECT_EQ(AnomaliesOf([](Context*, const Request&, Writer* writer) {
              WriteDelta(writer, 0, {1});
              return grpc::Status::OK;
            }).missing_completion,
            1);
  EXPECT_EQ(AnomaliesOf([](Context*, const Request&, Writer* writer) {
              WriteCompletion(writer, 0, 0);
              WriteCompletion(writer, 0, 0);
              return grpc::Status::OK;
            }).extra_completion,
            1);
  EXPECT_EQ(AnomaliesOf([](Context*, const Request&, Writer* writer) {
              WriteCompletion(writer, 0, 1);
              WriteDelta(writer, 0, {1});
              return grpc::Status::OK;
            }).delta_after_completion,
            1);
  EXPECT_EQ(AnomaliesOf([](Context*, const Request&, Writer* writer) {
              WriteDelta(writer, 1, {1});
              WriteCompletion(writer, 0, 0);
              return grpc::Status::OK;
            }).unknown_index,
            1);
  EXPECT_EQ(AnomaliesOf([](Context*, const Request&, Writer* writer) {
              WriteDelta(writer, 0, {1, 2});
              WriteCompletion(writer, 0, 1);
              return grpc::Status::OK;
            }).token_count,
            1);
  EXPECT_EQ(AnomaliesOf([](Context*, const Request&, Writer*) {
              return grpc::Status::CANCELLED;
            }).cancelled_by_server,
            1);
}

}  // namespace
}  // namespace overfill
