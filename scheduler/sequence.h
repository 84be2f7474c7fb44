// A live request, and the sequences that write its answers: where each is on
// its route, and what it holds.
#ifndef OVERFILL_SCHEDULER_SEQUENCE_H_
#define OVERFILL_SCHEDULER_SEQUENCE_H_

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "engine/sampling.h"
#include "engine/tokenizer/tokenizer.h"
#include "scheduler/block_pool.h"
#include "scheduler/event_queue.h"
#include "scheduler/observer.h"
#include "scheduler/output_stream.h"
#include "scheduler/prefix_keys.h"
#include "scheduler/request.h"
#include "scheduler/route.h"
#include "scheduler/stores.h"

namespace overfill {

enum class SequenceState {
  kQueued,      // holds nothing
  kPrefilling,  // sample 0: the prompt is being read
  kWaiting,     // another sample: sample 0 reads its prompt, or brings it
  kMigrating,   // its KV is being copied to the pool of its answer
  kForking,     // its own copy of the prompt's last block is being made
  kDecoding,    // one token in each step of its pool
  kLeaving,     // preempted: its KV is being copied to the swap space
  kSwapped,     // its KV is in the swap space, nothing of it in a pool
  kReturning,   // its KV is being copied back
  kEnded,
};
const char* SequenceStateName(SequenceState state);  // "queued", ...

// What a sequence holds of one store.
struct StoreHolding {
  BlockPool::Owner owner = 0;
  std::vector<int32_t> table;  // block i covers the i-th block_tokens positions
  int32_t credits = 0;         // for blocks still to come
  // Shared while the sequence's own copy of it is being made.
  std::optional<int32_t> lent;
};

// Blocks of a prompt that need not be computed.
struct CachedPrefix {
  std::vector<int32_t> blocks;
  // So many of the first ones are held by somebody: they cost no credit,
  // whatever is evicted meanwhile.
  int32_t num_held = 0;
};

struct LiveRequest;

// One sample of a request. All mutable fields belong to the scheduler's lock,
// with one exception: while a step holds the sequence, what the step reads
// (request, sampling, last_token) does not change, so the model reads it
// without the lock.
struct Sequence {
  Sequence(LiveRequest* live_in, uint64_t uid_in, int32_t index_in,
           const Tokenizer* tokenizer);
  Sequence(const Sequence&) = delete;

  const Request& request() const;
  int32_t prompt_tokens() const;
  PoolId prompt_pool() const;
  PoolId answer_pool() const;
  // Whether KV of it is on its way between two stores.
  bool is_moving() const {
    return state == SequenceState::kMigrating ||
           state == SequenceState::kForking ||
           state == SequenceState::kLeaving ||
           state == SequenceState::kReturning;
  }

  LiveRequest* const live;
  const uint64_t uid;   // also the order of arrival
  const int32_t index;  // of the sample

  SequenceState state = SequenceState::kQueued;
  int32_t num_computed = 0;  // positions [0, num_computed) have their KV
  int32_t last_token = -1;   // the next one to go into a model
  SamplingState sampling;
  OutputStream output;
  std::array<StoreHolding, kNumStores> holdings;  // by store
  std::array<bool, 2> has_slot{};                 // by PoolId
  bool is_in_step = false;   // a launched step reads and writes its blocks
  bool is_to_leave = false;  // to be preempted when that step is done
  uint32_t epoch = 0;        // counts its transfers
  int32_t num_attempts = 0;  // of the transfer under way
  std::optional<uint64_t> swapped_digest;  // of what is in the swap space

  SteadyTime transfer_started;
  SteadyTime first_token;  // set once a token came
  SteadyTime last_token_time;
};

// Shares the request's lifetime: a step or a transfer that holds a sequence
// holds the request.
using SequencePtr = std::shared_ptr<Sequence>;

struct LiveRequest {
  // `uid_in` is the first sample's; the others' follow it.
  LiveRequest(uint64_t uid_in, Request request_in,
              std::shared_ptr<EventQueue> events_in,
              const Tokenizer* tokenizer);
  LiveRequest(const LiveRequest&) = delete;

  Sequence& first() { return samples.front(); }
  const Sequence& first() const { return samples.front(); }

  const uint64_t uid;
  const Request request;
  const Route route;
  const std::shared_ptr<EventQueue> events;
  std::deque<Sequence> samples;  // by index

  // Of the prompt's full blocks; empty without a prefix cache.
  std::vector<BlockKey> prefix_keys;
  // What of them was found when the store was at that version.
  CachedPrefix prefix;
  uint64_t prefix_version = ~uint64_t{0};
  int32_t cached_prompt_tokens = 0;
  int32_t num_running;  // samples that have not ended
  bool has_ended = false;
  SteadyTime started;  // its first step's
  SteadyTime ended;
  double migration_seconds = 0;

  // Events on their way to `events`, in order. One thread at a time takes them
  // there, without the lock: `is_delivering`.
  std::deque<Event> outbox;
  bool is_delivering = false;
};

using LivePtr = std::shared_ptr<LiveRequest>;

// The sequence, holding its request.
inline SequencePtr PtrOf(const LivePtr& live, int32_t index) {
  return {live, &live->samples[index]};
}

// The tokens of all samples.
Usage UsageOf(const LiveRequest& live);
Usage UsageOf(const Sequence& sequence);
// The timings of a sequence that ends `now`, in whatever state it is.
Timings TimingsOf(const Sequence& sequence, SteadyTime now);

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_SEQUENCE_H_
