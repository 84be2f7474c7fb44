// A thread that does something at regular times.
#ifndef OVERFILL_SERVER_TICKER_H_
#define OVERFILL_SERVER_TICKER_H_

#include <chrono>
#include <functional>
#include <thread>

#include "base/mutex.h"

namespace overfill {

class Ticker {
 public:
  // Calls `tick` on a thread of its own, first after `period`, then `period`
  // after the last call has returned.
  Ticker(std::chrono::nanoseconds period, std::function<void()> tick);
  // Waits for a call that is under way; none comes after it.
  ~Ticker();
  Ticker(const Ticker&) = delete;

 private:
  void Run();

  const std::chrono::nanoseconds period_;
  const std::function<void()> tick_;
  Mutex mu_;
  CondVar stop_;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_TICKER_H_
