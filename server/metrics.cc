#include "server/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

namespace overfill {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Histogram;
using Buckets = Histogram::BucketBoundaries;
using HistogramFamily = prometheus::Family<Histogram>;

// A decode step of a small model on a fast device takes some 100 us.
const Buckets kStepSeconds = {.0001, .0002, .0005, .001, .002, .005,
                              .01,   .02,   .05,   .1,   .2,   .5,
                              1,     2,     5,     10,   30};
// Time to the next token.
const Buckets kTokenSeconds = {.0005, .001, .002, .005, .01, .02, .03,
                               .04,   .05,  .075, .1,   .15, .2,  .3,
                               .5,    .75,  1,    2.5,  5,   10,  30};
// What a user waits for.
const Buckets kWaitSeconds = {.001, .002, .005, .01, .02, .04, .06, .08,
                              .1,   .25,  .5,   .75, 1,   2.5, 5,   7.5,
                              10,   20,   40,   80,  160, 320, 640};
const Buckets kMigrationSeconds = {.00001, .0001, .0002, .0005, .001,
                                   .002,   .005,  .01,   .02,   .05,
                                   .1,     .2,    .5,    1,     5};
const Buckets kBytes = {1 << 10, 1 << 13, 1 << 16, 1 << 19, 1 << 20, 1 << 22,
                        1 << 24, 1 << 26, 1 << 28, 1 << 30, 4e9,     16e9};
const Buckets kCounts = {0,   1,   2,   4,   8,    16,   32,   64,  96,
                         128, 192, 256, 512, 1024, 2048, 4096, 8192};

HistogramFamily& AddHistogram(prometheus::Registry& registry, const char* name,
                              const char* help) {
  return BuildHistogram().Name(name).Help(help).Register(registry);
}

void AddInfo(prometheus::Registry& registry, const char* name, const char* help,
             const InfoLabels& labels) {
  BuildGauge().Name(name).Help(help).Register(registry).Add(labels).Set(1);
}

// A short constant for each way a request can end.
const char* Outcome(const Terminal& terminal) {
  switch (terminal.status.code()) {
    case absl::StatusCode::kOk:
      switch (terminal.finish_reason) {
        case FinishReason::kStop:
          return "stop";
        case FinishReason::kLength:
          return "length";
        case FinishReason::kEos:
          return "eos";
      }
      return "stop";
    case absl::StatusCode::kCancelled:
      return "cancelled";
    case absl::StatusCode::kDeadlineExceeded:
      return "deadline_exceeded";
    case absl::StatusCode::kResourceExhausted:
      return "resource_exhausted";
    case absl::StatusCode::kUnavailable:
      return "unavailable";
    default:
      return "internal";
  }
}

constexpr const char* kOutcomes[] = {"stop",
                                     "length",
                                     "eos",
                                     "cancelled",
                                     "deadline_exceeded",
                                     "resource_exhausted",
                                     "unavailable",
                                     "internal"};

// All of them, so that the first refusal of a kind is seen to rise from 0.
constexpr const char* kRejections[] = {"cancelled",
                                       "deadline",
                                       "deadline_unreachable",
                                       "draining",
                                       "duplicate",
                                       "invalid",
                                       "invalid_argument",
                                       "open_streams",
                                       "permission",
                                       "queue_full",
                                       "queued_bytes",
                                       "queued_tokens",
                                       "tenant_in_flight",
                                       "tenant_queue_full",
                                       "tenant_queued_bytes",
                                       "tenant_queued_tokens",
                                       "tenant_rate",
                                       "tokenizer_full",
                                       "too_large"};

}  // namespace

ServerMetrics::ServerMetrics(const InfoLabels& build, const InfoLabels& model)
    : registry_(std::make_shared<prometheus::Registry>()) {
  AddInfo(*registry_, "overfill_build_info", "The program.", build);
  AddInfo(*registry_, "overfill_model_info", "The pair that is served.", model);
  requests_ = &BuildCounter()
                   .Name("overfill_requests_total")
                   .Help("Admitted requests that ended, by outcome.")
                   .Register(*registry_);
  rejected_ = &BuildCounter()
                   .Name("overfill_requests_rejected_total")
                   .Help("Requests that were not admitted, by reason.")
                   .Register(*registry_);
  for (const char* reason : kRejections) rejected_->Add({{"reason", reason}});
  AddPathMetrics();
  AddPoolMetrics();
  AddMigrationMetrics();
  AddEventCounters();
  AddSecurityCounters();
}

void ServerMetrics::AddPathMetrics() {
  auto& queue = AddHistogram(*registry_, "overfill_queue_seconds",
                             "Arrival to the first prefill step.");
  auto& ttft = AddHistogram(*registry_, "overfill_ttft_seconds",
                            "Arrival to the first token.");
  auto& inter_token = AddHistogram(*registry_, "overfill_inter_token_seconds",
                                   "One token to the next.");
  auto& per_token = AddHistogram(
      *registry_, "overfill_time_per_output_token_seconds",
      "First to last token of an answer, divided by the tokens after the "
      "first.");
  auto& end_to_end = AddHistogram(*registry_, "overfill_e2e_seconds",
                                  "Arrival to the end of an answer.");
  auto& prompt = BuildCounter()
                     .Name("overfill_prompt_tokens_total")
                     .Help("Prompt tokens of requests that ended.")
                     .Register(*registry_);
  auto& completion = BuildCounter()
                         .Name("overfill_completion_tokens_total")
                         .Help("Tokens that were generated.")
                         .Register(*registry_);
  for (int i = 0; i < kNumDecodePaths; ++i) {
    const std::string name = DecodePathName(static_cast<DecodePath>(i));
    const prometheus::Labels path = {{"path", name}};
    paths_[i] = {&queue.Add(path, kWaitSeconds),
                 &ttft.Add(path, kWaitSeconds),
                 &inter_token.Add(path, kTokenSeconds),
                 &per_token.Add(path, kTokenSeconds),
                 &end_to_end.Add(path, kWaitSeconds),
                 &prompt.Add(path),
                 &completion.Add(path)};
    for (const char* outcome : kOutcomes) {
      requests_->Add({{"path", name}, {"outcome", outcome}});
    }
  }
}

void ServerMetrics::AddPoolMetrics() {
  auto& seconds =
      AddHistogram(*registry_, "overfill_step_seconds", "One step of a pool.");
  auto& rows = AddHistogram(*registry_, "overfill_step_rows",
                            "Rows of a step: prompt tokens, decoded tokens.");
  auto& sequences = AddHistogram(*registry_, "overfill_step_sequences",
                                 "Sequences of a step.");
  auto& stuck = BuildCounter()
                    .Name("overfill_stuck_steps_total")
                    .Help("Times that a pool with work was found stuck.")
                    .Register(*registry_);
  for (const PoolId pool : {PoolId::kPrefill, PoolId::kDecode}) {
    const std::string name = PoolName(pool);
    pools_[static_cast<size_t>(pool)] = {
        &seconds.Add({{"pool", name}}, kStepSeconds),
        &rows.Add({{"pool", name}, {"kind", "prompt"}}, kCounts),
        &rows.Add({{"pool", name}, {"kind", "decode"}}, kCounts),
        &sequences.Add({{"pool", name}}, kCounts),
        &stuck.Add({{"pool", name}})};
  }
}

void ServerMetrics::AddMigrationMetrics() {
  auto& seconds =
      AddHistogram(*registry_, "overfill_migration_seconds",
                   "KV changing owner between the pools: handoff, copy.");
  auto& bytes = AddHistogram(*registry_, "overfill_migration_bytes",
                             "KV that a migration moved.");
  for (const bool copied : {false, true}) {
    const prometheus::Labels kind = {{"kind", copied ? "copy" : "handoff"}};
    migrations_[copied] = {&seconds.Add(kind, kMigrationSeconds),
                           &bytes.Add(kind, kBytes)};
  }
}

void ServerMetrics::AddEventCounters() {
  const auto add = [this](const char* name, const char* help) {
    return &BuildCounter().Name(name).Help(help).Register(*registry_).Add({});
  };
  prefix_queried_tokens_ =
      add("overfill_prefix_cache_queried_tokens_total",
          "Prompt tokens that were looked for in the prefix cache.");
  prefix_hit_tokens_ = add("overfill_prefix_cache_hit_tokens_total",
                           "Prompt tokens that were found there.");
  preemptions_ = add("overfill_preemptions_total",
                     "Running answers whose KV went to the swap space.");
  transfer_retries_ = add("overfill_transfer_retries_total",
                          "Transfers of KV that failed and were sent again.");
  integrity_failures_ =
      add("overfill_integrity_failures_total",
          "Checks which found that the KV blocks do not add up.");
}

void ServerMetrics::AddSecurityCounters() {
  using Failure = Authenticator::Failure;
  auto& calls = BuildCounter()
                    .Name("overfill_unauthenticated_calls_total")
                    .Help("Calls without a token that is known, by reason.")
                    .Register(*registry_);
  for (const Failure failure :
       {Failure::kMissing, Failure::kMalformed, Failure::kUnknown}) {
    unauthenticated_[static_cast<size_t>(failure)] =
        &calls.Add({{"reason", Authenticator::FailureName(failure)}});
  }
  auto& reloads = BuildCounter()
                      .Name("overfill_reloads_total")
                      .Help("Files that changed and were read again.")
                      .Register(*registry_);
  for (const Files files : {Files::kCertificates, Files::kTokens}) {
    const char* const what =
        files == Files::kTokens ? "tokens" : "certificates";
    reloads_[static_cast<size_t>(files)] = {
        &reloads.Add({{"what", what}, {"outcome", "ok"}}),
        &reloads.Add({{"what", what}, {"outcome", "failed"}})};
  }
}

void ServerMetrics::OnUnauthenticated(Authenticator::Failure failure) {
  unauthenticated_[static_cast<size_t>(failure)]->Increment();
}

void ServerMetrics::OnReload(Files files, Reload reload) {
  if (reload == Reload::kUnchanged) return;
  reloads_[static_cast<size_t>(files)][reload == Reload::kFailed ? 1 : 0]
      ->Increment();
}

void ServerMetrics::OnStep(PoolId pool, double seconds, int32_t num_prompt_rows,
                           int32_t num_decode_rows, int32_t num_sequences) {
  if (!enabled()) return;
  const PoolMetrics& metrics = pools_[static_cast<size_t>(pool)];
  metrics.seconds->Observe(seconds);
  metrics.prompt_rows->Observe(num_prompt_rows);
  metrics.decode_rows->Observe(num_decode_rows);
  metrics.sequences->Observe(num_sequences);
}

void ServerMetrics::OnFirstToken(DecodePath path, double ttft_seconds,
                                 double queue_seconds) {
  if (!enabled()) return;
  const PathMetrics& metrics = paths_[static_cast<size_t>(path)];
  metrics.ttft->Observe(ttft_seconds);
  metrics.queue->Observe(queue_seconds);
  metrics.completion_tokens->Increment();
}

void ServerMetrics::OnToken(DecodePath path, double inter_token_seconds) {
  if (!enabled()) return;
  const PathMetrics& metrics = paths_[static_cast<size_t>(path)];
  metrics.inter_token->Observe(inter_token_seconds);
  metrics.completion_tokens->Increment();
}

void ServerMetrics::OnMigration(double seconds, int64_t bytes, bool copied) {
  if (!enabled()) return;
  migrations_[copied].seconds->Observe(seconds);
  migrations_[copied].bytes->Observe(static_cast<double>(bytes));
}

void ServerMetrics::OnPrefixLookup(int32_t queried_tokens, int32_t hit_tokens) {
  if (!enabled()) return;
  prefix_queried_tokens_->Increment(queried_tokens);
  prefix_hit_tokens_->Increment(hit_tokens);
}

void ServerMetrics::OnPreemption() {
  if (enabled()) preemptions_->Increment();
}

void ServerMetrics::OnTransferRetry() {
  if (enabled()) transfer_retries_->Increment();
}

void ServerMetrics::OnStuckStep(PoolId pool) {
  pools_[static_cast<size_t>(pool)].stuck_steps->Increment();
}

void ServerMetrics::OnIntegrityFailure() { integrity_failures_->Increment(); }

void ServerMetrics::OnTerminal(DecodePath path, const Terminal& terminal,
                               double e2e_seconds) {
  if (!enabled()) return;
  const PathMetrics& metrics = paths_[static_cast<size_t>(path)];
  requests_
      ->Add({{"path", DecodePathName(path)}, {"outcome", Outcome(terminal)}})
      .Increment();
  metrics.prompt_tokens->Increment(terminal.usage.prompt_tokens);
  if (!terminal.status.ok()) return;
  metrics.end_to_end->Observe(e2e_seconds);
}

void ServerMetrics::OnCompletion(DecodePath path,
                                 const Completion& completion) {
  if (!enabled() || completion.usage.completion_tokens < 2) return;
  paths_[static_cast<size_t>(path)].per_output_token->Observe(
      completion.timings.decode_seconds /
      (completion.usage.completion_tokens - 1));
}

void ServerMetrics::OnReject(absl::string_view reason) {
  if (!enabled()) return;
  rejected_->Add({{"reason", std::string(reason)}}).Increment();
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const HostPort& listen,
    std::vector<std::shared_ptr<prometheus::Collectable>> collectables) {
  std::unique_ptr<MetricsServer> server(new MetricsServer);
  server->collectables_ = std::move(collectables);
  // The library reports a port that is taken by an exception.
  try {
    server->exposer_ = std::make_unique<prometheus::Exposer>(listen.ToString());
    server->host_ = listen.host;
    server->port_ = server->exposer_->GetListeningPorts().front();
  } catch (const std::exception&) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", listen.ToString(),
                     ": the address is taken, or not IPv4"));
  }
  for (const auto& collectable : server->collectables_) {
    server->exposer_->RegisterCollectable(collectable);
  }
  return server;
}

// The library's thread looks every two seconds whether it is to stop, and
// whenever somebody connects.
MetricsServer::~MetricsServer() {
  constexpr std::chrono::milliseconds kKnockPeriod{20};
  std::atomic<bool> has_stopped = false;
  std::thread stopper([&] {
    exposer_.reset();
    has_stopped = true;
  });
  while (!has_stopped) {
    Knock();
    std::this_thread::sleep_for(kKnockPeriod);
  }
  stopper.join();
}

void MetricsServer::Knock() const {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port_));
  // A name, or any address: loopback will do.
  if (inet_pton(AF_INET, host_.c_str(), &address.sin_addr) != 1 ||
      address.sin_addr.s_addr == htonl(INADDR_ANY)) {
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  }
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  // In vain where it has stopped already.
  static_cast<void>(connect(fd, reinterpret_cast<const sockaddr*>(&address),
                            sizeof(address)));
  close(fd);
}

}  // namespace overfill
