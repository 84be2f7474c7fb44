#include "client/connection.h"

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/client_interceptor.h"
#include "grpcpp/support/interceptor.h"

namespace overfill {
namespace {

constexpr uint64_t kMaxPemBytes = 1 << 20;
constexpr uint64_t kMaxTokenBytes = 4096;

// Puts the token into each call's metadata. gRPC's own call credentials do so
// on TLS alone.
class TokenInterceptor : public grpc::experimental::Interceptor {
 public:
  explicit TokenInterceptor(const std::string* header) : header_(header) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* batch) override {
    using Point = grpc::experimental::InterceptionHookPoints;
    if (batch->QueryInterceptionHookPoint(Point::PRE_SEND_INITIAL_METADATA)) {
      batch->GetSendInitialMetadata()->insert({"authorization", *header_});
    }
    batch->Proceed();
  }

 private:
  const std::string* const header_;
};

class TokenInterceptorFactory
    : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit TokenInterceptorFactory(absl::string_view token)
      : header_(absl::StrCat("Bearer ", token)) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo*) override {
    return new TokenInterceptor(&header_);
  }

 private:
  const std::string header_;
};

bool IsOnThisMachine(absl::string_view target) {
  for (const absl::string_view host :
       {"localhost:", "127.", "[::1]:", "unix:"}) {
    if (absl::StartsWith(target, host)) return true;
  }
  return false;
}

absl::Status ReadPem(const std::string& path, std::string& target) {
  if (path.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(target, ReadFile(path, kMaxPemBytes));
  return absl::OkStatus();
}

}  // namespace

void AddConnectionFlags(FlagSet& flags, ConnectionOptions* options) {
  flags.AddString("target", "HOST:PORT", "the server", &options->target);
  flags.AddBool("tls", "TLS, by the system's CAs", &options->tls);
  flags.AddString("tls_ca", "FILE", "TLS, by this CA, PEM", &options->tls_ca);
  flags.AddString("tls_cert", "FILE", "the client's own certificate, PEM",
                  &options->tls_cert);
  flags.AddString("tls_key", "FILE", "its key, PEM", &options->tls_key);
  flags.AddString("tls_server_name", "NAME",
                  "name in the server's certificate, where it is not the "
                  "target's",
                  &options->tls_server_name);
  flags.AddString("token_file", "FILE", "bearer token to call with",
                  &options->token_file);
}

absl::StatusOr<Connection> Connection::Create(
    const ConnectionOptions& options) {
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return absl::InvalidArgumentError(
        "--tls_cert and --tls_key: one needs the other");
  }
  Connection result(options);
  if (!options.token_file.empty() && !result.uses_tls() &&
      !IsOnThisMachine(options.target)) {
    return absl::InvalidArgumentError(
        "--token_file: without TLS others could read it on the way to "
        "another machine; give --tls or --tls_ca");
  }
  RETURN_IF_ERROR(ReadPem(options.tls_ca, result.ca_));
  RETURN_IF_ERROR(ReadPem(options.tls_cert, result.certificate_));
  RETURN_IF_ERROR(ReadPem(options.tls_key, result.key_));
  if (options.token_file.empty()) return result;
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(options.token_file, kMaxTokenBytes));
  result.token_ = std::string(absl::StripAsciiWhitespace(text));
  for (const char c : result.token_) {
    if (absl::ascii_isgraph(static_cast<unsigned char>(c))) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(options.token_file, ": more than one word of ASCII"));
  }
  if (result.token_.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.token_file, ": no token in it"));
  }
  return result;
}

bool Connection::uses_tls() const {
  return options_.tls || !options_.tls_ca.empty() ||
         !options_.tls_cert.empty() || !options_.tls_server_name.empty();
}

std::shared_ptr<grpc::Channel> Connection::NewChannel(
    grpc::ChannelArguments arguments) const {
  std::shared_ptr<grpc::ChannelCredentials> credentials =
      grpc::InsecureChannelCredentials();
  if (uses_tls()) {
    credentials = grpc::SslCredentials({.pem_root_certs = ca_,
                                        .pem_private_key = key_,
                                        .pem_cert_chain = certificate_});
  }
  if (!options_.tls_server_name.empty()) {
    arguments.SetSslTargetNameOverride(options_.tls_server_name);
  }
  std::vector<
      std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>>
      interceptors;
  if (!token_.empty()) {
    interceptors.push_back(std::make_unique<TokenInterceptorFactory>(token_));
  }
  return grpc::experimental::CreateCustomChannelWithInterceptors(
      options_.target, credentials, arguments, std::move(interceptors));
}

}  // namespace overfill
