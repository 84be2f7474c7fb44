// How a program of ours reaches a server: the target, TLS and the token.
#ifndef OVERFILL_CLIENT_CONNECTION_H_
#define OVERFILL_CLIENT_CONNECTION_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/flags.h"
#include "grpcpp/channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace overfill {

struct ConnectionOptions {
  std::string target = "127.0.0.1:50051";
  bool tls = false;
  // PEM files; each of them turns TLS on.
  std::string tls_ca = "";    // empty: the system's
  std::string tls_cert = "";  // with the key: for servers that ask for one
  std::string tls_key = "";
  std::string tls_server_name = "";  // empty: the target's
  std::string token_file = "";       // empty: none
};

void AddConnectionFlags(FlagSet& flags, ConnectionOptions* options);

// The files are read once, when it is made. Immutable, thread-safe.
class Connection {
 public:
  // INVALID_ARGUMENT or NOT_FOUND is one line: a file that cannot be read, a
  // certificate without its key, a token that cannot stand in a header or that
  // would cross a network in the clear.
  static absl::StatusOr<Connection> Create(const ConnectionOptions& options);

  // Each call of the channel brings the token.
  std::shared_ptr<grpc::Channel> NewChannel(
      grpc::ChannelArguments arguments = {}) const;

  const std::string& target() const { return options_.target; }

 private:
  explicit Connection(ConnectionOptions options)
      : options_(std::move(options)) {}
  bool uses_tls() const;

  ConnectionOptions options_;
  std::string ca_;
  std::string certificate_;
  std::string key_;
  std::string token_;
};

}  // namespace overfill

#endif  // OVERFILL_CLIENT_CONNECTION_H_
