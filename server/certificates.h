// The server's certificate and its clients' CA, from files that may change.
#ifndef OVERFILL_SERVER_CERTIFICATES_H_
#define OVERFILL_SERVER_CERTIFICATES_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "grpcpp/security/server_credentials.h"
#include "server/reload.h"

namespace overfill {

// PEM files.
struct CertificatePaths {
  std::string certificate;  // the server's, then its issuers'
  std::string key;          // of the first certificate, not encrypted
  std::string client_ca;    // whose certificates clients must show; "": none
};

// Checked as a whole before gRPC sees any of it: gRPC's own file watcher takes
// what it finds, and with a key that is not the certificate's, as a rotation
// leaves for a moment, it refuses every client from then on. So the watcher
// watches copies in memory (memfd), which change only to what is good, in one
// step; see docs/decisions/0016. Thread-safe.
class Certificates {
 public:
  // An error names the file and what is wrong: not there, not PEM, a key that
  // is not the certificate's, expired or not valid yet, not fit for TLS.
  static absl::StatusOr<std::unique_ptr<Certificates>> FromFiles(
      const CertificatePaths& paths);
  ~Certificates();
  Certificates(const Certificates&) = delete;

  // TLS 1.2 or later. New handshakes use what the last good look found, within
  // two seconds; open connections stay as they are.
  std::shared_ptr<grpc::ServerCredentials> credentials() const;

  // Reads the files again. What is bad changes nothing; it is logged once.
  Reload LookAgain();

  // The first end in the server's chain, and the first among the clients' CAs
  // that have not ended: of those in use.
  absl::Time server_expiry() const;
  std::optional<absl::Time> client_ca_expiry() const;

 private:
  // A file in memory behind a descriptor that stays the same.
  class Copy;
  struct Contents {
    std::string identity;   // certificates, then the key
    std::string client_ca;  // "": none
    absl::Time server_expiry;
    absl::Time client_ca_expiry;
  };

  explicit Certificates(CertificatePaths paths);
  static absl::StatusOr<Contents> Read(const CertificatePaths& paths);

  const CertificatePaths paths_;
  std::unique_ptr<Copy> identity_;
  std::unique_ptr<Copy> client_ca_;  // null: clients need no certificate
  mutable Mutex mu_;
  Contents contents_ ABSL_GUARDED_BY(mu_);
  std::string last_error_ ABSL_GUARDED_BY(mu_);
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_CERTIFICATES_H_
