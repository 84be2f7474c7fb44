#include "scheduler/event_queue.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"

namespace overfill {
namespace {

int64_t SizeOf(const Delta& delta) {
  int64_t bytes = static_cast<int64_t>(
      delta.text.size() + delta.token_ids.size() * sizeof(int32_t) +
      delta.logprobs.size() * sizeof(TokenLogprobs));
  for (const TokenLogprobs& token : delta.logprobs) {
    bytes += static_cast<int64_t>(token.top.size() * sizeof(token.top[0]));
  }
  return bytes;
}

void AppendTo(Delta& whole, Delta part) {
  whole.text += part.text;
  whole.token_ids.insert(whole.token_ids.end(), part.token_ids.begin(),
                         part.token_ids.end());
  whole.logprobs.insert(whole.logprobs.end(),
                        std::make_move_iterator(part.logprobs.begin()),
                        std::make_move_iterator(part.logprobs.end()));
}

}  // namespace

EventQueue::EventQueue(int64_t max_pending_bytes,
                       std::function<void()> on_ready)
    : max_pending_bytes_(max_pending_bytes), on_ready_(std::move(on_ready)) {}

bool EventQueue::Push(Delta delta) {
  bool was_empty;
  {
    MutexLock lock(&mu_);
    if (overflowed_ || finished_) return false;
    const int64_t bytes = SizeOf(delta);
    if (bytes > max_pending_bytes_ - pending_bytes_) {
      overflowed_ = true;
      return false;
    }
    pending_bytes_ += bytes;
    was_empty = IsEmpty();
    const auto same = std::find_if(
        pending_.begin(), pending_.end(),
        [&](const Delta& pending) { return pending.index == delta.index; });
    if (same == pending_.end()) {
      pending_.push_back(std::move(delta));
    } else {
      AppendTo(*same, std::move(delta));
    }
  }
  if (was_empty && on_ready_) on_ready_();
  return true;
}

void EventQueue::Complete(Completion completion) {
  bool was_empty;
  {
    MutexLock lock(&mu_);
    OVERFILL_CHECK(!finished_) << "a completion after the terminal event";
    if (overflowed_) return;
    was_empty = IsEmpty();
    completions_.push_back(std::move(completion));
  }
  if (was_empty && on_ready_) on_ready_();
}

absl::Status EventQueue::Finish(Terminal terminal) {
  bool was_empty;
  absl::Status status;
  {
    MutexLock lock(&mu_);
    OVERFILL_CHECK(!finished_) << "a second terminal event";
    finished_ = true;
    if (overflowed_ && terminal.status.ok()) {
      terminal.status =
          absl::ResourceExhaustedError("the client reads too slowly");
    }
    was_empty = IsEmpty();
    status = terminal.status;
    terminal_ = std::move(terminal);
  }
  if (was_empty && on_ready_) on_ready_();
  return status;
}

std::optional<Event> EventQueue::Pop() {
  MutexLock lock(&mu_);
  if (!pending_.empty()) {
    Event event = std::move(pending_.front());
    pending_.pop_front();
    pending_bytes_ -= SizeOf(std::get<Delta>(event));
    return event;
  }
  if (!completions_.empty()) {
    Event event = std::move(completions_.front());
    completions_.pop_front();
    return event;
  }
  if (terminal_.has_value()) {
    Event event = *std::move(terminal_);
    terminal_.reset();
    return event;
  }
  return std::nullopt;
}

bool EventQueue::is_finished() const {
  MutexLock lock(&mu_);
  return finished_;
}

bool EventQueue::IsEmpty() const {
  return pending_.empty() && completions_.empty() && !terminal_.has_value();
}

}  // namespace overfill
