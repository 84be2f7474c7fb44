#include "server/config.h"

#include <arpa/inet.h>

#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

constexpr int32_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

// Flags that the design names and this version does not have: a server that
// took them and did nothing would be wrong in silence.
constexpr std::pair<const char*, const char*> kNotYet[] = {
    {"prefill_device", "not supported yet; --device holds both models"},
    {"decode_device", "not supported yet; --device holds both models"},
};

absl::Status Invalid(absl::string_view message) {
  return absl::InvalidArgumentError(message);
}

absl::Status ParseWeights(absl::string_view text, DType& weights) {
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kInt8}) {
    if (text != DTypeName(dtype)) continue;
    weights = dtype;
    return absl::OkStatus();
  }
  return Invalid("must be bf16, f32 or int8");
}

void AddModelFlags(FlagSet& flags, ServerConfig& config) {
  flags.AddString("prefill_model", "DIR", "checkpoint of the full model",
                  &config.prefill_model);
  flags.AddString("decode_model", "DIR", "checkpoint of the pruned model",
                  &config.decode_model);
  flags.AddString("kv_map", "FILE",
                  "how the full model's KV becomes the pruned model's; absent: "
                  "as the decode model's overfill.json says, else identity",
                  &config.kv_map);
  flags.Add("load_format", "safetensors|dummy",
            "dummy: seeded noise in the shapes of config.json (safetensors)",
            [&config](absl::string_view text) {
              if (text == "safetensors") {
                config.load_format = LoadFormat::kSafetensors;
              } else if (text == "dummy") {
                config.load_format = LoadFormat::kDummy;
              } else {
                return Invalid("must be safetensors or dummy");
              }
              return absl::OkStatus();
            });
  flags.Add("weights", "bf16|f32|int8", "type of the products' weights (bf16)",
            [&config](absl::string_view text) {
              return ParseWeights(text, config.weights);
            });
  flags.Add("prefill_weights", "bf16|f32|int8",
            "the same, of the full model alone (--weights)",
            [&config](absl::string_view text) {
              return ParseWeights(text, config.prefill_weights.emplace());
            });
  flags.Add("decode_weights", "bf16|f32|int8",
            "the same, of the pruned model alone (--weights)",
            [&config](absl::string_view text) {
              return ParseWeights(text, config.decode_weights.emplace());
            });
}

void AddDeviceFlags(FlagSet& flags, ServerConfig& config) {
  flags.Add("device", "cpu|cuda", "where both models run (cpu)",
            [&config](absl::string_view text) {
              if (text != "cpu" && text.substr(0, 4) != "cuda") {
                return Invalid("must be cpu or cuda");
              }
              config.device = std::string(text);
              return absl::OkStatus();
            });
  flags.AddInt32("threads",
                 "CPU threads; 0: what the cgroup and the affinity mask allow",
                 0, 4096, &config.threads);
  flags.Add("cpu_isa", "auto|avx2|avx512|avx512_bf16",
            "highest instruction set to use (auto)",
            [&config](absl::string_view text) {
              if (text != "auto" && text != "avx2" && text != "avx512" &&
                  text != "avx512_bf16") {
                return Invalid("must be auto, avx2, avx512 or avx512_bf16");
              }
              config.cpu_isa = std::string(text);
              return absl::OkStatus();
            });
  flags.AddBool("batch_invariant",
                "logits that do not depend on other requests, to the last bit",
                &config.batch_invariant);
}

FlagSet::Setter RequiredHostPort(HostPort* target) {
  return [=](absl::string_view text) -> absl::Status {
    ASSIGN_OR_RETURN(*target, ParseHostPort(text));
    return absl::OkStatus();
  };
}

// Empty switches it off.
FlagSet::Setter OptionalHostPort(HostPort* target, bool* enabled) {
  return [=](absl::string_view text) -> absl::Status {
    *enabled = !text.empty();
    return text.empty() ? absl::OkStatus() : RequiredHostPort(target)(text);
  };
}

// A duration between `min` and a year. Its help ends with the default.
void AddDuration(FlagSet& flags, std::string name, absl::string_view help,
                 absl::Duration min, absl::Duration* target) {
  constexpr absl::Duration kLongest = absl::Hours(365 * 24);
  flags.Add(std::move(name), "DURATION",
            absl::StrCat(help, " (", absl::FormatDuration(*target), ")"),
            [=](absl::string_view text) {
              absl::Duration duration;
              if (!absl::ParseDuration(text, &duration)) {
                return Invalid("must be a duration such as 30s or 500ms");
              }
              if (duration < min || duration > kLongest) {
                return Invalid(absl::StrCat("must be between ",
                                            absl::FormatDuration(min), " and ",
                                            absl::FormatDuration(kLongest)));
              }
              *target = duration;
              return absl::OkStatus();
            });
}

void AddQueueFlags(FlagSet& flags, ServerConfig& config) {
  flags.AddInt32("max_queued_requests", "waiting requests before refusals", 1,
                 1 << 24, &config.max_queued_requests);
  flags.AddInt("max_queued_tokens",
               "prompt tokens of waiting requests before refusals", 1,
               kMaxInt64, &config.max_queued_tokens);
  flags.AddInt("max_queued_bytes",
               "bytes of waiting requests' prompts before refusals", 1,
               kMaxInt64, &config.max_queued_bytes);
  flags.AddInt32("max_tenant_queued_requests",
                 "waiting requests of one tenant; 0: no bound of its own", 0,
                 1 << 24, &config.max_tenant_queued_requests);
  flags.AddInt("max_tenant_queued_tokens",
               "waiting prompt tokens of one tenant; 0: no bound of its own", 0,
               kMaxInt64, &config.max_tenant_queued_tokens);
  flags.AddInt("max_tenant_queued_bytes",
               "waiting prompt bytes of one tenant; 0: no bound of its own", 0,
               kMaxInt64, &config.max_tenant_queued_bytes);
  AddDuration(flags, "max_request_duration",
              "a request without an earlier deadline ends after it",
              absl::Milliseconds(1), &config.max_request_duration);
  AddDuration(flags, "priority_ageing",
              "waiting so long counts as one more of priority; 0: never",
              absl::ZeroDuration(), &config.priority_ageing);
}

void AddServingFlags(FlagSet& flags, ServerConfig& config) {
  flags.Add(
      "listen", "HOST:PORT",
      absl::StrCat("address of the gRPC API (", config.listen.ToString(), ")"),
      RequiredHostPort(&config.listen));
  flags.Add("metrics_listen", "HOST:PORT",
            absl::StrCat("address of GET /metrics, IPv4; empty: none (",
                         config.metrics_listen.ToString(), ")"),
            OptionalHostPort(&config.metrics_listen, &config.metrics_enabled));
  flags.AddInt("kv_cache_bytes",
               "memory of the KV stores; 0: a share of the device's", 0,
               kMaxInt64, &config.kv_cache_bytes);
  flags.AddInt("swap_bytes",
               "host memory for the KV of preempted requests; 0: none, -1: as "
               "much as the KV stores, at most an eighth of the memory",
               -1, kMaxInt64, &config.swap_bytes);
  flags.AddInt32("block_tokens", "tokens of one KV block", 1, 1024,
                 &config.block_tokens);
  flags.AddInt32("max_sequence_tokens",
                 "prompt and answer of one request; 0: what the models allow",
                 0, kMaxInt32, &config.max_sequence_tokens);
  flags.AddInt32("prefill_chunk_tokens", "prompt tokens of one step", 1,
                 1 << 20, &config.prefill_chunk_tokens);
  flags.AddInt32("max_decode_batch", "sequences of one step", 1, 1 << 16,
                 &config.max_decode_batch);
  AddDuration(flags, "itl_target",
              "time between two tokens of a running answer to keep to while "
              "prompts are read; 0: from what it is without them",
              absl::ZeroDuration(), &config.itl_target);
  flags.AddBool("prefix_cache",
                "keep prompts' KV for prompts that begin alike; "
                "=false: do not (true)",
                &config.prefix_cache);
  AddDuration(flags, "transfer_lease",
              "how long a copy of KV may take before it is given up",
              absl::Milliseconds(1), &config.transfer_lease);
  flags.AddInt("max_request_bytes", "largest message of a client", 1 << 10,
               1 << 30, &config.max_request_bytes);
  flags.AddInt32("max_open_streams", "streams of Generate before refusals", 1,
                 1 << 20, &config.max_open_streams);
  flags.AddInt32("tokenizer_threads", "threads that tokenize large prompts", 1,
                 256, &config.tokenizer_threads);
  flags.Add("health_listen", "HOST:PORT",
            "plaintext address of grpc.health.v1 alone, for probes; absent: "
            "none",
            OptionalHostPort(&config.health_listen, &config.health_enabled));
  AddDuration(flags, "drain_delay",
              "how long requests are still taken after SIGTERM, while health "
              "says NOT_SERVING",
              absl::ZeroDuration(), &config.drain_delay);
  flags.AddDuration("drain_timeout", "how long streams may go on after SIGTERM",
                    &config.drain_timeout);
  AddDuration(flags, "stuck_step_timeout",
              "work without a finished step before health says NOT_SERVING; "
              "0s: never",
              absl::ZeroDuration(), &config.stuck_step_timeout);
}

void AddSecurityFlags(FlagSet& flags, ServerConfig& config) {
  flags.AddString("tls_cert", "FILE",
                  "the server's certificate and its issuers', PEM; absent: "
                  "plaintext",
                  &config.tls_cert);
  flags.AddString("tls_key", "FILE", "the certificate's key, PEM",
                  &config.tls_key);
  flags.AddString("tls_client_ca", "FILE",
                  "clients must show a certificate of this CA, PEM; absent: "
                  "they need none",
                  &config.tls_client_ca);
  flags.AddString("auth_tokens", "FILE",
                  "tenants and the hashes of their tokens, JSON; absent: "
                  "everyone may call",
                  &config.auth_tokens);
  AddDuration(flags, "tls_refresh",
              "how often certificates and tokens are looked at for changes",
              absl::Seconds(1), &config.tls_refresh);
  flags.AddBool("allow_plaintext",
                "without TLS, listen on other than loopback addresses, too",
                &config.allow_plaintext);
  AddDuration(flags, "max_connection_age",
              "after it a connection takes no new calls; 0: never",
              absl::ZeroDuration(), &config.max_connection_age);
  AddDuration(flags, "max_connection_age_grace",
              "how long the calls of such a connection may go on",
              absl::ZeroDuration(), &config.max_connection_age_grace);
  flags.AddInt32("max_connection_streams", "open calls of one connection", 1,
                 1 << 20, &config.max_connection_streams);
}

void AddLogFlags(FlagSet& flags, ServerConfig& config) {
  flags.Add("log_format", "text|json", "form of a line of the log (text)",
            [&config](absl::string_view text) {
              if (text != "text" && text != "json") {
                return Invalid("must be text or json");
              }
              config.log_format =
                  text == "json" ? LogFormat::kJson : LogFormat::kText;
              return absl::OkStatus();
            });
  flags.AddBool("log_requests",
                "a line for each request that ended; =false: none (true)",
                &config.log_requests);
  flags.AddBool("log_prompts", "prompts in those lines, too",
                &config.log_prompts);
}

void AddFlags(FlagSet& flags, ServerConfig& config) {
  AddModelFlags(flags, config);
  AddDeviceFlags(flags, config);
  AddServingFlags(flags, config);
  AddQueueFlags(flags, config);
  AddSecurityFlags(flags, config);
  AddLogFlags(flags, config);
  for (const auto& [name, reason] : kNotYet) flags.Refuse(name, reason);
  flags.ReadFileAndEnvironment("OVERFILL");
}

absl::Status CheckTimes(const ServerConfig& config) {
  if (config.drain_delay > absl::ZeroDuration() &&
      config.drain_delay >= config.drain_timeout) {
    return Invalid("--drain_delay: must be shorter than --drain_timeout");
  }
  if (config.max_connection_age > absl::ZeroDuration() &&
      config.max_connection_age < absl::Seconds(1)) {
    return Invalid("--max_connection_age: must be 0 or at least 1s");
  }
  return absl::OkStatus();
}

absl::Status CheckSecurity(const ServerConfig& config) {
  if (config.tls_cert.empty() != config.tls_key.empty()) {
    return Invalid("--tls_cert and --tls_key: one needs the other");
  }
  if (!config.tls_cert.empty()) return absl::OkStatus();
  if (!config.tls_client_ca.empty()) {
    return Invalid("--tls_client_ca: needs --tls_cert and --tls_key");
  }
  if (!config.listen.is_loopback() && !config.allow_plaintext) {
    return Invalid(absl::StrCat(
        "--listen: other machines reach ", config.listen.ToString(),
        "; give --tls_cert and --tls_key, or --allow_plaintext"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string HostPort::ToString() const {
  const bool is_v6 = host.find(':') != std::string::npos;
  return is_v6 ? absl::StrCat("[", host, "]:", port)
               : absl::StrCat(host, ":", port);
}

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const absl::Status bad = Invalid("must be HOST:PORT, such as 0.0.0.0:50051");
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return bad;
  HostPort result;
  absl::string_view host = text.substr(0, colon);
  if (!host.empty() && host.front() == '[') {
    if (host.back() != ']') return bad;
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != absl::string_view::npos) {
    return bad;
  }
  result.host = host.empty() ? "0.0.0.0" : std::string(host);
  if (!absl::SimpleAtoi(text.substr(colon + 1), &result.port) ||
      result.port < 0 || result.port > 65535) {
    return bad;
  }
  return result;
}

bool HostPort::is_loopback() const {
  in_addr v4;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) {
    return ntohl(v4.s_addr) >> 24 == 127;
  }
  return host == "localhost" || host == "::1";
}

std::string ServerHelp() {
  ServerConfig defaults;
  FlagSet flags;
  AddFlags(flags, defaults);
  return absl::StrCat(
      "overfill-server --prefill_model=DIR --decode_model=DIR [flags]\n\n"
      "Serves an OverFill pair over gRPC: the full model reads the prompt, the "
      "pruned\nmodel writes the answer.\n\n",
      flags.Help(),
      "  --help\n      this text\n  --version\n      the version\n\n"
      "Each flag may also stand in the environment as OVERFILL_NAME, or in "
      "--flagfile;\nthe command line wins over the file, and the file over the "
      "environment.\n");
}

absl::StatusOr<CommandLine> ParseCommandLine(
    const std::vector<std::string>& args, const FlagSet::GetEnv& get_env) {
  CommandLine result;
  for (const std::string& arg : args) {
    if (arg == "--help" || arg == "-h") {
      result.action = CommandLine::Action::kHelp;
      return result;
    }
    if (arg == "--version") {
      result.action = CommandLine::Action::kVersion;
      return result;
    }
  }
  FlagSet flags;
  AddFlags(flags, result.config);
  RETURN_IF_ERROR(flags.Parse(args, nullptr, get_env));
  if (result.config.prefill_model.empty()) {
    return Invalid("--prefill_model: needed; see --help");
  }
  if (result.config.decode_model.empty()) {
    return Invalid("--decode_model: needed; see --help");
  }
  RETURN_IF_ERROR(CheckTimes(result.config));
  RETURN_IF_ERROR(CheckSecurity(result.config));
  return result;
}

}  // namespace overfill
