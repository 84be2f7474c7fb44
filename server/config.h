// What the server's flags say.
#ifndef OVERFILL_SERVER_CONFIG_H_
#define OVERFILL_SERVER_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/flags.h"
#include "base/log.h"
#include "engine/pair.h"
#include "kernels/tensor.h"

namespace overfill {

// HOST:PORT. An empty host is 0.0.0.0, every IPv4 interface.
struct HostPort {
  std::string host;
  int32_t port = 0;  // 0: one that is free
  std::string ToString() const;
  // Only this machine reaches it. False where a name is not known to be so.
  bool is_loopback() const;
};
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);

struct ServerConfig {
  std::string prefill_model;
  std::string decode_model;
  std::string kv_map;  // empty: as the pair says, else identity
  std::string device = "cpu";
  int32_t threads = 0;  // 0: as many as the machine lends
  std::string cpu_isa = "auto";
  bool batch_invariant = false;
  DType weights = DType::kBF16;
  std::optional<DType> prefill_weights;  // unset: weights
  std::optional<DType> decode_weights;
  LoadFormat load_format = LoadFormat::kSafetensors;

  HostPort listen = {"127.0.0.1", 50051};
  HostPort metrics_listen = {"127.0.0.1", 9464};
  bool metrics_enabled = true;
  HostPort health_listen;
  bool health_enabled = false;

  std::string tls_cert;  // empty: plaintext
  std::string tls_key;
  std::string tls_client_ca;  // empty: clients need no certificate
  absl::Duration tls_refresh = absl::Seconds(10);
  bool allow_plaintext = false;
  std::string auth_tokens;  // empty: everyone may call
  absl::Duration max_connection_age = absl::ZeroDuration();  // 0: for ever
  absl::Duration max_connection_age_grace = absl::Minutes(5);
  int32_t max_connection_streams = 1024;

  LogFormat log_format = LogFormat::kText;
  bool log_requests = true;
  bool log_prompts = false;

  int64_t kv_cache_bytes = 0;  // 0: a share of the device's memory
  int64_t swap_bytes = -1;     // -1: automatic, 0: none
  int32_t block_tokens = 16;
  int32_t max_sequence_tokens = 0;  // 0: what both models can read
  int32_t prefill_chunk_tokens = 512;
  int32_t max_decode_batch = 64;
  int32_t max_queued_requests = 256;
  int64_t max_queued_tokens = 1 << 20;
  int64_t max_queued_bytes = 64 << 20;
  // 0: no bound of its own.
  int32_t max_tenant_queued_requests = 0;
  int64_t max_tenant_queued_tokens = 0;
  int64_t max_tenant_queued_bytes = 0;
  int64_t max_request_bytes = 4 << 20;
  absl::Duration itl_target = absl::ZeroDuration();  // 0: automatic
  absl::Duration max_request_duration = absl::Hours(1);
  absl::Duration priority_ageing = absl::Seconds(1);  // 0: off
  absl::Duration transfer_lease = absl::Seconds(10);
  bool prefix_cache = true;
  int32_t max_open_streams = 1024;
  int32_t tokenizer_threads = 1;
  absl::Duration drain_delay = absl::ZeroDuration();
  absl::Duration drain_timeout = absl::Seconds(30);
  absl::Duration stuck_step_timeout = absl::Seconds(60);
};

struct CommandLine {
  enum class Action { kServe, kHelp, kVersion };
  Action action = Action::kServe;
  ServerConfig config;
};

// The text of --help.
std::string ServerHelp();

// `args` without the program's name. INVALID_ARGUMENT is one line. A missing
// model is an error only for kServe.
absl::StatusOr<CommandLine> ParseCommandLine(
    const std::vector<std::string>& args, const FlagSet::GetEnv& get_env);

}  // namespace overfill

#endif  // OVERFILL_SERVER_CONFIG_H_
