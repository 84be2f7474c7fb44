// What a path means to the scheduler: which pool makes which span of a
// sequence.
#ifndef OVERFILL_SCHEDULER_ROUTE_H_
#define OVERFILL_SCHEDULER_ROUTE_H_

#include <vector>

#include "scheduler/observer.h"
#include "scheduler/request.h"

namespace overfill {

enum class Span {
  kPrompt,  // the prompt's KV, and token 0
  kRest,    // the KV of token 0 and on, and the tokens after it
};

struct RouteLeg {
  Span span;
  PoolId pool;
};

// The legs in the order of their spans, each span once.
using Route = std::vector<RouteLeg>;

// two_stage: [prompt: prefill, rest: decode]; full and pruned stay in the
// prefill pool and in the decode pool.
Route MakeRoute(DecodePath path);

// The pool of a span. CHECKs that the route has it.
PoolId PoolOf(const Route& route, Span span);

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_ROUTE_H_
