// The server's own threads: the pool of tasks and the ticker.
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/task_pool.h"
#include "server/ticker.h"

namespace overfill {
namespace {

// Opens once; until then, who comes waits.
class Gate {
 public:
  void Open() {
    MutexLock lock(&mu_);
    is_open_ = true;
    changed_.NotifyAll();
  }
  void Pass() {
    MutexLock lock(&mu_);
    ++num_waiting_;
    changed_.NotifyAll();
    while (!is_open_) changed_.Wait(&mu_);
  }
  void WaitForArrivals(int count) {
    MutexLock lock(&mu_);
    while (num_waiting_ < count) changed_.Wait(&mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool is_open_ ABSL_GUARDED_BY(mu_) = false;
  int num_waiting_ ABSL_GUARDED_BY(mu_) = 0;
};

TEST(TaskPoolTest, OneThreadRunsTasksInOrder) {
  std::vector<int> order;
  {
    TaskPool pool(1, 1000, 1000);
    for (int i = 0; i < 100; ++i) {
      ASSERT_TRUE(pool.Submit(1, [&order, i] { order.push_back(i); }));
    }
  }
  // The destructor ran what waited.
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(TaskPoolTest, TasksBeyondTheBoundAreRefused) {
  Gate gate;
  std::atomic<int> num_run = 0;
  const auto task = [&] { ++num_run; };
  {
    TaskPool pool(1, 2, 1 << 20);
    ASSERT_TRUE(pool.Submit(1, [&] { gate.Pass(); }));
    gate.WaitForArrivals(1);
    EXPECT_TRUE(pool.Submit(1, task));
    EXPECT_TRUE(pool.Submit(1, task));
    EXPECT_FALSE(pool.Submit(1, task));
    gate.Open();
  }
  EXPECT_EQ(num_run, 2);
}

TEST(TaskPoolTest, BytesBeyondTheBoundAreRefused) {
  Gate gate;
  {
    TaskPool pool(1, 100, 1000);
    ASSERT_TRUE(pool.Submit(1, [&] { gate.Pass(); }));
    gate.WaitForArrivals(1);
    // An empty queue takes any one.
    EXPECT_TRUE(pool.Submit(int64_t{1} << 62, [] {}));
    EXPECT_FALSE(pool.Submit(1, [] {}));
    gate.Open();
    // The bound is on what waits.
    while (!pool.Submit(600, [] {})) std::this_thread::yield();
  }
}

TEST(TaskPoolTest, ThreadsRunTasksAtOnce) {
  Gate gate;
  TaskPool pool(3, 100, 100);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(pool.Submit(1, [&] { gate.Pass(); }));
  }
  gate.WaitForArrivals(3);
  gate.Open();
}

TEST(TickerTest, TicksUntilDestroyed) {
  std::atomic<int> num_ticks = 0;
  auto ticker = std::make_unique<Ticker>(std::chrono::milliseconds(1),
                                         [&] { ++num_ticks; });
  while (num_ticks < 5) std::this_thread::yield();
  ticker.reset();
  const int ticks = num_ticks;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(num_ticks, ticks);
}

TEST(TickerTest, LongPeriodEndsAtOnce) {
  const auto begin = std::chrono::steady_clock::now();
  {
    Ticker ticker(std::chrono::hours(1), [] { ADD_FAILURE(); });
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::minutes(1));
}

}  // namespace
}  // namespace overfill
