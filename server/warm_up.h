// A first generation, before anybody may ask for one.
#ifndef OVERFILL_SERVER_WARM_UP_H_
#define OVERFILL_SERVER_WARM_UP_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "scheduler/scheduler.h"

namespace overfill {

// Answers a prompt of `token_id` on the two_stage path, through both models and
// a migration. Blocks; DEADLINE_EXCEEDED after `timeout`. An error means that
// the pair cannot serve.
absl::Status WarmUp(Scheduler& scheduler, int32_t token_id,
                    int32_t max_sequence_tokens, absl::Duration timeout);

}  // namespace overfill

#endif  // OVERFILL_SERVER_WARM_UP_H_
