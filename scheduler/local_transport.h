// Copies between two stores of one process, by a KvMover on a thread of its
// own.
#ifndef OVERFILL_SCHEDULER_LOCAL_TRANSPORT_H_
#define OVERFILL_SCHEDULER_LOCAL_TRANSPORT_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>

#include "base/mutex.h"
#include "engine/step.h"
#include "scheduler/kv_transport.h"

namespace overfill {

// Thread-safe. Transfers go one after the other, in the order of Send.
class LocalTransport : public KvTransport {
 public:
  // `mover` outlives the transport. `on_commit` is called on its thread with
  // no lock held.
  LocalTransport(KvMover* mover,
                 std::function<void(const KvCommit&)> on_commit);
  // Waits for the copy under way; the commits of what has not begun say
  // UNAVAILABLE.
  ~LocalTransport() override;

  void Send(KvTransfer transfer) override;
  bool Abandon(uint64_t uid, uint32_t epoch) override;

 private:
  void Loop();
  KvCommit Copy(const KvTransfer& transfer);

  KvMover* const mover_;
  const std::function<void(const KvCommit&)> on_commit_;
  Mutex mu_;
  CondVar changed_;
  std::deque<KvTransfer> waiting_ ABSL_GUARDED_BY(mu_);
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_LOCAL_TRANSPORT_H_
