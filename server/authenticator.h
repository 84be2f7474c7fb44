// Finds the tenant of a call by its bearer token.
#ifndef OVERFILL_SERVER_AUTHENTICATOR_H_
#define OVERFILL_SERVER_AUTHENTICATOR_H_

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/mutex.h"
#include "grpcpp/support/string_ref.h"
#include "server/reload.h"
#include "server/tenants.h"

namespace overfill {

// Thread-safe.
class Authenticator {
 public:
  using Metadata = std::multimap<grpc::string_ref, grpc::string_ref>;

  // Everyone is the tenant "", without limits.
  Authenticator();
  // Tenants from the file; an error says what is wrong with it.
  static absl::StatusOr<std::unique_ptr<Authenticator>> FromFile(
      const std::string& path);

  bool needs_token() const { return !path_.empty(); }

  // Why a caller is nobody, for the metrics.
  enum class Failure { kMissing, kMalformed, kUnknown };
  static const char* FailureName(Failure failure);

  // The tenant of `authorization: Bearer TOKEN`. UNAUTHENTICATED, the same for
  // every wrong token; `failure` says why.
  absl::StatusOr<std::shared_ptr<const Tenant>> Authenticate(
      const Metadata& metadata, Failure* failure) const;

  // Reads the file again. One that is bad, or gone, changes nothing; it is
  // logged once.
  Reload LookAgain();

 private:
  std::shared_ptr<const TenantTable> table() const;

  std::string path_;
  const std::shared_ptr<const Tenant> everyone_;
  mutable Mutex mu_;
  std::shared_ptr<const TenantTable> table_ ABSL_GUARDED_BY(mu_);
  Sha256Digest seen_ ABSL_GUARDED_BY(mu_) = {};  // of the file, or its error
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_AUTHENTICATOR_H_
