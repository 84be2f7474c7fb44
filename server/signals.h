// SIGTERM and SIGINT: the first asks for a drain, the next ends at once.
#ifndef OVERFILL_SERVER_SIGNALS_H_
#define OVERFILL_SERVER_SIGNALS_H_

#include <csignal>
#include <thread>

#include "base/mutex.h"

namespace overfill {

// One per process, made by main before it starts any thread: the signals are
// blocked in all of them and taken by a thread of its own. Until Arm, the first
// signal ends the process, with the exit code 128 + signal.
class SignalWaiter {
 public:
  SignalWaiter();
  ~SignalWaiter();
  SignalWaiter(const SignalWaiter&) = delete;

  // From now on the first signal only wakes Wait.
  void Arm();
  // Returns at the first signal after Arm.
  int Wait();

 private:
  void Run();

  sigset_t signals_;
  Mutex mu_;
  CondVar changed_;
  bool armed_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  int received_ ABSL_GUARDED_BY(mu_) = 0;
  std::thread thread_;
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_SIGNALS_H_
