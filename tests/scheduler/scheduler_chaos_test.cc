// Everything at once: small stores, swap space, shared prefixes, several
// answers, cancels, deadlines, dead readers, and models, copies and messages
// that fail. Whatever happens, each request ends once, no answer is another
// than the reference's, and every block comes home.
#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr DecodePath kPaths[] = {DecodePath::kTwoStage, DecodePath::kFull,
                                 DecodePath::kPruned};
constexpr int kNumRequests = 40;

// A generator for hooks that several threads call.
class SharedRandom {
 public:
  explicit SharedRandom(uint64_t seed) : state_(seed) {}
  bool OneIn(uint64_t n) {
    return NextRandom(state_.fetch_add(0x9e3779b97f4a7c15)) % (2 * n + 1) <= 1;
  }

 private:
  std::atomic<uint64_t> state_;
};

int32_t Pick(std::mt19937_64& random, int32_t least, int32_t most) {
  return least + static_cast<int32_t>(random() % (most - least + 1));
}

RigOptions RandomOptions(std::mt19937_64& random) {
  RigOptions options;
  options.is_shared = random() % 2 == 0;
  SchedulerOptions& scheduler = options.scheduler;
  scheduler.block_tokens = Pick(random, 1, 5);
  scheduler.prefill_chunk_tokens = Pick(random, 1, 20);
  scheduler.max_decode_batch = Pick(random, 1, 8);
  scheduler.priority_ageing = microseconds(random() % 3 * 500);
  scheduler.transfer_lease = milliseconds(Pick(random, 2, 12));
  scheduler.prefix_cache = random() % 4 != 0;
  options.max_rows = scheduler.max_decode_batch + Pick(random, 0, 20);
  options.prefill_blocks = Pick(random, 4, 30);
  options.decode_blocks = Pick(random, 4, 30);
  for (int store = 0; store < (options.is_shared ? 1 : 2); ++store) {
    if (random() % 4 == 0) continue;
    options.swap_blocks[store] = random() % 3 ? 200 : Pick(random, 1, 20);
  }
  return options;
}

FaultRates RandomRates(std::mt19937_64& random) {
  const auto rate = [&] {
    return static_cast<double>(random() % 3) * 0.5 * 0.06;
  };
  return {.delay = rate(),
          .drop = rate() / 2,
          .duplicate = rate(),
          .reorder = rate(),
          .truncate = rate(),
          .flip = rate(),
          .stall = rate() / 2,
          .fail = rate(),
          .late_fence = 0.5};
}

struct Totals {
  std::array<int64_t, 17> ends{};  // by status code
  int64_t refused = 0;
  int64_t preemptions = 0;
  int64_t retries = 0;
  int64_t hit_tokens = 0;
  int64_t several = 0;  // OK, of more than one sample
  FaultCounts faults;
  int64_t discarded_commits = 0;
};

// One scheduler's life.
class Chaos {
 public:
  Chaos(uint64_t seed, Totals& totals)
      : random_(seed),
        totals_(totals),
        hook_random_(random_()),
        rig_(RandomOptions(random_)) {
    rig_.random.seed(random_());
    const auto trouble = [this](const StepBatch&) {
      if (hook_random_.OneIn(40)) std::this_thread::sleep_for(microseconds(90));
      return hook_random_.OneIn(400) ? absl::DataLossError("planted")
                                     : absl::OkStatus();
    };
    const auto not_finite =
        [this](const SequenceStep&,
               const SamplingState&) -> std::optional<SampledToken> {
      if (!hook_random_.OneIn(1000)) return std::nullopt;
      SampledToken token;
      token.status = absl::InternalError("not finite");
      return token;
    };
    for (FakeModel* model : {&rig_.full, &rig_.pruned}) {
      model->before_run = trouble;
      model->script = not_finite;
    }
    rig_.PlantFaults({.seed = random_(),
                      .rates = RandomRates(random_),
                      .max_delay = milliseconds(6)});
    SpoilSwapSpace();
    for (int i = 0; i < 3; ++i) {
      roots_.push_back(rig_.MakeRequest(DecodePath::kFull, 20, 1).prompt_ids);
    }
  }

  void Run() {
    rig_.Begin();
    std::atomic<bool> is_done = false;
    std::thread watcher([&] {
      while (!is_done) {
        const absl::Status status = rig_.scheduler->CheckIntegrity();
        EXPECT_TRUE(status.ok()) << status;
        std::this_thread::yield();
      }
    });
    std::thread canceller([&, seed = random_()] {
      std::mt19937_64 random(seed);
      while (!is_done) {
        std::this_thread::sleep_for(microseconds(random() % 2000));
        rig_.scheduler->Cancel(1 + random() % (most_uid_ + 4),
                               absl::CancelledError("x"));
      }
    });
    for (int i = 0; i < kNumRequests; ++i) Submit();
    EXPECT_TRUE(rig_.scheduler->WaitIdle(std::chrono::seconds(60)));
    is_done = true;
    watcher.join();
    canceller.join();
    rig_.Finish();
    for (auto& client : rig_.clients) Check(*client);
    Count();
  }

 private:
  // Host memory that does not keep what it was given.
  void SpoilSwapSpace() {
    for (int store = 0; store < 2; ++store) {
      FakeStore* const swap = &rig_.swap_stores[store];
      rig_.swap_in[store].before_move =
          [this, swap](std::span<const BlockCopy> blocks) {
            if (hook_random_.OneIn(50)) swap->At(blocks.back().source, 0) ^= 2;
          };
    }
  }

  Request MakeRequest() {
    Request request = rig_.MakeRequest(
        kPaths[random_() % 3], Pick(random_, 1, 16), Pick(random_, 1, 24));
    if (random_() % 2) {
      const auto& root = roots_[random_() % roots_.size()];
      request.prompt_ids.insert(request.prompt_ids.begin(), root.begin(),
                                root.begin() + Pick(random_, 1, 20));
    }
    request.n = random_() % 3 ? 1 : Pick(random_, 2, 4);
    request.priority = Pick(random_, -1, 1);
    request.tenant = absl::StrCat("tenant ", random_() % 2);
    if (random_() % 3 == 0) request.sampling.presence_penalty = 1;
    for (int i = 0; i < 10; ++i) {
      request.stop_rules.eos_ids.push_back(
          static_cast<int32_t>(random_() % TestTokenizer().vocab_size()));
    }
    if (random_() % 10 == 0) {
      request.deadline =
          std::chrono::steady_clock::now() + microseconds(random_() % 4000);
    }
    return request;
  }

  void Submit() {
    const bool reads = random_() % 12 != 0;
    const absl::Status status = rig_.TrySubmit(
        MakeRequest(), std::make_unique<Client>(reads ? 1 << 20 : 16, reads));
    if (status.ok()) {
      most_uid_ = rig_.clients.back()->uid;
    } else {
      ++totals_.refused;
      // The last: where the queue is too long for its deadline.
      EXPECT_TRUE(status.code() == absl::StatusCode::kInvalidArgument ||
                  status.code() == absl::StatusCode::kDeadlineExceeded ||
                  status.code() == absl::StatusCode::kResourceExhausted)
          << status;
    }
    if (random_() % 6 == 0) {
      std::this_thread::sleep_for(microseconds(random_() % 1000));
    }
  }

  void Check(Client& client) {
    const absl::StatusCode code = client.Wait().status.code();
    ++totals_.ends[static_cast<int>(code)];
    if (code == absl::StatusCode::kOk) {
      rig_.ExpectRight(client);
      totals_.several += client.request.n > 1;
      return;
    }
    rig_.ExpectStatus(client, code);
    switch (code) {
      case absl::StatusCode::kDeadlineExceeded:
        EXPECT_NE(client.request.deadline, SteadyTime::max());
        break;
      case absl::StatusCode::kCancelled:
      case absl::StatusCode::kResourceExhausted:
      case absl::StatusCode::kUnavailable:
      case absl::StatusCode::kInternal:
        break;
      default:
        ADD_FAILURE() << client.Wait().status;
    }
    // The samples that are said to be complete are.
    for (const Completion& completion : client.completions) {
      EXPECT_EQ(client.samples[completion.index],
                rig_.Expected(client.request, completion.index));
    }
  }

  void Count() {
    const CountingObserver::Counts counts = rig_.observer.counts();
    totals_.preemptions += counts.preemptions;
    totals_.retries += counts.retries;
    totals_.hit_tokens += counts.hit_tokens;
    totals_.discarded_commits +=
        rig_.scheduler->Stats().transfers.discarded_commits;
    const FaultCounts faults = rig_.faulty->counts();
    for (int64_t FaultCounts::*count :
         {&FaultCounts::delayed, &FaultCounts::dropped,
          &FaultCounts::duplicated, &FaultCounts::reordered,
          &FaultCounts::truncated, &FaultCounts::flipped, &FaultCounts::stalled,
          &FaultCounts::failed, &FaultCounts::late_fences}) {
      totals_.faults.*count += faults.*count;
    }
  }

  std::mt19937_64 random_;
  Totals& totals_;
  SharedRandom hook_random_;
  std::atomic<uint64_t> most_uid_ = 0;
  std::vector<std::vector<int32_t>> roots_;  // that prompts begin with
  Rig rig_;
};

TEST(Chaos, EachRequestEndsOnceAndNoAnswerIsWrong) {
  std::mt19937_64 random(TestSeed() + 50);
  Totals totals;
  for (int life = 0; life < 400 / kTestSlowness; ++life) {
    Chaos(random(), totals).Run();
    ASSERT_FALSE(HasFailure()) << "life " << life;
  }
  // All of it has happened.
  for (const absl::StatusCode code :
       {absl::StatusCode::kOk, absl::StatusCode::kCancelled,
        absl::StatusCode::kDeadlineExceeded,
        absl::StatusCode::kResourceExhausted, absl::StatusCode::kUnavailable,
        absl::StatusCode::kInternal}) {
    EXPECT_GT(totals.ends[static_cast<int>(code)], 0) << code;
  }
  EXPECT_GT(totals.refused, 0);
  EXPECT_GT(totals.preemptions, 0);
  EXPECT_GT(totals.retries, 0);
  EXPECT_GT(totals.hit_tokens, 0);
  EXPECT_GT(totals.several, 0);
  EXPECT_GT(totals.discarded_commits, 0);
  const FaultCounts& faults = totals.faults;
  EXPECT_GT(std::min({faults.delayed, faults.dropped, faults.duplicated,
                      faults.reordered, faults.truncated, faults.flipped,
                      faults.stalled, faults.failed, faults.late_fences}),
            0);
}

}  // namespace
}  // namespace overfill
