#include "benchmarks/serving/event_loop.h"

#include <algorithm>
#include <chrono>

namespace overfill {
namespace {

constexpr double kMaxWaitSeconds = 60;

}  // namespace

double SteadySeconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void EventLoop::At(double seconds, Action action) {
  MutexLock lock(&mu_);
  const auto added = actions_.emplace(std::make_pair(seconds, next_number_++),
                                      std::move(action));
  if (added.first == actions_.begin()) changed_.NotifyOne();
}

void EventLoop::Stop() {
  MutexLock lock(&mu_);
  stopped_ = true;
  changed_.NotifyOne();
}

EventLoop::Action EventLoop::Next() {
  MutexLock lock(&mu_);
  while (!stopped_) {
    double wait_seconds = kMaxWaitSeconds;
    if (!actions_.empty()) {
      const auto first = actions_.begin();
      wait_seconds = first->first.first - SteadySeconds();
      if (wait_seconds <= 0) {
        Action action = std::move(first->second);
        actions_.erase(first);
        return action;
      }
    }
    changed_.WaitFor(&mu_, std::chrono::duration_cast<std::chrono::nanoseconds>(
                               std::chrono::duration<double>(
                                   std::min(wait_seconds, kMaxWaitSeconds))));
  }
  actions_.clear();
  return nullptr;
}

void EventLoop::Run() {
  while (const Action action = Next()) action();
}

}  // namespace overfill
