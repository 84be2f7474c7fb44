// A thread that writes to the streams, so that the engine's threads do not.
#ifndef OVERFILL_SERVER_STREAM_PUMP_H_
#define OVERFILL_SERVER_STREAM_PUMP_H_

#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace overfill {

// Something with events to write. Pump must not block.
class Pumpable {
 public:
  virtual ~Pumpable() = default;
  virtual void Pump() = 0;
};

// Thread-safe. Queue costs its caller a lock that is held for a push; the
// system calls of a write stay on the pump's thread.
class StreamPump {
 public:
  StreamPump();
  // Pumps what is queued, then joins. Nothing may be queued any more.
  ~StreamPump();
  StreamPump(const StreamPump&) = delete;

  void Queue(std::shared_ptr<Pumpable> stream);

 private:
  void Run();

  Mutex mu_;
  CondVar changed_;
  std::vector<std::shared_ptr<Pumpable>> ready_ ABSL_GUARDED_BY(mu_);
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_STREAM_PUMP_H_
