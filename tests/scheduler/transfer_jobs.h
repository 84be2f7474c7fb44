// The least of a scheduler that moves KV: jobs get blocks of both stores, are
// copied under a lease until that has worked, look at what they got for a
// while, and give the blocks back.
#ifndef OVERFILL_TESTS_SCHEDULER_TRANSFER_JOBS_H_
#define OVERFILL_TESTS_SCHEDULER_TRANSFER_JOBS_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "scheduler/block_pool.h"
#include "scheduler/transfer_table.h"
#include "tests/scheduler/transfer_events.h"
#include "tests/scheduler/transfer_stores.h"
#include "tests/support/faulty_transport.h"

namespace overfill {

// One thread.
class Jobs {
 public:
  struct Options {
    FaultRates rates = {};
    int num_jobs = 300;
    std::chrono::milliseconds lease{30};
    bool frees_before_fence = false;  // the bug that fences are there for
    bool takes_any_commit = false;    // the bug that checks are there for
  };

  // The stores outlive the jobs.
  Jobs(Stores* stores, const Options& options);

  // To the end of all jobs; expects that all blocks come home, and checks pool
  // and table throughout.
  void Run();

  // Jobs that saw what was not theirs.
  int num_corrupted() const { return num_corrupted_; }
  int num_retries() const { return num_retries_; }
  FaultCounts faults() const { return transport_->counts(); }

 private:
  using Id = std::pair<uint64_t, uint32_t>;  // uid, epoch
  struct Job {
    int32_t num_tokens = 0;
    uint32_t epoch = 0;
    std::array<std::vector<int32_t>, 2> tables;
    uint64_t content = 0;   // of its first block; the others' follow
    int looks_to_come = 0;  // > 0 once it has arrived
  };
  struct Pins {
    uint64_t source = 0;
    uint64_t destination = 0;
  };

  // False when there are not the blocks for it.
  bool Start();
  void Allocate(Job& job, uint64_t uid, int store, int32_t blocks);
  void Release(Job& job, uint64_t uid, int store);
  void Send(uint64_t uid, Job& job);
  void Unpin(const KvTransfer& transfer);
  // What the transport has told since the last call.
  void Take();
  void TakeCommit(const KvCommit& commit);
  void Expire();
  void Retry();
  void LookAndEnd();
  bool Looks(const Job& job);
  void CheckIntegrity();

  Stores* const stores_;
  const Options options_;
  std::mt19937_64 random_;
  std::array<BlockPool, 2> pools_;
  TransferTable table_;
  std::map<Id, Pins> pins_;
  std::map<uint64_t, Job> live_;
  std::deque<uint64_t> to_retry_;
  std::deque<std::pair<SteadyTime, Id>> to_fence_;
  int num_started_ = 0;
  int num_done_ = 0;
  int num_corrupted_ = 0;
  int num_retries_ = 0;
  size_t num_commits_taken_ = 0;
  size_t num_fenced_taken_ = 0;
  TransferEvents events_;
  std::unique_ptr<FaultyTransport> transport_;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_SCHEDULER_TRANSFER_JOBS_H_
