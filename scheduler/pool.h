// One model with its running batch: a thread that plans, runs, applies.
#ifndef OVERFILL_SCHEDULER_POOL_H_
#define OVERFILL_SCHEDULER_POOL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/step.h"
#include "scheduler/observer.h"
#include "scheduler/sequence.h"

namespace overfill {

// One step from plan to apply. It keeps alive, and unchanged, all that the
// model reads, whatever becomes of the requests meanwhile.
struct Step {
  PoolId pool;
  std::vector<SequencePtr> sequences;
  std::vector<std::vector<int32_t>> tables;  // parallel to sequences
  std::vector<std::vector<const SamplingState*>> draws;  // parallel
  StepBatch batch;                                       // parallel
  // Every sequence has ended while the step ran.
  std::atomic<bool> is_abandoned = false;
  uint64_t pin = 0;  // of all the tables' blocks
  int32_t num_prompt_rows = 0;
  int32_t num_decode_rows = 0;
};

// What a pool's thread asks of the scheduler.
class PoolHost {
 public:
  virtual ~PoolHost() = default;
  // Blocks until there is something to do; null: the pool is to stop.
  virtual std::unique_ptr<Step> Plan(PoolId pool) = 0;
  virtual void Apply(std::unique_ptr<Step> step,
                     absl::StatusOr<StepResult> result, double seconds) = 0;
};

class Pool {
 public:
  // Runner and host outlive the pool.
  Pool(PoolId id, StepRunner* runner, PoolHost* host);
  // Joins the thread: the host's Plan must come to return null.
  ~Pool();
  Pool(const Pool&) = delete;

 private:
  void Loop();

  const PoolId id_;
  StepRunner* const runner_;
  PoolHost* const host_;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_POOL_H_
