// A live request: where it is on its route, and what it holds.
#ifndef OVERFILL_SCHEDULER_SEQUENCE_H_
#define OVERFILL_SCHEDULER_SEQUENCE_H_

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "engine/sampling.h"
#include "engine/tokenizer/tokenizer.h"
#include "scheduler/block_pool.h"
#include "scheduler/event_queue.h"
#include "scheduler/observer.h"
#include "scheduler/output_stream.h"
#include "scheduler/request.h"
#include "scheduler/route.h"

namespace overfill {

enum class SequenceState {
  kQueued,      // holds nothing
  kPrefilling,  // its prompt is being read
  kMigrating,   // its KV is being copied; token 0 is out
  kDecoding,    // one token in each step of its pool
  kEnded,
};
inline constexpr int kNumSequenceStates = 5;

// What a sequence holds of one store.
struct StoreHolding {
  BlockPool::Owner owner = 0;
  std::vector<int32_t> table;  // block i covers the i-th block_tokens positions
  int32_t credits = 0;         // for the blocks still to come
};

// All mutable fields belong to the scheduler's lock, with one exception: while
// a step holds the sequence, what the step reads (request, sampling,
// last_token) does not change, so the model reads it without the lock.
struct Sequence {
  Sequence(uint64_t uid_in, Request request_in,
           std::shared_ptr<EventQueue> events_in, const Tokenizer* tokenizer)
      : uid(uid_in),
        request(std::move(request_in)),
        route(MakeRoute(request.path)),
        events(std::move(events_in)),
        sampling(&request.sampling, request.prompt_ids, /*sample_index=*/0),
        output(tokenizer, &request) {}
  Sequence(const Sequence&) = delete;

  int32_t prompt_tokens() const {
    return static_cast<int32_t>(request.prompt_ids.size());
  }
  PoolId prompt_pool() const { return PoolOf(route, Span::kPrompt); }
  PoolId answer_pool() const { return PoolOf(route, Span::kRest); }

  const uint64_t uid;  // also the order of arrival
  const Request request;
  const Route route;
  const std::shared_ptr<EventQueue> events;

  SequenceState state = SequenceState::kQueued;
  int32_t num_computed = 0;  // positions [0, num_computed) have their KV
  int32_t last_token = -1;   // the next one to go into a model
  SamplingState sampling;
  const std::array<const SamplingState*, 1> draws = {&sampling};
  OutputStream output;
  std::array<StoreHolding, 2> holdings;  // by store
  std::array<bool, 2> has_slot{};        // by PoolId
  uint32_t epoch = 0;                    // counts its migrations

  SteadyTime started;      // its first step's
  SteadyTime first_token;  // set once a token came
  SteadyTime last_token_time;
  SteadyTime migration_started;
  double migration_seconds = 0;

  // Events on their way to `events`, in order. One thread at a time takes them
  // there, without the lock: `is_delivering`.
  std::deque<Event> outbox;
  bool is_delivering = false;
};

using SequencePtr = std::shared_ptr<Sequence>;

// The timings of a sequence that ends `now`, in whatever state it is.
Timings TimingsOf(const Sequence& sequence, SteadyTime now);

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_SEQUENCE_H_
