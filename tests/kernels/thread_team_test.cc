#include "kernels/cpu/thread_team.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

// One job: how often each item came, and the longest range.
struct Seen {
  explicit Seen(int64_t num_items)
      : times(std::make_unique<std::atomic<int>[]>(num_items)),
        num_items(num_items) {}

  void Add(int64_t begin, int64_t end, int thread, int num_threads) {
    EXPECT_TRUE(0 <= begin && begin < end && end <= num_items);
    EXPECT_TRUE(0 <= thread && thread < num_threads);
    for (int64_t i = begin; i < end; ++i) times[i].fetch_add(1);
    int64_t old = longest.load();
    while (old < end - begin &&
           !longest.compare_exchange_weak(old, end - begin)) {
    }
  }
  void ExpectEachOnce() const {
    for (int64_t i = 0; i < num_items; ++i) ASSERT_EQ(times[i].load(), 1) << i;
  }

  std::unique_ptr<std::atomic<int>[]> times;
  const int64_t num_items;
  std::atomic<int64_t> longest{0};
};

TEST(ThreadTeam, EachItemComesOnce) {
  std::mt19937_64 random(TestSeed());
  for (int num_threads = 1; num_threads <= 4; ++num_threads) {
    ThreadTeam team(num_threads);
    team.Acquire(StreamPriority::kHigh);
    // One after the other, so that a late worker meets the next job.
    for (int job = 0; job < 500; ++job) {
      const auto num_items = static_cast<int64_t>(random() % 300);
      const auto grain = static_cast<int64_t>(random() % 20 + 1);
      Seen seen(num_items);
      const auto add = [&](int64_t begin, int64_t end, int thread) {
        seen.Add(begin, end, thread, num_threads);
      };
      if (job % 2 == 0) {
        team.ParallelFor(num_items, grain, add);
        EXPECT_LE(seen.longest.load(), grain);
      } else {
        team.ParallelRanges(num_items, add);
        EXPECT_LE(seen.longest.load(), std::max<int64_t>(1, num_items / 4));
      }
      seen.ExpectEachOnce();
    }
    team.Release();
  }
}

TEST(ThreadTeam, RangesAreLongAtFirst) {
  ThreadTeam team(2);
  team.Acquire(StreamPriority::kHigh);
  Seen seen(800);
  team.ParallelRanges(800, [&](int64_t begin, int64_t end, int thread) {
    if (begin == 0) {
      EXPECT_EQ(end, 100);
    }
    seen.Add(begin, end, thread, 2);
  });
  seen.ExpectEachOnce();
  team.Release();
}

}  // namespace
}  // namespace overfill
