// Two requests, their pools' steps, and a transport that does all that a
// transport may do: a small model around the real BlockPool and TransferTable,
// for the explorer. A step computes a whole prompt, or one position of an
// answer. What a block would hold is kept track of, slot by slot.
#ifndef OVERFILL_TESTS_SCHEDULER_TRANSFER_WORLD_H_
#define OVERFILL_TESTS_SCHEDULER_TRANSFER_WORLD_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/block_pool.h"
#include "scheduler/kv_transport.h"
#include "scheduler/stores.h"
#include "scheduler/transfer_table.h"

namespace overfill {

// Bugs of whoever uses pool and table, which the explorer must find.
enum class WorldBug {
  kNone,
  kFreesBeforeFence,  // unpins when the lease passes
  kFreesOnCancel,     // unpins when a request ends, whatever is written
  kTakesStaleEpoch,   // a commit counts for whatever epoch is alive
  kNoDestinationPin,
  kNoSourcePin,
  kNoStepPin,
  kRetriesInPlace,  // a new epoch to the blocks of the old one
  kNoReaper,        // leases pass, and nobody looks
  kNoPreemption,    // and nobody ends who cannot grow
  kPublishesEarly,  // when the prompt's step is launched
  kPublishesBad,    // before it is looked at what came out
  kForksNoCopy,     // shares the prompt's last block, which is not full
  kForksAtOnce,     // decodes before the copy has arrived
  // No bugs, but what the search must come to, so that it shows anything; taken
  // for one, where it happens.
  kReusesCached,
  kReusesHeld,
  kReusesQuarantined,
  kEvicts,
};

struct WorldOptions {
  // Of each store. No decode store: the pools share the prefill store, and
  // nothing is migrated.
  std::array<int32_t, kNumStores> blocks = {2, 3, 0, 2};
  int32_t block_tokens = 1;
  int32_t prompt_tokens = 1;
  int32_t total_tokens = 2;  // with the answer's
  int32_t retries = 1;       // of failed transfers, for each request
  // Else no request is cancelled, no lease passes, nothing is lost, late, bad
  // or sent twice; and the goal is that both requests complete.
  bool has_faults = true;
  // The requests have one prompt. Its full blocks are published in the prefill
  // store, and reused, but for that of the last position.
  bool has_prefix_cache = false;
  // The second request is another answer to the first: it forks from it where
  // that has left the prompt, and a cancel, or a failure, ends both.
  bool is_fork = false;
  WorldBug bug = WorldBug::kNone;
};

class TransferWorld {
 public:
  enum class Kind {
    kStart,
    kLaunch,      // `which`: a pool, `mask`: the requests in its step
    kFinishStep,  // `which`: a pool
    kFinishBad,   // the same, and the row of request `mask` is not finite
    kPreempt,
    kSwapIn,
    kRetry,    // the migration
    kExhaust,  // neither a block to grow into nor one to swap to
    kCancel,
    kExpire,  // the first lease passes
    // The transport; `which`: an index of wires_.
    kWrite,        // from now on it cannot be abandoned
    kArrive,       // all written, the commit is under way
    kArriveBad,    // some written, and the commit says so
    kDeliver,      // the commit comes
    kDeliverKeep,  // the commit comes, and will come again
    kLose,         // the commit will not come
    kFenced,       // nothing is written any more, and that is told
  };
  struct Action {
    Kind kind = Kind::kStart;
    int which = 0;
    int mask = 0;
  };

  explicit TransferWorld(const WorldOptions& options);

  std::vector<Action> Actions() const;
  void Apply(const Action& action);
  // The same for two states that differ in the names of requests, blocks, pins
  // and epochs alone.
  std::string Encode() const;
  std::string Check() const;
  // Nothing is live, no message is under way, all blocks are free.
  bool IsGoal() const;
  // With faults: nobody cancels for us, and no commit need ever come.
  bool CanBeReliedOn(const Action& action) const;
  static std::string Describe(const Action& action);

 private:
  static constexpr int kNumRequests = 2;
  // More commits of what is over add states, and nothing to them.
  static constexpr int kMaxStaleCommits = 1;
  enum class State {
    kQueued,
    kWaiting,  // for the prompt, of which it will fork
    kPrefilling,
    kMigrating,
    kToRetry,  // its migration has failed
    kForking,
    kDecoding,
    kSwappingOut,
    kSwapped,
    kSwappingIn,
    kEnded,
  };
  struct Holding {
    std::vector<int32_t> table;
    int32_t credits = 0;
  };
  struct Sequence {
    State state = State::kQueued;
    int32_t computed = 0;
    int32_t retries_left = 0;
    uint32_t epoch = 0;
    bool is_complete = false;
    std::array<Holding, kNumStores> holdings;
  };
  struct Step {
    int mask = 0;  // 0: none is running
    std::array<std::vector<int32_t>, kNumRequests> blocks;
    std::array<int32_t, kNumRequests> begin{};  // of the positions it writes
    std::array<int32_t, kNumRequests> end{};
    std::optional<uint64_t> pin;
  };
  // What one slot of a block holds the KV of.
  struct Content {
    enum { kNothing = -2, kPrompt = -1 };
    int whose = kNothing;  // or a request's number: its answer's
    int32_t position = 0;
    bool operator==(const Content&) const = default;
  };
  // A transfer, as long as anything of it is left.
  struct Wire {
    KvTransfer transfer;
    enum class Phase { kWaiting, kWriting, kOver } phase = Phase::kWaiting;
    bool is_good = false;  // what has arrived
    int num_commits = 0;   // under way
    bool is_live = true;   // in the table
    bool is_fencing = false;
    SteadyTime lease_end;
    std::optional<uint64_t> source_pin;
    std::optional<uint64_t> destination_pin;
  };

  static uint64_t UidOf(int request) {
    return static_cast<uint64_t>(request) + 1;
  }
  static int RequestOf(uint64_t uid) { return static_cast<int>(uid) - 1; }

  bool is_shared() const { return decode_store_ == kPrefillStore; }
  bool is_content_shared() const {
    return options_.has_prefix_cache || options_.is_fork;
  }
  int StoreOf(int pool) const {
    return pool == 0 ? kPrefillStore : decode_store_;
  }

  // What the requests' side does.
  void Start(int request);
  void Launch(int pool, int mask);
  void FinishStep(int pool, int bad);
  void Preempt(int request);
  void SwapIn(int request);
  void BeginTransfer(int request, int from, int to);
  void Send(int request, KvTransfer transfer);
  void BeginAnswers(int request);
  void Fork(int from, int to);
  void EndOne(int request);
  void LeavePrompt(int request);
  void Reserve(int request, int store, int32_t count);
  void Retry(int request);
  void Expire();
  void End(int request);
  void OnCommit(const KvCommit& commit);
  void Succeed(int request);
  void Fail(int request);
  void Unpin(Wire& wire);
  void Allocate(int request, int store, int32_t count);
  void Release(int request, int store);
  void ReleaseTable(int request, int store);

  // The prefix cache.
  std::vector<int32_t> FindPrefix() const;
  int32_t NumHeld() const;  // of these
  void Adopt(int request);
  void NoteReuse(int32_t block);
  void Publish(int request);
  void Withdraw(int request);

  // What the blocks hold.
  Content RightContent(int request, int32_t position) const;
  // Of contents_.
  size_t SlotOf(const std::vector<int32_t>& table, int32_t position) const;
  void WriteStep(int pool, bool is_over, int bad);
  void WriteTransfer(const Wire& wire, bool is_whole);

  int32_t BlocksFor(int32_t tokens) const;
  int32_t ForkBlocks() const;
  bool CanStart() const;
  void AddFinishes(int pool, std::vector<Action>& actions) const;
  bool CanLaunch(int pool, int mask) const;
  bool IsStepping(int request) const;
  bool HasTransfer(int request) const;
  bool NeedsGrowth(int request) const;
  std::vector<Action> RequestActions(int request) const;
  void AddWireActions(int which, std::vector<Action>& actions) const;

  // What the transport does.
  void Deliver(int which, bool keep);
  void Fenced(int which);
  Wire* FindWire(uint64_t uid, uint32_t epoch);
  int NumStaleCommits() const;
  void DropDeadWires();

  std::string EncodeAs(const std::array<int, kNumRequests>& order) const;
  void EncodeContents(const std::array<int, kNumRequests>& order,
                      std::array<std::vector<int8_t>, kNumStores>& names,
                      std::array<int8_t, kNumStores>& next_name,
                      std::string& code) const;
  int RankOfLease(const Wire& wire) const;
  std::string CheckWrites() const;
  std::string CheckTouched(int store, int32_t block, int writer,
                           bool may_be_held, bool is_read) const;
  std::string CheckContents() const;
  // Where what is computed of it is; -1: nowhere.
  int StoreOfKv(int request) const;
  // The blocks that the pool would give out, in this order: the free, then the
  // cached ones.
  static std::vector<int32_t> InOrder(BlockPool pool);
  // Of a prompt's block, or -1.
  int KeyOf(int32_t block) const;

  WorldOptions options_;
  int decode_store_;
  int swap_store_;
  std::vector<BlockPool> pools_;  // by store
  // By store; a block's slots are neighbours.
  std::array<std::vector<Content>, kNumStores> contents_;
  TransferTable table_;
  std::array<Sequence, kNumRequests> sequences_;
  std::array<Step, 2> steps_;  // by pool
  std::vector<Wire> wires_;    // by uid, then epoch
  int64_t clock_ = 0;
  std::string violation_;  // by an action
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_SCHEDULER_TRANSFER_WORLD_H_
