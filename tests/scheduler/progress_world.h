// Planner, ledger and the rule of preemption together, in any order of events
// that steps and transfers may have, without models, threads or clocks.
#ifndef OVERFILL_TESTS_SCHEDULER_PROGRESS_WORLD_H_
#define OVERFILL_TESTS_SCHEDULER_PROGRESS_WORLD_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "scheduler/kv_ledger.h"
#include "scheduler/make_room.h"
#include "scheduler/step_planner.h"
#include "tests/scheduler/rig.h"

namespace overfill {

inline constexpr int kMaxLive = 10;
// All that may be out of the stores at once: 3 samples of each request, of 40
// tokens in blocks of one.
inline constexpr int32_t kAllSwapped = kMaxLive * 3 * 40;
// Events that may pass while the sequence that outlasts all others of its
// store, and has begun, does nothing; far above what was ever seen.
inline constexpr int kPatienceEvents = 400;

// The scheduler's, and what must be noticed.
enum class ProgressRules {
  kRight,
  kStartsWithoutAnswersBlocks,  // a prompt starts with what it needs itself
  kStartsWithoutHeadroom,       // with the blocks that answers grow into
  kEldestGoes,                  // the victim is who outlasts all
  kNobodyGoes,                  // who finds no block waits
  kAnySize,                     // requests larger than the store are taken
};

struct ProgressCounts {
  int64_t completed = 0;
  int64_t exhausted = 0;  // found no room in the swap space
  int64_t tokens = 0;
  int64_t preemptions = 0;
  int64_t forks = 0;
};

// A scheduler's life without the scheduler's lock: any one of what can happen
// next happens, drawn from `random`. Stores of 1 to 20 blocks, swap space for
// none, some or all; requests of 1 to 3 samples on all paths.
class ProgressWorld {
 public:
  ProgressWorld(std::mt19937_64& random, ProgressRules rules, int num_requests,
                ProgressCounts& counts)
      : random_(random),
        rules_(rules),
        num_to_come_(num_requests),
        counts_(counts),
        stores_(RandomStores()),
        ledger_(stores_),
        budget_{.max_rows = 0,
                .max_sequences = Pick(1, 6),
                .max_prefill_rows = Pick(1, 12)},
        free_slots_{budget_.max_sequences, budget_.max_sequences} {
    budget_.max_rows = budget_.max_sequences + Pick(0, 12);
  }

  // "", or what went wrong.
  std::string Run();

 private:
  struct Step {
    std::vector<std::pair<SequencePtr, int32_t>> rows;  // 0: an answer's
    uint64_t pin = 0;
  };
  struct Transfer {
    SequencePtr sequence;
    SequenceState state;
    int from;
    int to;
    uint64_t source;
    uint64_t destination;
  };

  int32_t Pick(int32_t least, int32_t most) {
    return least + static_cast<int32_t>(random_() % (most - least + 1));
  }

  KvStores RandomStores();

  int32_t SizeOf(int store) const {
    return IsSwapStore(store) ? stores_.swap_blocks[store - kPrefillSwapStore]
                              : stores_.Total()[store];
  }
  int StoreOf(PoolId pool) const { return stores_.StoreOf(pool); }

  void Add();
  // One of the things that can happen next; false: nothing can.
  bool Happen();

  // ---- What a pool does next.

  bool Plan(PoolId pool);
  std::vector<SequencePtr> Runnable(PoolId pool);
  static RunningAnswer AnswerOf(const Sequence& sequence);
  std::vector<SequencePtr> AnswersIn(int store) const;
  void MakeRoom(const SequencePtr& sequence);
  bool IsRoomComing(int store) const;
  PlanInput MakeInput(PoolId pool, std::vector<SequencePtr>& candidates);
  Resources AvailableNow() const;
  std::array<int64_t, 2> BlocksToStart(const LiveRequest& live,
                                       int64_t num_samples) const;
  Resources NeedsToStart(const LiveRequest& live) const;
  Resources NeedsToReturn(const Sequence& sequence) const;
  void Start(const LivePtr& live);

  // ---- What a step has done.

  void Apply(PoolId pool, const Step& step);

  // Whether it is the sample's last: at the limit, or earlier, as it comes.
  bool TakeToken(const SequencePtr& sequence);
  void LeavePrompt(const SequencePtr& reader);

  // At once, but where the answer's blocks were not reserved.
  void MigrateStranded();
  void BeginAnswers(const SequencePtr& carrier);
  void BeginDecode(const SequencePtr& sequence) {
    sequence->state = SequenceState::kDecoding;
    decoding_[static_cast<int>(sequence->answer_pool())].push_back(sequence);
  }

  // ---- Transfers.

  void Preempt(const SequencePtr& sequence);
  void Return(const SequencePtr& sequence);
  void MoveAll(const SequencePtr& sequence, SequenceState state, int from,
               int to);
  void Send(const SequencePtr& sequence, SequenceState state, int from, int to,
            const std::vector<int32_t>& source,
            const std::vector<int32_t>& destination);
  void FinishTransfer(size_t index);

  // ---- Ends, places, books.

  void LetGo(const SequencePtr& sequence);
  LivePtr Find(const Sequence& sequence) const {
    return live_.at(sequence.live->uid);
  }
  void TakeSlot(Sequence& sequence, int pool) {
    OVERFILL_CHECK_GE(--free_slots_[pool], 0);
    sequence.has_slot[pool] = true;
  }
  void FreeSlot(Sequence& sequence, int pool) {
    if (std::exchange(sequence.has_slot[pool], false)) ++free_slots_[pool];
  }

  // Of the request that outlasts all others, the first sample that goes on.
  const Sequence* FirstInLine() const;
  void NoteProgress(const Sequence& sequence) {
    if (FirstInLine()->live == sequence.live) idle_events_ = 0;
  }

  absl::Status Integrity() const {
    std::vector<const Sequence*> sequences;
    for (const auto& [uid, live] : live_) {
      for (const Sequence& sample : live->samples) sequences.push_back(&sample);
    }
    return ledger_.CheckIntegrity(sequences);
  }

  std::mt19937_64& random_;
  const ProgressRules rules_;
  int num_to_come_;
  ProgressCounts& counts_;
  const KvStores stores_;
  KvLedger ledger_;
  StepBudget budget_;
  std::array<int32_t, 2> free_slots_;
  uint64_t next_uid_ = 1;
  std::map<uint64_t, LivePtr> live_;
  std::vector<LivePtr> queued_;
  std::array<std::vector<SequencePtr>, 2> prefilling_;
  std::array<std::vector<SequencePtr>, 2> decoding_;
  std::map<uint64_t, SequencePtr> swapped_;
  std::vector<SequencePtr> stranded_;
  std::array<std::optional<Step>, 2> steps_;
  std::vector<Transfer> transfers_;
  std::map<uint64_t, int32_t> num_tokens_;  // by sequence
  int idle_events_ = 0;  // since the first in line did something
  std::string violation_;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_SCHEDULER_PROGRESS_WORLD_H_
