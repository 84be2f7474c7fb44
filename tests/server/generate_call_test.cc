// The state of a call without gRPC: its reactions come from threads of the
// test, where the thread sanitizer sees every lock.
#include "server/generate_call.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "overfill/v1/inference.pb.h"
#include "server/wire.h"
#include "tests/server/fake_scheduler.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

using ::testing::ElementsAre;

// What gRPC would be told, and a thread that answers as gRPC's do.
class FakeCall : public GenerateCall {
 public:
  FakeCall(const CallParts& parts, int writes_before_failure)
      : GenerateCall(nullptr, SteadyTime::max(), parts, [](GenerateCall*) {}),
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
  int num_cuts() const { return num_cuts_; }
  std::optional<std::chrono::milliseconds> pushback() const {
    return pushback_;
  }
  // Writes end from now on only when the stream is cut.
  void StopReading() { reads_ = false; }
  void WaitForWrite() {
    MutexLock lock(&mu_);
    while (message_ == nullptr) changed_.Wait(&mu_);
  }

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

  void SetRetryPushback(std::chrono::milliseconds delay) override {
    pushback_ = delay;
  }
  void EndCall(const grpc::Status& status) override {
    MutexLock lock(&mu_);
    EXPECT_EQ(message_, nullptr) << "finished during a write";
    EXPECT_FALSE(is_cutting_) << "the context may be gone during the cut";
    ++num_finishes_;
    changed_.NotifyAll();
  }

  // As gRPC may do it: the write's end comes from within.
  void CutOff() override {
    is_cutting_ = true;
    ++num_cuts_;
    {
      MutexLock lock(&mu_);
      changed_.NotifyAll();
      while (message_ != nullptr) changed_.Wait(&mu_);
    }
    OnCancel();
    is_cutting_ = false;
  }

 private:
  std::optional<std::chrono::milliseconds> pushback_;
  void Run() {
    while (true) {
      const grpc::ByteBuffer* message;
      {
        MutexLock lock(&mu_);
        while (num_finishes_ == 0 &&
               (message_ == nullptr || (!reads_ && num_cuts_ == 0))) {
          changed_.Wait(&mu_);
        }
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
        changed_.NotifyAll();
      }
      OnWriteDone(writes_before_failure_-- > 0 && num_cuts_ == 0);
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
  std::atomic<int> num_cuts_ = 0;
  std::atomic<bool> reads_ = true;
  std::atomic<bool> is_cutting_ = false;
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
  delta.text.push_back('x');
  delta.token_ids = {1};
  return delta;
}

struct RecordingObserver : SchedulerObserver {
  void OnReject(absl::string_view reason) override {
    MutexLock lock(&mu);
    reasons.push_back(std::string(reason));
  }
  std::vector<std::string> Reasons() {
    MutexLock lock(&mu);
    return reasons;
  }
  Mutex mu;
  std::vector<std::string> reasons ABSL_GUARDED_BY(mu);
};

class GenerateCallTest : public ::testing::Test {
 protected:
  std::shared_ptr<FakeCall> NewCall(int writes_before_failure = 1 << 30) {
    auto call = std::make_shared<FakeCall>(
        CallParts{
            .scheduler = &scheduler_, .pump = &pump_, .observer = &observer_},
        writes_before_failure);
    call->Begin();
    return call;
  }
  FakeScheduler scheduler_;
  RecordingObserver observer_;
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
  EXPECT_EQ(call->pushback(), std::chrono::ceil<std::chrono::milliseconds>(
                                  scheduler_.RetryAfter()));
}

TEST_F(GenerateCallTest, ShortWaitsAreLeftToTheClientsBackoff) {
  const auto call = NewCall();
  call->Refuse(absl::ResourceExhaustedError("full"), "queue_full",
               std::chrono::milliseconds(999));
  call->Join();
  EXPECT_EQ(call->pushback(), std::nullopt);
}

TEST_F(GenerateCallTest, LongWaitsArePushedBack) {
  using std::chrono::milliseconds;
  const auto call = NewCall();
  call->Refuse(absl::ResourceExhaustedError("full"), "queue_full",
               milliseconds(1500) + std::chrono::nanoseconds(1));
  call->Join();
  EXPECT_EQ(call->pushback(), milliseconds(1501));
}

TEST_F(GenerateCallTest, OnlyWhatWaitingHelpsIsPushedBack) {
  scheduler_.RefuseNext(absl::UnavailableError("draining"));
  const auto call = NewCall();
  call->Submit(AnyRequest());
  call->Join();
  EXPECT_EQ(call->pushback(), std::nullopt);
}

TEST_F(GenerateCallTest, CancelBeforeSubmitEndsTheCallAtOnce) {
  const auto call = NewCall();
  EXPECT_FALSE(call->is_over());
  call->OnCancel();
  call->Join();
  EXPECT_TRUE(call->is_over());
  // Whoever was at its prompt comes too late.
  call->Submit(AnyRequest());
  call->Refuse(absl::InvalidArgumentError("bad"), "invalid_argument");
  EXPECT_EQ(call->num_finishes(), 1);
  EXPECT_EQ(scheduler_.num_submits(), 0);
  EXPECT_THAT(observer_.Reasons(), ElementsAre("cancelled"));
}

TEST_F(GenerateCallTest, CancelAndSubmitRaceToOneEnd) {
  std::mt19937 random(TestSeed());
  for (int round = 0; round < 300; ++round) {
    const auto call = NewCall();
    std::thread canceller([call, pause = random() % 20] {
      std::this_thread::sleep_for(std::chrono::microseconds(pause));
      call->Cancel(absl::UnavailableError("going down"));
    });
    call->Submit(AnyRequest());
    canceller.join();
    call->Join();
    EXPECT_EQ(call->num_finishes(), 1);
  }
  EXPECT_TRUE(scheduler_.Live().empty());
  EXPECT_EQ(scheduler_.num_ended(), scheduler_.num_submits());
  EXPECT_EQ(scheduler_.num_submits() + observer_.Reasons().size(), 300u);
}

TEST_F(GenerateCallTest, UnreadStreamIsCutAfterTheLinger) {
  const auto call = NewCall();
  call->StopReading();
  call->Submit(AnyRequest());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  ASSERT_TRUE(scheduler_.Push(uid, OneToken()));
  call->WaitForWrite();
  SteadyTime now;
  const auto pass = [&](std::chrono::seconds time) {
    now += time;
    call->CutIfUnread(now);
  };
  // As long as the request lives, its own bounds hold.
  pass(std::chrono::seconds(1000));
  pass(std::chrono::seconds(1000));
  EXPECT_EQ(call->num_cuts(), 0);
  ASSERT_TRUE(scheduler_.Push(uid, OneToken()));
  scheduler_.End(uid, Terminal());
  pass(std::chrono::seconds(1000));  // seen for the first time
  pass(kLinger - std::chrono::seconds(1));
  EXPECT_EQ(call->num_cuts(), 0);
  pass(std::chrono::seconds(1));
  EXPECT_EQ(call->num_cuts(), 1);
  call->Join();
  EXPECT_EQ(call->num_finishes(), 1);
  EXPECT_EQ(call->num_completions(), 0);
  pass(std::chrono::seconds(1000));
  EXPECT_EQ(call->num_cuts(), 1);
}

TEST_F(GenerateCallTest, LargeMessagesHaveLongerToBeRead) {
  const auto call = NewCall();
  call->StopReading();
  call->Submit(AnyRequest());
  const uint64_t uid = scheduler_.WaitForRequest(0).uid;
  Delta delta;
  delta.text = std::string(4 * kLeastBytesPerSecond, 'x');
  ASSERT_TRUE(scheduler_.Push(uid, std::move(delta)));
  scheduler_.End(uid, Terminal());
  call->WaitForWrite();
  SteadyTime now;
  call->CutIfUnread(now);
  call->CutIfUnread(now + kLinger + std::chrono::seconds(3));
  EXPECT_EQ(call->num_cuts(), 0);
  call->CutIfUnread(now + kLinger + std::chrono::seconds(4));
  EXPECT_EQ(call->num_cuts(), 1);
  call->Join();
}

TEST_F(GenerateCallTest, EventsCancelsAndWritesFromEveryThread) {
  std::mt19937 random(TestSeed());
  for (int round = 0; round < 200; ++round) {
    const auto call = NewCall(static_cast<int>(random() % 12));
    std::thread engine([this, round] {
      const uint64_t uid = scheduler_.WaitForRequest(round).uid;
      for (int i = 0; i < 20 && scheduler_.Push(uid, OneToken()); ++i) {
      }
      scheduler_.End(uid, Terminal());
    });
    std::thread canceller([this, call, round, pause = random() % 60] {
      scheduler_.WaitForRequest(round);
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
