// An explicit-state model checker: breadth first over all states that a world
// can come to, each once.
#ifndef OVERFILL_TESTS_SCHEDULER_EXPLORER_H_
#define OVERFILL_TESTS_SCHEDULER_EXPLORER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/check.h"

namespace overfill {

struct Exploration {
  size_t num_states = 0;
  size_t num_edges = 0;
  // "" or what is wrong, and the actions that lead there.
  std::string violation;
  std::vector<std::string> path;
};

// World is copyable and has
//   std::vector<Action> Actions() const    what can happen next
//   void Apply(const Action&)
//   std::string Encode() const             equal: the same state
//   std::string Check() const              "" or the invariant that is broken
//   bool IsGoal() const
//   bool CanBeReliedOn(const Action&) const
//   static std::string Describe(const Action&)
// Checked: every state's Check, and that from every state a goal can be reached
// by actions that can be relied on.
template <typename World>
class Explorer {
 public:
  explicit Explorer(const World& initial) { Add(initial, 0, {}); }

  Exploration Run(size_t max_states = 5'000'000) {
    while (!frontier_.empty() && result_.violation.empty()) {
      const auto [at, world] = std::move(frontier_.front());
      frontier_.pop_front();
      for (const Action& action : world.Actions()) {
        World next = world;
        next.Apply(action);
        const uint32_t to = Add(next, at, action);
        ++result_.num_edges;
        if (world.CanBeReliedOn(action)) back_edges_[to].push_back(at);
        if (!result_.violation.empty()) break;
      }
      OVERFILL_CHECK(nodes_.size() <= max_states) << "too many states";
    }
    if (result_.violation.empty()) CheckGoals();
    result_.num_states = nodes_.size();
    return std::move(result_);
  }

 private:
  using Action = typename World::Action;
  struct Node {
    uint32_t parent;
    Action action;  // the parent's, that led here
  };

  uint32_t Add(const World& world, uint32_t parent, const Action& action) {
    const auto [it, is_new] = index_.try_emplace(
        world.Encode(), static_cast<uint32_t>(nodes_.size()));
    if (!is_new) return it->second;
    nodes_.push_back({parent, action});
    back_edges_.emplace_back();
    if (world.IsGoal()) goals_.push_back(it->second);
    if (std::string violation = world.Check(); !violation.empty()) {
      Fail(std::move(violation), it->second);
    }
    frontier_.emplace_back(it->second, world);
    return it->second;
  }

  void CheckGoals() {
    std::vector<bool> reaches(nodes_.size(), false);
    std::vector<uint32_t> open = goals_;
    for (uint32_t goal : goals_) reaches[goal] = true;
    while (!open.empty()) {
      const uint32_t node = open.back();
      open.pop_back();
      for (uint32_t before : back_edges_[node]) {
        if (reaches[before]) continue;
        reaches[before] = true;
        open.push_back(before);
      }
    }
    for (uint32_t node = 0; node < nodes_.size(); ++node) {
      if (!reaches[node]) return Fail("no way leads to a goal", node);
    }
  }

  void Fail(std::string violation, uint32_t node) {
    result_.violation = std::move(violation);
    for (; node != 0; node = nodes_[node].parent) {
      result_.path.insert(result_.path.begin(),
                          World::Describe(nodes_[node].action));
    }
  }

  std::unordered_map<std::string, uint32_t> index_;
  std::vector<Node> nodes_;
  std::vector<std::vector<uint32_t>> back_edges_;
  std::vector<uint32_t> goals_;
  std::deque<std::pair<uint32_t, World>> frontier_;
  Exploration result_;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_SCHEDULER_EXPLORER_H_
