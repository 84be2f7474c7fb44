// The bounded queue between the engine and one client's stream.
#ifndef OVERFILL_SCHEDULER_EVENT_QUEUE_H_
#define OVERFILL_SCHEDULER_EVENT_QUEUE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <variant>

#include "base/mutex.h"
#include "scheduler/request.h"

namespace overfill {

using Event = std::variant<Delta, Completion, Terminal>;

// Thread-safe. The producer never waits: deltas that the consumer has not
// taken are joined into one per sample, and when what is joined passes the
// bound the push fails and the producer ends the request. A sample's
// completion comes after its last delta. There is exactly one Terminal and it
// is the last event. Completions and the Terminal always fit: they are one per
// sample and one.
class EventQueue {
 public:
  // `on_ready` is called, from the producer's thread and with no lock held,
  // whenever an event comes into an empty queue. It must not block, and it may
  // call Pop.
  EventQueue(int64_t max_pending_bytes, std::function<void()> on_ready);

  // False when the bound is passed: the delta is dropped, and the queue takes
  // nothing but the terminal event. What it holds already stays.
  bool Push(Delta delta);
  // No effect where a delta was dropped: the answer is not complete.
  void Complete(Completion completion);
  // CHECKs that it is the first. Where a delta was dropped, an answer that is
  // complete for the engine is not so for the client: OK becomes
  // RESOURCE_EXHAUSTED. Returns the status that the client is told.
  absl::Status Finish(Terminal terminal);

  // The next event, or nullopt when there is none now.
  std::optional<Event> Pop();

  // Finish has been called: nothing comes after what the queue holds.
  bool is_finished() const;

 private:
  bool IsEmpty() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int64_t max_pending_bytes_;
  const std::function<void()> on_ready_;
  mutable Mutex mu_;
  // At most one per sample, in the order in which they began.
  std::deque<Delta> pending_ ABSL_GUARDED_BY(mu_);
  std::deque<Completion> completions_ ABSL_GUARDED_BY(mu_);
  int64_t pending_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool overflowed_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<Terminal> terminal_ ABSL_GUARDED_BY(mu_);
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_EVENT_QUEUE_H_
