#include "server/signals.h"

#include <pthread.h>
#include <unistd.h>

#include <ctime>

#include "base/check.h"

namespace overfill {

SignalWaiter::SignalWaiter() {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGTERM);
  sigaddset(&signals_, SIGINT);
  OVERFILL_CHECK_EQ(pthread_sigmask(SIG_BLOCK, &signals_, nullptr), 0);
  thread_ = std::thread([this] { Run(); });
}

SignalWaiter::~SignalWaiter() {
  {
    MutexLock lock(&mu_);
    stopped_ = true;
  }
  thread_.join();
}

void SignalWaiter::Arm() {
  MutexLock lock(&mu_);
  armed_ = true;
}

int SignalWaiter::Wait() {
  MutexLock lock(&mu_);
  while (received_ == 0) changed_.Wait(&mu_);
  return received_;
}

void SignalWaiter::Run() {
  const timespec poll = {.tv_sec = 0, .tv_nsec = 100'000'000};
  while (true) {
    const int signal = sigtimedwait(&signals_, nullptr, &poll);
    MutexLock lock(&mu_);
    if (stopped_) return;
    if (signal <= 0) continue;
    if (!armed_ || received_ != 0) _exit(128 + signal);
    received_ = signal;
    changed_.NotifyAll();
  }
}

}  // namespace overfill
