// The service under abuse: clients that never read, too many streams, prompts
// that take long to tokenize.
#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/service_rig.h"

namespace overfill {
namespace {

// A call whose client sends its request and never reads.
struct DeadReader {
  std::unique_ptr<v1::Inference::Stub> stub;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;

  explicit DeadReader(const std::shared_ptr<grpc::Channel>& channel)
      : stub(v1::Inference::NewStub(channel)),
        reader(stub->Generate(&context, Prompt())) {}
  ~DeadReader() { context.TryCancel(); }
};

class DeadReadersTest : public ServiceTest {
 protected:
  DeadReadersTest() : ServiceTest({.linger = milliseconds(300)}) {}

  // A connection that takes no more than what is being read.
  std::shared_ptr<grpc::Channel> Narrow() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1 << 16);
    return NewChannel(arguments);
  }
  // An answer that such a one does not take unread, ended in the given way.
  void FillAndEnd(uint64_t uid, absl::Status status) {
    const std::string text(100'000, 'x');
    for (int i = 0; i < 9; ++i) {
      ASSERT_TRUE(scheduler_.Push(uid, TextDelta(text, {1})));
    }
    scheduler_.End(uid, Ended(std::move(status)));
  }
  bool WaitNoOpenStreams() {
    const SteadyTime end = std::chrono::steady_clock::now() + seconds(60);
    while (service_->num_open_streams() > 0) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(milliseconds(5));
    }
    return true;
  }
};

TEST_F(DeadReadersTest, TheirStreamsGoAndHoldNothing) {
  constexpr int kReaders = 12;
  int most_open = 0;
  std::vector<std::unique_ptr<DeadReader>> readers;
  std::vector<std::weak_ptr<EventQueue>> queues;
  const auto shared = Narrow();
  for (int i = 0; i < kReaders; ++i) {
    // A connection each, or one for all.
    readers.push_back(
        std::make_unique<DeadReader>(i % 2 == 0 ? Narrow() : shared));
    const auto submitted = scheduler_.WaitForRequest(i);
    queues.push_back(submitted.events);
    FillAndEnd(submitted.uid, i % 3 == 0
                                  ? absl::ResourceExhaustedError("too slow")
                                  : absl::OkStatus());
    most_open = std::max(most_open, service_->num_open_streams());
  }
  // Where the machine is slow the first ones may be gone before the last come.
  EXPECT_GT(most_open, kReaders / 2);
  // Others are served meanwhile.
  for (int i = 0; i < 20; ++i) {
    std::thread engine([this, i] {
      scheduler_.End(scheduler_.WaitForRequest(kReaders + i).uid, Ended());
    });
    EXPECT_TRUE(Call(Prompt()).status.ok());
    engine.join();
  }
  // The clients are there still, and have not read.
  EXPECT_TRUE(WaitNoOpenStreams());
  EXPECT_TRUE(service_->WaitNoStreams(seconds(30)));
  for (const auto& queue : queues) EXPECT_TRUE(queue.expired());
}

TEST_F(DeadReadersTest, WhoReadsInTimeGetsAll) {
  DeadReader reader(Narrow());
  FillAndEnd(scheduler_.WaitForRequest(0).uid, absl::OkStatus());
  std::this_thread::sleep_for(milliseconds(100));
  const Answer answer = Drain(*reader.reader);
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text.size(), 900'000u);
  EXPECT_EQ(answer.completions.size(), 1u);
}

TEST_F(DeadReadersTest, LiveRequestsAreNotCut) {
  DeadReader reader(Narrow());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  const std::string text(900'000, 'x');
  ASSERT_TRUE(scheduler_.Push(uid, TextDelta(text, {1})));
  // Many times the linger.
  std::this_thread::sleep_for(milliseconds(2000));
  EXPECT_EQ(service_->num_open_streams(), 1);
  scheduler_.End(uid, Ended());
  EXPECT_EQ(Drain(*reader.reader).text, text);
}

class OpenStreamsTest : public ServiceTest {
 protected:
  OpenStreamsTest() : ServiceTest({.max_open_streams = 3}) {}
};

TEST_F(OpenStreamsTest, MoreAreRefusedUnread) {
  std::vector<std::unique_ptr<DeadReader>> open;
  for (int i = 0; i < 3; ++i) {
    open.push_back(std::make_unique<DeadReader>(channel_));
    scheduler_.WaitForRequest(i);
  }
  EXPECT_EQ(service_->num_open_streams(), 3);
  // Bytes that are no message: nobody looks at them.
  const grpc::Status status =
      CallRaw("/overfill.v1.Inference/Generate", "\xFF\xFF\xFF\xFF");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_GE(DetailOf<google::rpc::RetryInfo>(status).retry_delay().seconds(),
            1);
  EXPECT_EQ(observer_.Count("open_streams"), 1);
  EXPECT_EQ(scheduler_.num_submits(), 3);
  EXPECT_EQ(service_->num_open_streams(), 3);
  // A place that is free again is taken again.
  scheduler_.End(scheduler_.WaitForRequest(0).uid, Ended());
  EXPECT_TRUE(Drain(*open[0]->reader).status.ok());
  while (service_->num_open_streams() == 3) std::this_thread::yield();
  std::thread engine(
      [this] { scheduler_.End(scheduler_.WaitForRequest(3).uid, Ended()); });
  EXPECT_TRUE(Call(Prompt()).status.ok());
  engine.join();
  for (int i = 1; i < 3; ++i) {
    scheduler_.End(scheduler_.WaitForRequest(i).uid, Ended());
  }
}

// The converter of the requests without a seed stands still until it is let go.
struct Brake {
  Mutex mu;
  CondVar changed;
  bool is_on ABSL_GUARDED_BY(mu) = true;
  int num_waiting ABSL_GUARDED_BY(mu) = 0;

  uint64_t Wait() {
    MutexLock lock(&mu);
    ++num_waiting;
    changed.NotifyAll();
    while (is_on) changed.Wait(&mu);
    return 1;
  }
  void WaitForOne() {
    MutexLock lock(&mu);
    while (num_waiting == 0) changed.Wait(&mu);
  }
  void Release() {
    MutexLock lock(&mu);
    is_on = false;
    changed.NotifyAll();
  }
};

class TokenizerThreadsTest : public ServiceTest {
 protected:
  TokenizerThreadsTest() : TokenizerThreadsTest(std::make_shared<Brake>()) {}
  ~TokenizerThreadsTest() override { brake_->Release(); }

  static v1::GenerateRequest Seeded() {
    v1::GenerateRequest request = Prompt();
    request.set_request_id("small");
    request.mutable_sampling()->set_seed(1);
    return request;
  }
  static v1::GenerateRequest Large() {
    v1::GenerateRequest request = Prompt();
    for (int i = 0; i < 60; ++i) {
      request.mutable_limits()->add_stop(std::string(100, 'x'));
    }
    return request;
  }

  std::shared_ptr<Brake> brake_;

 private:
  explicit TokenizerThreadsTest(const std::shared_ptr<Brake>& brake)
      : ServiceTest({}, WithBrake(brake)), brake_(brake) {}
  static ConvertOptions WithBrake(const std::shared_ptr<Brake>& brake) {
    ConvertOptions options = TestConvertOptions();
    options.random = [brake] { return brake->Wait(); };
    return options;
  }
};

TEST_F(TokenizerThreadsTest, LargePromptsHoldUpNoSmallOnes) {
  std::thread client([this] {
    std::thread engine(
        [this] { scheduler_.End(scheduler_.WaitForRequest(50).uid, Ended()); });
    EXPECT_TRUE(Call(Large()).status.ok());
    engine.join();
  });
  brake_->WaitForOne();
  for (int i = 0; i < 50; ++i) {
    std::thread engine([this, i] {
      scheduler_.End(scheduler_.WaitForRequest(i).uid, Ended());
    });
    EXPECT_TRUE(Call(Seeded()).status.ok());
    engine.join();
  }
  EXPECT_EQ(scheduler_.num_submits(), 50);
  brake_->Release();
  client.join();
}

TEST_F(TokenizerThreadsTest, WhoLeavesWhileWaitingEndsAtOnce) {
  grpc::ClientContext first, cancelled, late;
  late.set_deadline(std::chrono::system_clock::now() + milliseconds(300));
  const auto busy = stub_->Generate(&first, Large());
  brake_->WaitForOne();
  const auto waiting = stub_->Generate(&cancelled, Large());
  const auto waiting_too = stub_->Generate(&late, Large());
  while (service_->num_open_streams() < 3) std::this_thread::yield();
  cancelled.TryCancel();
  EXPECT_EQ(Drain(*waiting).status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(Drain(*waiting_too).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  // Gone on the server as well, although its thread is at the first still.
  while (service_->num_open_streams() > 1) std::this_thread::yield();
  EXPECT_EQ(observer_.Count("cancelled"), 1);
  EXPECT_EQ(observer_.Count("deadline"), 1);
  // The one under way, too.
  service_->EndStreams(absl::UnavailableError("the server is shutting down"));
  EXPECT_EQ(Drain(*busy).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(observer_.Count("draining"), 1);
  EXPECT_TRUE(service_->WaitNoStreams(seconds(30)));
  brake_->Release();
  std::thread engine(
      [this] { scheduler_.End(scheduler_.WaitForRequest(0).uid, Ended()); });
  EXPECT_TRUE(Call(Large()).status.ok());
  engine.join();
  EXPECT_EQ(scheduler_.num_submits(), 1);
}

TEST_F(TokenizerThreadsTest, QueueIsBounded) {
  std::vector<grpc::Status> statuses;
  std::vector<std::thread> clients;
  Mutex mu;
  std::atomic<int> num_refused = 0;
  // More than can wait, for sure.
  for (int i = 0; i < 300; ++i) {
    clients.emplace_back([&] {
      const grpc::Status status = Call(Large()).status;
      if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
        ++num_refused;
      }
      MutexLock lock(&mu);
      statuses.push_back(status);
    });
  }
  const SteadyTime end = std::chrono::steady_clock::now() + seconds(60);
  while (num_refused < 300 - 257 && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_EQ(num_refused, 300 - 257);  // 256 wait, one is under way
  EXPECT_EQ(observer_.Count("tokenizer_full"), num_refused);
  brake_->Release();
  for (int i = 0; i < 257; ++i) {
    scheduler_.End(scheduler_.WaitForRequest(i).uid, Ended());
  }
  for (std::thread& client : clients) client.join();
  int num_ok = 0;
  for (const grpc::Status& status : statuses) num_ok += status.ok();
  EXPECT_EQ(num_ok, 257);
}

TEST_F(TokenizerThreadsTest, UnaryCallsOfLargeTextsWaitTheirTurn) {
  grpc::ClientContext first;
  const auto busy = stub_->Generate(&first, Large());
  brake_->WaitForOne();
  std::atomic<bool> answered = false;
  std::thread client([this, &answered] {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text(std::string(10'000, 'a'));
    v1::TokenizeResponse response;
    EXPECT_TRUE(stub_->Tokenize(&context, request, &response).ok());
    EXPECT_GT(response.ids_size(), 0);
    answered = true;
  });
  grpc::ClientContext small_context;
  v1::TokenizeRequest small;
  small.set_text("abc");
  v1::TokenizeResponse response;
  EXPECT_TRUE(stub_->Tokenize(&small_context, small, &response).ok());
  EXPECT_FALSE(answered);
  first.TryCancel();
  brake_->Release();
  client.join();
  Drain(*busy);
}

}  // namespace
}  // namespace overfill
