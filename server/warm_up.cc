#include "server/warm_up.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

constexpr int32_t kAnswerTokens = 2;  // one of each model
constexpr int32_t kPromptTokens = 16;

// Shared with the queue's callback, which may outlive the wait.
struct Waiter {
  Mutex mu;
  CondVar changed;
  bool ready ABSL_GUARDED_BY(mu) = false;

  void Notify() {
    MutexLock lock(&mu);
    ready = true;
    changed.NotifyAll();
  }
  bool WaitUntil(SteadyTime end) {
    MutexLock lock(&mu);
    while (!ready) {
      const auto left = end - std::chrono::steady_clock::now();
      if (left <= std::chrono::nanoseconds(0)) return false;
      changed.WaitFor(&mu, left);
    }
    ready = false;
    return true;
  }
};

absl::Status Failed(const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("warm-up: ", status.message()));
}

}  // namespace

absl::Status WarmUp(Scheduler& scheduler, int32_t token_id,
                    int32_t max_sequence_tokens, absl::Duration timeout) {
  Request request;
  request.request_id = "warm-up";
  request.prompt_ids.assign(
      std::clamp(max_sequence_tokens - kAnswerTokens, 1, kPromptTokens),
      token_id);
  request.sampling.temperature = 0;
  request.stop_rules.max_tokens = std::clamp(
      max_sequence_tokens - static_cast<int32_t>(request.prompt_ids.size()), 1,
      kAnswerTokens);
  request.arrival = std::chrono::steady_clock::now();
  request.deadline = request.arrival + absl::ToChronoNanoseconds(timeout);
  const SteadyTime deadline = request.deadline;

  const auto waiter = std::make_shared<Waiter>();
  const auto events = std::make_shared<EventQueue>(
      int64_t{1} << 20, [waiter] { waiter->Notify(); });
  const auto uid = scheduler.Submit(std::move(request), events);
  if (!uid.ok()) return Failed(uid.status());
  while (waiter->WaitUntil(deadline)) {
    while (std::optional<Event> event = events->Pop()) {
      const Terminal* terminal = std::get_if<Terminal>(&*event);
      if (terminal == nullptr) continue;
      // Until it has been told to whoever counts: what is counted from now on
      // is others' requests.
      scheduler.WaitIdle(absl::ToChronoNanoseconds(timeout));
      return terminal->status.ok() ? absl::OkStatus()
                                   : Failed(terminal->status);
    }
  }
  scheduler.Cancel(*uid, absl::DeadlineExceededError("too slow"));
  return absl::DeadlineExceededError("warm-up: no answer in time");
}

}  // namespace overfill
