#include "server/certificates.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"
#include "openssl/err.h"
#include "openssl/evp.h"
#include "openssl/pem.h"
#include "openssl/ssl.h"
#include "openssl/x509.h"

namespace overfill {
namespace {

constexpr uint64_t kMaxPemBytes = 1 << 20;
// How often gRPC looks at the copies: its least.
constexpr unsigned int kWatchSeconds = 1;

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
using BioPtr = std::unique_ptr<BIO, Free>;
using X509Ptr = std::unique_ptr<X509, Free>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Free>;

absl::Status Bad(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

BioPtr Reader(const std::string& text) {
  return BioPtr(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// For encrypted files: nobody is there to type a password.
int NoPassword(char*, int, int, void*) { return 0; }

absl::StatusOr<std::vector<X509Ptr>> ReadCertificates(const std::string& pem,
                                                      const std::string& path) {
  std::vector<X509Ptr> found;
  const BioPtr bio = Reader(pem);
  while (X509* const next =
             PEM_read_bio_X509(bio.get(), nullptr, NoPassword, nullptr)) {
    found.emplace_back(next);
  }
  // The end of the file is an error, too, and the only one that is none.
  const auto last = ERR_peek_last_error();
  ERR_clear_error();
  if (found.empty() || ERR_GET_LIB(last) != ERR_LIB_PEM ||
      ERR_GET_REASON(last) != PEM_R_NO_START_LINE) {
    return Bad(path, "holds no certificates in PEM");
  }
  return found;
}

absl::StatusOr<KeyPtr> ReadKey(const std::string& pem,
                               const std::string& path) {
  KeyPtr key(
      PEM_read_bio_PrivateKey(Reader(pem).get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return Bad(path, "holds no private key in PEM, or an encrypted one");
  }
  return key;
}

std::string Date(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", time, absl::UTCTimeZone());
}

// Out of all bounds where it cannot be read.
absl::Time ToTime(const ASN1_TIME* time, absl::Time otherwise) {
  std::tm parts = {};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return otherwise;
  return absl::FromTM(parts, absl::UTCTimeZone());
}

absl::Time ExpiryOf(X509* certificate) {
  return ToTime(X509_get0_notAfter(certificate), absl::InfinitePast());
}

// The first end of a chain whose certificates are all valid now.
absl::StatusOr<absl::Time> CheckTimes(const std::vector<X509Ptr>& chain,
                                      const std::string& path) {
  absl::Time first = absl::InfiniteFuture();
  for (const X509Ptr& certificate : chain) {
    const absl::Time begin =
        ToTime(X509_get0_notBefore(certificate.get()), absl::InfiniteFuture());
    const absl::Time end = ExpiryOf(certificate.get());
    if (end <= absl::Now()) {
      return Bad(path,
                 absl::StrCat("a certificate has expired on ", Date(end)));
    }
    if (begin > absl::Now()) {
      return Bad(path, absl::StrCat("a certificate is not valid before ",
                                    Date(begin)));
    }
    first = std::min(first, end);
  }
  return first;
}

// OpenSSL's own checks, those of its security level among them: gRPC would find
// what they refuse when it is too late.
absl::Status CheckUsable(const std::vector<X509Ptr>& chain, EVP_PKEY* key,
                         const CertificatePaths& paths) {
  const std::unique_ptr<SSL_CTX, Free> context(SSL_CTX_new(TLS_method()));
  bool is_good = context != nullptr &&
                 SSL_CTX_use_certificate(context.get(), chain[0].get()) == 1;
  for (size_t i = 1; is_good && i < chain.size(); ++i) {
    is_good = SSL_CTX_add1_chain_cert(context.get(), chain[i].get()) == 1;
  }
  if (!is_good) {
    ERR_clear_error();
    return Bad(paths.certificate,
               "a certificate is not fit for TLS, such as by a short key");
  }
  const bool matches = SSL_CTX_use_PrivateKey(context.get(), key) == 1 &&
                       SSL_CTX_check_private_key(context.get()) == 1;
  ERR_clear_error();
  if (matches) return absl::OkStatus();
  return Bad(paths.key, absl::StrCat("is not the key of ", paths.certificate));
}

std::string TakeText(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return std::string(data, static_cast<size_t>(std::max(size, 0L)));
}

// Nothing but what was checked: a file may hold more.
std::string ToPem(const std::vector<X509Ptr>& certificates) {
  const BioPtr bio(BIO_new(BIO_s_mem()));
  for (const X509Ptr& certificate : certificates) {
    PEM_write_bio_X509(bio.get(), certificate.get());
  }
  return TakeText(bio.get());
}

std::string ToPem(EVP_PKEY* key) {
  const BioPtr bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr,
                           nullptr);
  return TakeText(bio.get());
}

}  // namespace

class Certificates::Copy {
 public:
  static absl::StatusOr<std::unique_ptr<Copy>> Create(const std::string& text) {
    std::unique_ptr<Copy> copy(new Copy);
    RETURN_IF_ERROR(copy->Replace(text));
    return copy;
  }
  ~Copy() {
    if (fd_ >= 0) close(fd_);
  }
  Copy(const Copy&) = delete;

  std::string path() const { return absl::StrCat("/proc/self/fd/", fd_); }

  // In one step: who opens the path gets all of the old or all of the new.
  absl::Status Replace(const std::string& text) {
    const int fd = memfd_create("overfill-certificates", MFD_CLOEXEC);
    if (fd < 0) return Failed("memfd_create");
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t count = write(fd, text.data() + done, text.size() - done);
      if (count < 0) {
        const absl::Status status = Failed("write");
        close(fd);
        return status;
      }
      done += static_cast<size_t>(count);
    }
    if (fd_ < 0) {
      fd_ = fd;
      return absl::OkStatus();
    }
    const int result = dup3(fd, fd_, O_CLOEXEC);
    const absl::Status status = result < 0 ? Failed("dup3") : absl::OkStatus();
    close(fd);
    return status;
  }

 private:
  Copy() = default;
  static absl::Status Failed(const char* call) {
    return absl::InternalError(absl::StrCat(
        "a copy of the certificates: ", call, ": ", std::strerror(errno)));
  }

  int fd_ = -1;
};

Certificates::Certificates(CertificatePaths paths) : paths_(std::move(paths)) {}
Certificates::~Certificates() = default;

absl::StatusOr<Certificates::Contents> Certificates::Read(
    const CertificatePaths& paths) {
  Contents contents;
  ASSIGN_OR_RETURN(const std::string chain,
                   ReadFile(paths.certificate, kMaxPemBytes));
  ASSIGN_OR_RETURN(const auto certificates,
                   ReadCertificates(chain, paths.certificate));
  ASSIGN_OR_RETURN(contents.server_expiry,
                   CheckTimes(certificates, paths.certificate));
  ASSIGN_OR_RETURN(const std::string key_text,
                   ReadFile(paths.key, kMaxPemBytes));
  ASSIGN_OR_RETURN(const KeyPtr key, ReadKey(key_text, paths.key));
  RETURN_IF_ERROR(CheckUsable(certificates, key.get(), paths));
  contents.identity = ToPem(certificates) + ToPem(key.get());
  if (paths.client_ca.empty()) return contents;
  ASSIGN_OR_RETURN(const std::string bundle,
                   ReadFile(paths.client_ca, kMaxPemBytes));
  ASSIGN_OR_RETURN(const auto authorities,
                   ReadCertificates(bundle, paths.client_ca));
  contents.client_ca = ToPem(authorities);
  contents.client_ca_expiry = absl::InfiniteFuture();
  for (const X509Ptr& authority : authorities) {
    // A bundle may keep old ones beside new ones.
    const absl::Time expiry = ExpiryOf(authority.get());
    if (expiry <= absl::Now()) continue;
    contents.client_ca_expiry = std::min(contents.client_ca_expiry, expiry);
  }
  if (contents.client_ca_expiry == absl::InfiniteFuture()) {
    return Bad(paths.client_ca, "all certificates in it have expired");
  }
  return contents;
}

absl::StatusOr<std::unique_ptr<Certificates>> Certificates::FromFiles(
    const CertificatePaths& paths) {
  ASSIGN_OR_RETURN(Contents contents, Read(paths));
  std::unique_ptr<Certificates> result(new Certificates(paths));
  ASSIGN_OR_RETURN(result->identity_, Copy::Create(contents.identity));
  if (!paths.client_ca.empty()) {
    ASSIGN_OR_RETURN(result->client_ca_, Copy::Create(contents.client_ca));
  }
  MutexLock lock(&result->mu_);
  result->contents_ = std::move(contents);
  return result;
}

std::shared_ptr<grpc::ServerCredentials> Certificates::credentials() const {
  namespace tls = grpc::experimental;
  const bool asks_clients = client_ca_ != nullptr;
  tls::TlsServerCredentialsOptions options(
      std::make_shared<tls::FileWatcherCertificateProvider>(
          identity_->path(), identity_->path(),
          asks_clients ? client_ca_->path() : "", kWatchSeconds));
  options.watch_identity_key_cert_pairs();
  if (asks_clients) options.watch_root_certs();
  options.set_cert_request_type(
      asks_clients ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                   : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  return tls::TlsServerCredentials(options);
}

Reload Certificates::LookAgain() {
  absl::StatusOr<Contents> contents = Read(paths_);
  MutexLock lock(&mu_);
  absl::Status status = contents.status();
  if (status.ok()) {
    if (contents->identity == contents_.identity &&
        contents->client_ca == contents_.client_ca) {
      last_error_.clear();
      return Reload::kUnchanged;
    }
    status = identity_->Replace(contents->identity);
    if (status.ok() && client_ca_ != nullptr) {
      status = client_ca_->Replace(contents->client_ca);
    }
  }
  if (!status.ok()) {
    if (last_error_ == status.message()) return Reload::kUnchanged;
    last_error_ = std::string(status.message());
    LogError(absl::StrCat("the certificates stay as they were: ", last_error_));
    return Reload::kFailed;
  }
  contents_ = *std::move(contents);
  last_error_.clear();
  LogInfo(absl::StrCat("read the certificates again; the server's ends on ",
                       Date(contents_.server_expiry)));
  return Reload::kLoaded;
}

absl::Time Certificates::server_expiry() const {
  MutexLock lock(&mu_);
  return contents_.server_expiry;
}

std::optional<absl::Time> Certificates::client_ca_expiry() const {
  if (client_ca_ == nullptr) return std::nullopt;
  MutexLock lock(&mu_);
  return contents_.client_ca_expiry;
}

}  // namespace overfill
