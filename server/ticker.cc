#include "server/ticker.h"

#include <utility>

namespace overfill {

Ticker::Ticker(std::chrono::nanoseconds period, std::function<void()> tick)
    : period_(period), tick_(std::move(tick)), thread_([this] { Run(); }) {}

Ticker::~Ticker() {
  {
    MutexLock lock(&mu_);
    stopped_ = true;
  }
  stop_.NotifyOne();
  thread_.join();
}

void Ticker::Run() {
  mu_.Lock();
  while (!stopped_) {
    const auto next = std::chrono::steady_clock::now() + period_;
    auto left = period_;
    while (!stopped_ && left > std::chrono::nanoseconds(0)) {
      stop_.WaitFor(&mu_, left);
      left = next - std::chrono::steady_clock::now();
    }
    if (stopped_) break;
    mu_.Unlock();
    tick_();
    mu_.Lock();
  }
  mu_.Unlock();
}

}  // namespace overfill
