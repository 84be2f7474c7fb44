// The scheduler: admits requests, moves them along their route through the
// pools, and ends each with exactly one terminal event.
#ifndef OVERFILL_SCHEDULER_SCHEDULER_H_
#define OVERFILL_SCHEDULER_SCHEDULER_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/step.h"
#include "engine/tokenizer/tokenizer.h"
#include "scheduler/event_queue.h"
#include "scheduler/kv_transport.h"
#include "scheduler/observer.h"
#include "scheduler/request.h"

namespace overfill {

struct SchedulerOptions {
  int32_t block_tokens = 16;
  // Prompt + answer of one request; 0: what both models can hold. The whole of
  // it should fit into each KV store: larger requests are refused one by one.
  int32_t max_sequence_tokens = 0;
  int32_t prefill_chunk_tokens = 512;  // prompt rows of one step
  int32_t max_decode_batch = 64;       // sequences of one step
  // Of the waiting requests, all together and each tenant's; a tenant's bound
  // of 0: none of its own.
  int32_t max_queued_requests = 256;
  int64_t max_queued_tokens = 1 << 20;  // of their prompts
  int64_t max_queued_bytes = 64 << 20;  // of their prompts, as they came
  int32_t max_tenant_queued_requests = 0;
  int64_t max_tenant_queued_tokens = 0;
  int64_t max_tenant_queued_bytes = 0;
  // The time between two tokens of a running stream to keep to while prompts
  // are read, by reading less of them in a step; 0: 1.65 times what it is
  // without them.
  std::chrono::nanoseconds itl_target{0};
  // From its arrival, a request without an earlier deadline ends
  // DEADLINE_EXCEEDED after this; at least 1 ns, at most a year.
  std::chrono::nanoseconds max_request_duration = std::chrono::hours(1);
  // Each time that a request has waited so long its priority counts one more;
  // 0: never.
  std::chrono::nanoseconds priority_ageing = std::chrono::seconds(1);
  // How long a copy of KV may take before it is given up; at least 1 ns, at
  // most a year.
  std::chrono::nanoseconds transfer_lease = std::chrono::seconds(10);
  // Whether a prompt's KV is kept for prompts that begin alike.
  bool prefix_cache = true;
};

// The most answers to one prompt: they need their places in a step all at
// once, and must not have to wait until nobody else has one.
constexpr int32_t MaxSamples(int32_t max_decode_batch) {
  return max_decode_batch > 1 ? max_decode_batch / 2 : 1;
}

// The models behind the pools. Everything outlives the scheduler.
struct SchedulerBackend {
  StepRunner* prefill = nullptr;  // the full model
  StepRunner* decode = nullptr;   // the pruned model
  int32_t prefill_blocks = 0;     // of the prefill pool's KV store
  // Blocks of the decode pool's own store; 0: the pools share one store and a
  // migration is a handoff.
  int32_t decode_blocks = 0;
  // Blocks of each store's swap space; 0: its requests reserve all that they
  // may come to hold, and are never preempted.
  std::array<int32_t, 2> swap_blocks{};
  // Between the stores, see stores.h. Each is used by one thread at a time.
  KvMover* mover = nullptr;  // to the decode store; set where it has blocks
  std::array<KvMover*, 2> swap_out{};  // set where swap_blocks are
  std::array<KvMover*, 2> swap_in{};
  std::array<KvMover*, 2> fork{};  // within a store; set for those that exist
  int64_t decode_block_bytes = 0;  // for the migration metric
  // By PoolId: what tells the models' KV apart in the prefix cache.
  std::array<std::string, 2> model_digests = {};
  const Tokenizer* tokenizer = nullptr;
  // Where set: wraps the transport. For tests that plant faults.
  std::function<std::unique_ptr<KvTransport>(std::unique_ptr<KvTransport>)>
      decorate_transport = nullptr;
};

// Thread-safe.
class Scheduler {
 public:
  // `observer` may be null; it outlives the scheduler. INVALID_ARGUMENT names
  // the option, or the part of the backend, that cannot be.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Create(
      const SchedulerOptions& options, const SchedulerBackend& backend,
      SchedulerObserver* observer);
  // Ends what is live with UNAVAILABLE, then joins the pools' threads.
  virtual ~Scheduler() = default;

  // Whether a request of a prompt of so many bytes has a chance now: asked
  // before it is parsed and tokenized, so that one without costs nothing. The
  // refusals of Submit that need no tokens.
  virtual absl::Status Precheck(absl::string_view tenant, int64_t prompt_bytes,
                                SteadyTime deadline) = 0;
  // When room for another request is to be expected, by the rate at which the
  // queue has been draining.
  virtual std::chrono::nanoseconds RetryAfter() const = 0;

  // Admits `request`; its events go to `events`, which the scheduler keeps
  // alive until the terminal one. Returns a uid for Cancel.
  // RESOURCE_EXHAUSTED: a queue bound; ALREADY_EXISTS: the tenant has a live
  // request of this id; UNAVAILABLE: draining; DEADLINE_EXCEEDED: too late
  // already; INVALID_ARGUMENT: breaks what request.h says, passes
  // max_sequence_tokens, or needs more KV blocks (prompt and max_tokens in
  // full) than the store has. A refused request gets no event. See admission.h
  // for the reasons that the observer is told.
  virtual absl::StatusOr<uint64_t> Submit(
      Request request, std::shared_ptr<EventQueue> events) = 0;

  // Ends a live request with `status` (CANCELLED, DEADLINE_EXCEEDED), never OK;
  // its blocks are free within one step, or once the copy under way is done. No
  // effect on one that has ended.
  virtual void Cancel(uint64_t uid, absl::Status status) = 0;

  // Refuses new requests from now on.
  virtual void StopAdmission() = 0;
  // Waits until nothing is live; false when `timeout` passed first.
  virtual bool WaitIdle(std::chrono::nanoseconds timeout) = 0;

  virtual SchedulerStats Stats() const = 0;

  // free + cached + owned + quarantined == total in every store, every table
  // in range, no block with two owners. INTERNAL names what is broken.
  virtual absl::Status CheckIntegrity() const = 0;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_SCHEDULER_H_
