#include "scheduler/make_room.h"

#include <algorithm>

namespace overfill {

bool OutlastsBlocks(const RunningAnswer& a, const RunningAnswer& b) {
  if (a.priority != b.priority) return a.priority > b.priority;
  return a.order < b.order;
}

std::optional<size_t> ChooseVictim(std::span<const RunningAnswer> answers,
                                   size_t needy, bool is_room_coming) {
  if (is_room_coming || answers.size() < 2) return std::nullopt;
  size_t victim = needy;
  for (size_t i = 0; i < answers.size(); ++i) {
    if (i == needy) continue;
    if (answers[i].is_to_leave) return std::nullopt;
    if (OutlastsBlocks(answers[victim], answers[i])) victim = i;
  }
  return victim;
}

int32_t AvailableForStarts(int32_t available, int32_t num_answers) {
  return std::max(0, available - num_answers);
}

}  // namespace overfill
