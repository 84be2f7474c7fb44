// Copies between the stores of one process, by KvMovers on threads of their
// own.
#ifndef OVERFILL_SCHEDULER_LOCAL_TRANSPORT_H_
#define OVERFILL_SCHEDULER_LOCAL_TRANSPORT_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "engine/step.h"
#include "scheduler/kv_transport.h"

namespace overfill {

// A link is a pair of stores with its mover and its thread. The transfers of a
// link go one after the other, in the order of Send; the links do not wait for
// each other.
//
// A copy under way cannot be stopped from outside, so its fence ends with it:
// on_fenced follows when Move returns. One that never returns stays fencing for
// ever, and its blocks stay quarantined, where the counts show them; what waits
// behind it on its link can be abandoned and fenced, and the other links work
// on.
class LocalTransport : public KvTransport {
 public:
  using Movers = std::map<std::pair<int32_t, int32_t>, KvMover*>;

  // The mover of each link, by (from_store, to_store); none serves two links.
  // They outlive the transport.
  explicit LocalTransport(const Movers& movers);
  // Waits for the copies under way; the commits of what has not begun say
  // UNAVAILABLE. All events have come when it returns. Nothing is sent from
  // here on.
  ~LocalTransport() override;

  void Start(KvTransportEvents events) override;
  // CHECKs that there is such a link.
  void Send(KvTransfer transfer) override;
  bool Abandon(uint64_t uid, uint32_t epoch) override;
  void Fence(uint64_t uid, uint32_t epoch) override;

 private:
  using Id = std::pair<uint64_t, uint32_t>;  // uid, epoch
  struct Link {
    KvMover* mover = nullptr;
    std::deque<KvTransfer> waiting;
    std::optional<Id> moving;
    int num_fences = 0;  // that wait for the end of what is moving
    std::thread thread;
  };

  void LinkLoop(Link* link);
  // The end of what the link has moved.
  void Finish(Link* link, const KvCommit& commit);
  void FenceLoop();
  static KvCommit Copy(KvMover* mover, const KvTransfer& transfer);
  bool EraseWaiting(Id id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  KvTransportEvents events_;  // set by Start
  Mutex mu_;
  CondVar changed_;
  std::map<std::pair<int32_t, int32_t>, Link> links_ ABSL_GUARDED_BY(mu_);
  std::deque<Id> fenced_ ABSL_GUARDED_BY(mu_);  // to be told
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool is_last_fence_known_ ABSL_GUARDED_BY(mu_) = false;
  std::thread fence_thread_;  // tells of fences that need no wait
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_LOCAL_TRANSPORT_H_
