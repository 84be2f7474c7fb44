#include "benchmarks/serving/event_loop.h"

#include <random>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

TEST(EventLoopTest, RunsInTheOrderOfTimesAndNotBeforeThem) {
  EventLoop loop;
  const double begin = SteadySeconds();
  std::mt19937_64 random(TestSeed());
  std::vector<double> due;
  for (int i = 0; i < 50; ++i) {
    const double at = begin + 1e-3 * static_cast<double>(random() % 40);
    loop.At(at, [&due, at] {
      EXPECT_GE(SteadySeconds(), at);
      due.push_back(at);
    });
  }
  loop.At(begin + 0.05, [&loop] { loop.Stop(); });
  loop.Run();
  EXPECT_EQ(due.size(), 50u);
  EXPECT_THAT(due, testing::WhenSorted(testing::ContainerEq(due)));
}

TEST(EventLoopTest, KeepsTheOrderOfPostingAtOneTime) {
  EventLoop loop;
  std::vector<int> seen;
  for (int i = 0; i < 20; ++i) {
    loop.At(1, [&seen, i] { seen.push_back(i); });
  }
  loop.At(2, [&loop] { loop.Stop(); });
  loop.Run();
  EXPECT_EQ(seen.size(), 20u);
  EXPECT_THAT(seen, testing::WhenSorted(testing::ContainerEq(seen)));
}

TEST(EventLoopTest, WakesForWhatAnotherThreadPosts) {
  EventLoop loop;
  loop.At(SteadySeconds() + 3600, [] { FAIL() << "an hour has not passed"; });
  int count = 0;
  std::thread other([&] {
    for (int i = 0; i < 100; ++i) {
      loop.Soon([&] {
        if (++count == 100) loop.Stop();
      });
    }
  });
  loop.Run();
  other.join();
  EXPECT_EQ(count, 100);
}

TEST(EventLoopTest, AStopBeforeTheRunCounts) {
  EventLoop loop;
  loop.Soon([] { FAIL(); });
  loop.Stop();
  loop.Run();
}

}  // namespace
}  // namespace overfill
