// Who gives up its blocks when a running answer finds none: pure functions.
#ifndef OVERFILL_SCHEDULER_MAKE_ROOM_H_
#define OVERFILL_SCHEDULER_MAKE_ROOM_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace overfill {

// A sequence that writes its answer, and holds blocks of one store for it.
struct RunningAnswer {
  int32_t priority = 0;
  uint64_t order = 0;        // of arrival, unique
  bool is_to_leave = false;  // it goes as soon as its step is done
};

// Whose blocks last: the higher priority, then the elder.
bool OutlastsBlocks(const RunningAnswer& a, const RunningAnswer& b);

// `needy` of `answers`, which are all the answers in one store, finds no block:
// the index of the one whose place it takes, which would outlast the least and
// may be itself. Nothing where it is to wait: blocks are coming free
// (`is_room_coming`, or one is to leave), or it is alone, so that what it lacks
// is with those that have not begun to answer. Those are never preempted: they
// hold all that they need to become answers. So the answer that outlasts all
// others always goes on, and somebody always comes to an end.
std::optional<size_t> ChooseVictim(std::span<const RunningAnswer> answers,
                                   size_t needy, bool is_room_coming);

// Of a store's available blocks, those that sequences may start or return with:
// one for each running answer stays, else every start would preempt.
int32_t AvailableForStarts(int32_t available, int32_t num_answers);

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_MAKE_ROOM_H_
