// What the scheduler tells whoever measures it.
#ifndef OVERFILL_SCHEDULER_OBSERVER_H_
#define OVERFILL_SCHEDULER_OBSERVER_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "scheduler/request.h"

namespace overfill {

enum class PoolId { kPrefill, kDecode };
const char* PoolName(PoolId pool);  // "prefill", "decode"

// Calls come from any thread, several at once, some with the scheduler's lock
// held: they must be short, must not block and must not call the scheduler.
class SchedulerObserver {
 public:
  virtual ~SchedulerObserver() = default;
  // One step of a pool: rows of prompts and rows of running answers.
  virtual void OnStep(PoolId pool, double seconds, int32_t num_prompt_rows,
                      int32_t num_decode_rows, int32_t num_sequences) {}
  virtual void OnFirstToken(DecodePath path, double ttft_seconds,
                            double queue_seconds) {}
  virtual void OnToken(DecodePath path, double inter_token_seconds) {}
  virtual void OnMigration(double seconds, int64_t bytes, bool copied) {}
  // Exactly once for every admitted request.
  virtual void OnTerminal(DecodePath path, const Terminal& terminal,
                          double e2e_seconds) {}
  // A request that Submit refused, by a short constant reason.
  virtual void OnReject(absl::string_view reason) {}
};

// Live requests by state; their sum is the number of live requests.
struct RequestCounts {
  int32_t queued = 0;
  int32_t prefilling = 0;
  int32_t migrating = 0;
  int32_t decoding = 0;
  int32_t swapped = 0;
};

struct BlockCounts {
  std::string store;  // "shared", "prefill", "decode"
  int32_t free = 0;
  int32_t cached = 0;
  int32_t owned = 0;
  int32_t quarantined = 0;
};

struct SchedulerStats {
  RequestCounts requests;
  int64_t queued_tokens = 0;
  std::vector<BlockCounts> stores;
  // The watchdog's heartbeat, by PoolId: steady time of the pool's last
  // finished step, or of when it last got work after it had none, and whether
  // it has work. A copy under way is work of the decode pool.
  std::array<SteadyTime, 2> last_step;
  std::array<bool, 2> has_work{};
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_OBSERVER_H_
