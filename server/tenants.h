// Who may call: tenants, their tokens and limits, from a file.
#ifndef OVERFILL_SERVER_TENANTS_H_
#define OVERFILL_SERVER_TENANTS_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/sha256.h"

namespace overfill {

// Above every priority that a request can have.
inline constexpr int32_t kAnyPriority = std::numeric_limits<int32_t>::max();

// Zero: no bound of its own.
struct TenantLimits {
  int32_t max_requests_in_flight = 0;
  int64_t max_tokens_per_minute = 0;  // of prompts and answers
  int32_t max_priority = 0;           // a request of a higher one is refused
};

struct Tenant {
  std::string name;
  TenantLimits limits;
};

// Immutable.
class TenantTable {
 public:
  static constexpr size_t kMaxFileBytes = 4 << 20;
  static constexpr size_t kMaxTenants = 1000;
  static constexpr size_t kMaxTokens = 10'000;

  // `text` is JSON; `origin`, the file's name, begins each error:
  //   {"tenants": [{"name": "team-a", "token_sha256": ["<64 hex digits>"],
  //                 "max_requests_in_flight": 8, "max_tokens_per_minute": 6000,
  //                 "max_priority": 0}]}
  // The limits may be absent. A member of another name is an error: a limit
  // that is misspelt would be none. INVALID_ARGUMENT never quotes a hash.
  static absl::StatusOr<TenantTable> Parse(absl::string_view text,
                                           absl::string_view origin);

  // Whose token it is, or null. Looks at every hash in full, so that its time
  // says nothing of what they are.
  std::shared_ptr<const Tenant> Find(absl::string_view token) const;

  const std::vector<std::shared_ptr<const Tenant>>& tenants() const {
    return tenants_;
  }
  size_t num_tokens() const { return tokens_.size(); }

 private:
  struct Token {
    Sha256Digest digest;
    std::shared_ptr<const Tenant> tenant;
  };

  std::vector<std::shared_ptr<const Tenant>> tenants_;
  std::vector<Token> tokens_;
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_TENANTS_H_
