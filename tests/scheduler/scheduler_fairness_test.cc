// Who waits for whom, by steps of the whole scheduler.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

using std::chrono::milliseconds;

// The steps of the full model at which one request's tokens came. With the last
// of them its gate is closed.
class StepsOf {
 public:
  StepsOf(Rig& rig, int32_t max_tokens) : steps_(max_tokens) {
    rig.full.before_run = [this](const StepBatch&) {
      ++num_steps_;
      return absl::OkStatus();
    };
    rig.full.script =
        [this, &rig](const SequenceStep&,
                     const SamplingState& draw) -> std::optional<SampledToken> {
      if (draw.params().seed != seed_) return std::nullopt;
      steps_[draw.token_index()] = num_steps_.load();
      if (draw.token_index() + 1 == steps_.size()) rig.full.CloseGate();
      return std::nullopt;
    };
  }
  void Follow(uint64_t seed) { seed_ = seed; }
  int32_t now() const { return num_steps_; }
  int32_t at(int32_t token) const { return steps_[token]; }

 private:
  std::atomic<uint64_t> seed_ = 0;
  std::atomic<int32_t> num_steps_ = 0;
  std::vector<std::atomic<int32_t>> steps_;
};

// One tenant has many long prompts waiting and some running; another's short
// one waits for the step under way, and then for its own.
TEST(Fairness, AFloodOfLongPromptsHoldsUpAShortOneForOneChunk) {
  RigOptions options;
  options.prefill_blocks = 2000;
  options.scheduler.priority_ageing = {};
  Rig rig(options);
  constexpr int32_t kTokens = 5;
  StepsOf steps(rig, kTokens);
  rig.full.CloseGate();
  for (int i = 0; i < 60; ++i) {
    Request request = rig.MakeRequest(DecodePath::kFull, 200, 3);
    request.tenant = "flood";
    rig.Submit(request);
  }
  for (int i = 0; i < 10; ++i) {
    rig.full.AwaitAtGate();  // a step is planned, and not counted
    const int32_t before = steps.now();
    Request request = rig.MakeRequest(DecodePath::kFull, 8, kTokens);
    request.tenant = "small";
    steps.Follow(request.sampling.seed);
    Client& client = rig.Submit(request);
    rig.full.OpenGate();
    rig.ExpectRight(client);
    EXPECT_EQ(steps.at(0), before + 2);
    for (int32_t token = 1; token < kTokens; ++token) {
      EXPECT_EQ(steps.at(token), steps.at(token - 1) + 1);
    }
  }
  // The flood is not over: they did not wait for it.
  int num_left = 0;
  for (int i = 0; i < 60; ++i) num_left += !rig.clients[i]->HasEnded();
  EXPECT_GT(num_left, 30);
  rig.full.OpenGate();
  rig.Finish();
}

// Each step of the full model brings new requests, so that there are always
// more than it can serve, until `until` has had its last token or so many came.
class Stream {
 public:
  Stream(Rig& rig, int32_t limit, std::function<Request()> make)
      : rig_(rig), limit_(limit), make_(std::move(make)) {
    rig_.full.before_run = [this](const StepBatch&) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      if (!begun_ || is_over_) return absl::OkStatus();
      for (int i = 0; i < 3 && num_submitted_ < limit_; ++i) {
        ++num_submitted_;
        rig_.Submit(make_());
      }
      return absl::OkStatus();
    };
  }
  void Begin() { begun_ = true; }
  // Whether `client` ended, right, before the stream did. Only the stream
  // submits from Begin on.
  bool Serves(Client& client) {
    client.Wait();
    const bool served = num_submitted_ < limit_;
    is_over_ = true;
    return served;
  }

 private:
  Rig& rig_;
  const int32_t limit_;
  const std::function<Request()> make_;
  std::atomic<bool> begun_ = false;
  std::atomic<bool> is_over_ = false;
  std::atomic<int32_t> num_submitted_ = 0;
};

// A constant stream of more urgent requests: with ageing the other one's turn
// comes, without it does not.
TEST(Fairness, ALowPriorityIsServedUnderAStreamOfHighOnes) {
  for (const bool ages : {true, false}) {
    RigOptions options;
    options.scheduler.max_decode_batch = 1;
    options.scheduler.priority_ageing = milliseconds(ages ? 2 : 0);
    Rig rig(options);
    Stream stream(rig, ages ? 20000 : 500, [&rig] {
      Request request = rig.MakeRequest(DecodePath::kFull, 2, 1);
      request.priority = 5;
      return request;
    });
    rig.full.CloseGate();
    rig.Submit(DecodePath::kFull, 2, 1);
    rig.full.AwaitAtGate();
    Client& low = rig.Submit(DecodePath::kFull, 2, 3);
    stream.Begin();
    rig.full.OpenGate();
    EXPECT_EQ(stream.Serves(low), ages);
    ASSERT_TRUE(rig.scheduler->WaitIdle(std::chrono::seconds(60)));
    rig.ExpectRight(low);
    rig.Finish();
  }
}

// A preempted answer comes back before requests of its priority that arrived
// after it, however long they have waited.
TEST(Fairness, APreemptedAnswerComesBackUnderAStreamOfNewRequests) {
  RigOptions options;
  options.prefill_blocks = 24;
  options.swap_blocks = {200, 0};
  options.scheduler.priority_ageing = milliseconds(1);
  options.scheduler.prefix_cache = false;
  Rig rig(options);
  Stream stream(rig, 3000,
                [&rig] { return rig.MakeRequest(DecodePath::kFull, 20, 8); });
  rig.full.CloseGate();
  Client& elder = rig.Submit(DecodePath::kFull, 8, 80);
  rig.full.AwaitAtGate();
  Client& victim = rig.Submit(DecodePath::kFull, 8, 80);
  rig.full.OpenGate();
  while (rig.scheduler->Stats().requests.swapped == 0) {
    std::this_thread::yield();
  }
  stream.Begin();
  EXPECT_TRUE(stream.Serves(victim));
  ASSERT_TRUE(rig.scheduler->WaitIdle(std::chrono::seconds(60)));
  rig.ExpectRight(elder);
  rig.ExpectRight(victim);
  EXPECT_GT(rig.observer.counts().preemptions, 0);
  rig.Finish();
}

// Between two steps of the answers there is always one of a prompt; now and
// then none comes, so that the gap without can be measured.
TEST(Pause, PromptsThatNeverEndMakeRoomForAGap) {
  constexpr int kSteps = 1000;
  RigOptions options;
  options.prefill_blocks = 8000;
  options.scheduler.max_sequence_tokens = 2048;
  Rig rig(options);
  std::atomic<int64_t> num_prompt_steps = 0;
  std::atomic<bool> is_over = false;
  std::vector<int> lonely;  // decode steps that saw none
  int num_steps = 0;
  rig.full.before_run = [&](const StepBatch&) {
    if (!is_over) std::this_thread::sleep_for(milliseconds(2));
    ++num_prompt_steps;
    return absl::OkStatus();
  };
  int num_ended = 0;
  rig.pruned.before_run = [&, seen = int64_t{0}](const StepBatch&) mutable {
    const auto end = std::chrono::steady_clock::now() + milliseconds(8);
    while (num_prompt_steps == seen && std::chrono::steady_clock::now() < end) {
      std::this_thread::yield();
    }
    if (num_prompt_steps == seen) lonely.push_back(num_steps);
    seen = num_prompt_steps;
    if (++num_steps == kSteps - 1) {
      for (const auto& client : rig.clients) num_ended += client->HasEnded();
    }
    return absl::OkStatus();
  };
  Client& answer = rig.Submit(DecodePath::kTwoStage, 2, kSteps);
  for (int i = 0; i < 200; ++i) rig.Submit(DecodePath::kFull, 400, 1);
  answer.Wait();
  is_over = true;
  rig.ExpectRight(answer);
  EXPECT_LT(num_ended, 200) << "the prompts were too few";
  // The first ones at the beginning, where nothing is known yet.
  const auto late = std::count_if(lonely.begin(), lonely.end(),
                                  [](int step) { return step > 200; });
  EXPECT_GE(late, 1);
  rig.Finish();
}

TEST(Pause, EndsThoughTheAnswersStandStill) {
  Rig rig;
  // In its first step, so that no gap is known.
  rig.pruned.CloseGate();
  Client& answer = rig.Submit(DecodePath::kTwoStage, 2, 50);
  rig.pruned.AwaitAtGate();
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 3; ++i) {
    rig.ExpectRight(rig.Submit(DecodePath::kFull, 20, 1));
  }
  EXPECT_GT(std::chrono::steady_clock::now() - begin, milliseconds(500))
      << "there was no pause to end";
  EXPECT_FALSE(answer.HasEnded());
  rig.pruned.OpenGate();
  rig.ExpectRight(answer);
  rig.Finish();
}

}  // namespace
}  // namespace overfill
