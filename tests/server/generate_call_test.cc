// The state of a call without gRPC: its reactions come from threads of the
// test, where the thread sanitizer sees every lock.
#include "server/generate_call.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "overfill/v1/inference.pb.h"
#include "server/wire.h"
#include "tests/server/fake_scheduler.h"

namespace overfill {
namespace {

// What gRPC would be told, and a thread that answers as gRPC's do.
class FakeCall : public GenerateCall {
 public:
  FakeCall(Scheduler* scheduler, StreamPump* pump, int writes_before_failure)
      : GenerateCall(scheduler, pump, [](GenerateCall*) {}),
        writes_before_failure_(writes_before_failure) {}

  void Begin() {
    HoldSelf();
    grpc_ = std::thread([this] { Run(); });
  }
  // Waits for OnDone.
  void Join() { grpc_.join(); }

  int num_tokens() const { return num_tokens_; }
  int num_completions() const { return num_completions_; }
  int num_finishes() const { return num_finishes_; }

 protected:
  void SendHeaders() override { headers_sent_ = true; }

  void Write(const grpc::ByteBuffer* message) override {
    EXPECT_TRUE(headers_sent_);
    MutexLock lock(&mu_);
    EXPECT_EQ(message_, nullptr) << "two writes at once";
    EXPECT_EQ(num_finishes_, 0);
    message_ = message;
    changed_.NotifyAll();
  }

  void EndCall(const grpc::Status& status) override {
    MutexLock lock(&mu_);
    EXPECT_EQ(message_, nullptr) << "finished during a write";
    ++num_finishes_;
    changed_.NotifyAll();
  }

 private:
  void Run() {
    while (true) {
      const grpc::ByteBuffer* message;
      {
        MutexLock lock(&mu_);
        while (message_ == nullptr && num_finishes_ == 0) changed_.Wait(&mu_);
        message = message_;
      }
      if (message == nullptr) break;
      v1::GenerateResponse response;
      EXPECT_TRUE(FromWire(*message, &response).ok());
      num_tokens_ += response.delta().token_ids_size();
      num_completions_ += response.has_completion();
      {
        MutexLock lock(&mu_);
        message_ = nullptr;
      }
      OnWriteDone(writes_before_failure_-- > 0);
    }
    OnDone();
  }

  Mutex mu_;
  CondVar changed_;
  const grpc::ByteBuffer* message_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::atomic<int> num_finishes_ = 0;
  std::atomic<bool> headers_sent_ = false;
  std::atomic<int> num_tokens_ = 0;
  std::atomic<int> num_completions_ = 0;
  int writes_before_failure_;
  std::thread grpc_;
};

Request AnyRequest() {
  Request request;
  request.prompt_ids = {1};
  return request;
}

Delta OneToken() {
  Delta delta;
  delta.text = "x";
  delta.token_ids = {1};
  return delta;
}

class GenerateCallTest : public ::testing::Test {
 protected:
  std::shared_ptr<FakeCall> NewCall(int writes_before_failure = 1 << 30) {
    auto call =
        std::make_shared<FakeCall>(&scheduler_, &pump_, writes_before_failure);
    call->Begin();
    return call;
  }
  FakeScheduler scheduler_;
  StreamPump pump_;
};

TEST_F(GenerateCallTest, AllTokensThenOneFinish) {
  const auto call = NewCall();
  call->Submit(AnyRequest());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  for (int i = 0; i < 500; ++i) ASSERT_TRUE(scheduler_.Push(uid, OneToken()));
  scheduler_.End(uid, Terminal());
  call->Join();
  EXPECT_EQ(call->num_tokens(), 500);
  EXPECT_EQ(call->num_completions(), 1);
  EXPECT_EQ(call->num_finishes(), 1);
}

TEST_F(GenerateCallTest, FailedWriteCancelsAndStillFinishes) {
  const auto call = NewCall(/*writes_before_failure=*/0);
  call->Submit(AnyRequest());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  ASSERT_TRUE(scheduler_.Push(uid, OneToken()));
  EXPECT_EQ(scheduler_.WaitForCancel(uid).code(), absl::StatusCode::kCancelled);
  call->Join();
  EXPECT_EQ(call->num_finishes(), 1);
}

TEST_F(GenerateCallTest, RefusalFinishesWithoutHeaders) {
  scheduler_.RefuseNext(absl::ResourceExhaustedError("full"));
  const auto call = NewCall();
  call->Submit(AnyRequest());
  call->Join();
  EXPECT_EQ(call->num_finishes(), 1);
  EXPECT_EQ(call->num_tokens(), 0);
}

TEST_F(GenerateCallTest, CancelBeforeSubmitReachesTheScheduler) {
  const auto call = NewCall();
  call->OnCancel();
  call->Submit(AnyRequest());
  call->Join();
  EXPECT_EQ(call->num_finishes(), 1);
  EXPECT_EQ(scheduler_.num_ended(), 1);
}

TEST_F(GenerateCallTest, EventsCancelsAndWritesFromEveryThread) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const auto call = NewCall(static_cast<int>(random() % 12));
    std::thread engine([this, round] {
      const uint64_t uid = scheduler_.WaitForRequest(round).uid;
      for (int i = 0; i < 20 && scheduler_.Push(uid, OneToken()); ++i) {
      }
      scheduler_.End(uid, Terminal());
    });
    std::thread canceller([call, pause = random() % 60] {
      std::this_thread::sleep_for(std::chrono::microseconds(pause));
      call->OnCancel();
    });
    call->Submit(AnyRequest());
    call->Join();
    engine.join();
    canceller.join();
    EXPECT_EQ(call->num_finishes(), 1);
    EXPECT_LE(call->num_completions(), 1);
  }
  EXPECT_TRUE(scheduler_.Live().empty());
}

}  // namespace
}  // namespace overfill
