// Who has had how much: fair shares between tenants, in tokens.
#ifndef OVERFILL_SCHEDULER_FAIR_SHARE_H_
#define OVERFILL_SCHEDULER_FAIR_SHARE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

namespace overfill {

// Virtual token counters (Sheng et al., "Fairness in Serving Large Language
// Models", OSDI 2024): a tenant's counter grows with the tokens that it is
// served, and who has the least counter is next. A tenant that comes to wait
// is lifted to the least counter of those who wait, so nobody is repaid for
// having been idle, and nobody waits for another's past.
//
// Where each start is the least counter's and is charged with its prompt, the
// counters of two tenants that both wait differ by at most
//   kPromptWeight * L + kDecodeWeight * A,
// with L tokens in the longest prompt, and A tokens of answers that all
// running requests may come to together: once a tenant is ahead it starts
// nothing, and only what it has running moves it on. While two tenants keep
// waiting, what they are served differs by at most twice that.
//
// Not thread-safe.
class FairShare {
 public:
  static constexpr int64_t kPromptWeight = 1;
  static constexpr int64_t kDecodeWeight = 2;
  // Tenants without a request that are remembered for what they are ahead.
  static constexpr size_t kMaxRemembered = 4096;

  // In the order of a request's life: it comes to wait, it runs, it ends
  // (which it may while it waits).
  void Arrive(absl::string_view tenant);
  void Start(absl::string_view tenant);
  void Leave(absl::string_view tenant, bool was_waiting);

  // What a tenant with a request is served: the prompt when it starts, each
  // token of an answer when it is made. Neither is negative.
  void Charge(absl::string_view tenant, int64_t prompt_tokens,
              int64_t decode_tokens);

  // Of a tenant without a request: what it would have if it came now.
  int64_t counter(absl::string_view tenant) const;

  // Those with requests and those remembered.
  size_t num_tenants() const { return accounts_.size(); }

 private:
  struct Account {
    int64_t counter = 0;
    int32_t num_waiting = 0;
    int32_t num_running = 0;
  };
  using Accounts = std::map<std::string, Account, std::less<>>;
  // The names are the keys of accounts_.
  using ByCounter = std::set<std::pair<int64_t, absl::string_view>>;

  Accounts::iterator Find(absl::string_view tenant);
  void StopWaiting(Accounts::iterator it);
  void RaiseFloor();

  Accounts accounts_;
  ByCounter waiting_;  // have a request that waits
  // Have no request, and a counter above the floor. Once the floor has reached
  // it there is nothing to remember: they would be lifted as high.
  ByCounter departed_;
  // What a tenant that comes to wait is lifted to. Never falls.
  int64_t floor_ = 0;
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_FAIR_SHARE_H_
