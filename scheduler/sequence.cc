#include "scheduler/sequence.h"

namespace overfill {
namespace {

double Seconds(SteadyTime from, SteadyTime to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

Timings TimingsOf(const Sequence& sequence, SteadyTime now) {
  Timings timings;
  const SteadyTime arrival = sequence.request.arrival;
  if (sequence.state == SequenceState::kQueued) {
    timings.queue_seconds = Seconds(arrival, now);
    return timings;
  }
  timings.queue_seconds = Seconds(arrival, sequence.started);
  if (sequence.state == SequenceState::kPrefilling &&
      sequence.output.num_tokens() == 0) {
    timings.prefill_seconds = Seconds(sequence.started, now);
    return timings;
  }
  timings.prefill_seconds = Seconds(sequence.started, sequence.first_token);
  timings.ttft_seconds = Seconds(arrival, sequence.first_token);
  timings.migration_seconds = sequence.state == SequenceState::kMigrating
                                  ? Seconds(sequence.migration_started, now)
                                  : sequence.migration_seconds;
  timings.decode_seconds =
      Seconds(sequence.first_token, sequence.last_token_time);
  return timings;
}

}  // namespace overfill
