#include "scheduler/sequence.h"

#include <utility>

namespace overfill {
namespace {

double Seconds(SteadyTime from, SteadyTime to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

const char* SequenceStateName(SequenceState state) {
  switch (state) {
    case SequenceState::kQueued:
      return "queued";
    case SequenceState::kPrefilling:
      return "prefilling";
    case SequenceState::kWaiting:
      return "waiting";
    case SequenceState::kMigrating:
      return "migrating";
    case SequenceState::kForking:
      return "forking";
    case SequenceState::kDecoding:
      return "decoding";
    case SequenceState::kLeaving:
      return "leaving";
    case SequenceState::kSwapped:
      return "swapped";
    case SequenceState::kReturning:
      return "returning";
    case SequenceState::kEnded:
      return "ended";
  }
  return "unknown";
}

Sequence::Sequence(LiveRequest* live_in, uint64_t uid_in, int32_t index_in,
                   const Tokenizer* tokenizer)
    : live(live_in),
      uid(uid_in),
      index(index_in),
      sampling(&live->request.sampling, live->request.prompt_ids, index_in),
      output(tokenizer, &live->request) {}

const Request& Sequence::request() const { return live->request; }

int32_t Sequence::prompt_tokens() const {
  return static_cast<int32_t>(live->request.prompt_ids.size());
}

PoolId Sequence::prompt_pool() const {
  return PoolOf(live->route, Span::kPrompt);
}

PoolId Sequence::answer_pool() const {
  return PoolOf(live->route, Span::kRest);
}

LiveRequest::LiveRequest(uint64_t uid_in, Request request_in,
                         std::shared_ptr<EventQueue> events_in,
                         const Tokenizer* tokenizer)
    : uid(uid_in),
      request(std::move(request_in)),
      route(MakeRoute(request.path)),
      events(std::move(events_in)),
      num_running(request.n) {
  for (int32_t i = 0; i < request.n; ++i) {
    samples.emplace_back(this, uid + i, i, tokenizer);
  }
}

Usage UsageOf(const LiveRequest& live) {
  Usage usage = UsageOf(live.first());
  for (int32_t i = 1; i < live.request.n; ++i) {
    usage.completion_tokens += live.samples[i].output.num_tokens();
  }
  return usage;
}

Usage UsageOf(const Sequence& sequence) {
  return {.prompt_tokens = sequence.prompt_tokens(),
          .cached_prompt_tokens = sequence.live->cached_prompt_tokens,
          .completion_tokens = sequence.output.num_tokens()};
}

Timings TimingsOf(const Sequence& sequence, SteadyTime now) {
  Timings timings;
  const LiveRequest& live = *sequence.live;
  const SteadyTime arrival = live.request.arrival;
  if (live.started == SteadyTime()) {
    timings.queue_seconds = Seconds(arrival, now);
    return timings;
  }
  timings.queue_seconds = Seconds(arrival, live.started);
  if (sequence.output.num_tokens() == 0) {
    timings.prefill_seconds = Seconds(live.started, now);
    return timings;
  }
  timings.prefill_seconds = Seconds(live.started, sequence.first_token);
  timings.ttft_seconds = Seconds(arrival, sequence.first_token);
  timings.migration_seconds = sequence.state == SequenceState::kMigrating
                                  ? Seconds(sequence.transfer_started, now)
                                  : live.migration_seconds;
  timings.decode_seconds =
      Seconds(sequence.first_token, sequence.last_token_time);
  return timings;
}

}  // namespace overfill
