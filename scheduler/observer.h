// What the scheduler tells whoever measures it.
#ifndef OVERFILL_SCHEDULER_OBSERVER_H_
#define OVERFILL_SCHEDULER_OBSERVER_H_

#include <array>
#include <cstdint>
#include <optional>
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
  // A prompt starts: how many of its tokens were looked for in the prefix
  // cache, and how many were there.
  virtual void OnPrefixLookup(int32_t queried_tokens, int32_t hit_tokens) {}
  // A running sequence gave up its blocks; its KV goes to the swap space.
  virtual void OnPreemption() {}
  // A transfer of KV failed and is sent again.
  virtual void OnTransferRetry() {}
  // Once for each sample whose answer is complete, before OnTerminal.
  virtual void OnCompletion(DecodePath path, const Completion& completion) {}
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
  std::string store;  // "shared", "prefill", "decode", and their swap spaces
  int32_t free = 0;
  int32_t cached = 0;
  int32_t owned = 0;
  int32_t quarantined = 0;
};

// A step that a model is at.
struct RunningStep {
  SteadyTime started;
  int32_t num_prompt_rows = 0;
  int32_t num_decode_rows = 0;
  std::vector<uint64_t> uids;  // of the requests in it
};

// Transfers of KV between stores: migrations, swaps, copies for forks.
struct TransferStats {
  int32_t sending = 0;
  int32_t fencing = 0;  // past their lease; their blocks are quarantined
  int64_t discarded_commits = 0;  // since the start: stale or repeated
};

struct SchedulerStats {
  RequestCounts requests;
  TransferStats transfers;
  // What the inter-token latency target leaves for prompts in a step.
  int32_t prefill_chunk_rows = 0;
  int64_t queued_tokens = 0;
  std::vector<BlockCounts> stores;
  // The watchdog's heartbeat, by PoolId: steady time of the pool's last
  // finished step, or of when it last got work after it had none, and whether
  // it has work. A copy under way is work of the decode pool.
  std::array<SteadyTime, 2> last_step;
  std::array<bool, 2> has_work{};
  std::array<std::optional<RunningStep>, 2> running_steps;  // by PoolId
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_OBSERVER_H_
