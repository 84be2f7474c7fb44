#include "server/serving.h"

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/log.h"
#include "base/phase_times.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "server/model_info.h"
#include "server/process_metrics.h"
#include "server/security_metrics.h"
#include "server/state_gauges.h"
#include "server/warm_up.h"

namespace overfill {
namespace {

// Also a model that is far too large for the machine warms up in that time.
constexpr absl::Duration kWarmUpTimeout = absl::Minutes(10);
constexpr std::chrono::seconds kWatchdogPeriod{1};

// What can be said about the files before the models take their time to load.
absl::Status LoadSecurity(const ServerConfig& config, Serving& serving) {
  if (!config.tls_cert.empty()) {
    ASSIGN_OR_RETURN(
        serving.certificates,
        Certificates::FromFiles({.certificate = config.tls_cert,
                                 .key = config.tls_key,
                                 .client_ca = config.tls_client_ca}));
  }
  if (config.auth_tokens.empty()) {
    serving.authenticator = std::make_unique<Authenticator>();
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(serving.authenticator,
                   Authenticator::FromFile(config.auth_tokens));
  return absl::OkStatus();
}

absl::Status LoadPair(const ServerConfig& config, PhaseTimes& times,
                      Serving& serving) {
  ASSIGN_OR_RETURN(
      serving.device,
      MakeDevice(config.device, {.num_threads = config.threads,
                                 .cpu_isa = config.cpu_isa,
                                 .batch_invariant = config.batch_invariant}));
  ASSIGN_OR_RETURN(
      serving.pair,
      Pair::Load(
          *serving.device,
          {.prefill_model_dir = config.prefill_model,
           .decode_model_dir = config.decode_model,
           .kv_map_file = config.kv_map,
           .load_format = config.load_format,
           .prefill_weights = config.prefill_weights.value_or(config.weights),
           .decode_weights = config.decode_weights.value_or(config.weights)},
          &times));
  ASSIGN_OR_RETURN(
      serving.engine,
      PairEngine::Create(*serving.device, *serving.pair,
                         {.kv_cache_bytes = config.kv_cache_bytes,
                          .swap_bytes = config.swap_bytes,
                          .block_tokens = config.block_tokens,
                          .max_sequence_tokens = config.max_sequence_tokens,
                          .prefill_chunk_tokens = config.prefill_chunk_tokens,
                          .max_decode_batch = config.max_decode_batch}));
  times.EndPhase("KV stores", absl::Now());
  return absl::OkStatus();
}

SchedulerOptions OptionsOf(const ServerConfig& config,
                           const PairEngine& engine) {
  return {.block_tokens = config.block_tokens,
          .max_sequence_tokens = engine.max_sequence_tokens(),
          .prefill_chunk_tokens = config.prefill_chunk_tokens,
          .max_decode_batch = config.max_decode_batch,
          .max_queued_requests = config.max_queued_requests,
          .max_queued_tokens = config.max_queued_tokens,
          .max_queued_bytes = config.max_queued_bytes,
          .max_tenant_queued_requests = config.max_tenant_queued_requests,
          .max_tenant_queued_tokens = config.max_tenant_queued_tokens,
          .max_tenant_queued_bytes = config.max_tenant_queued_bytes,
          .itl_target = absl::ToChronoNanoseconds(config.itl_target),
          .max_request_duration =
              absl::ToChronoNanoseconds(config.max_request_duration),
          .priority_ageing = absl::ToChronoNanoseconds(config.priority_ageing),
          .transfer_lease = absl::ToChronoNanoseconds(config.transfer_lease),
          .prefix_cache = config.prefix_cache};
}

SchedulerBackend BackendOf(const Pair& pair, const PairEngine& engine) {
  SchedulerBackend backend = {
      .prefill = engine.prefill(),
      .decode = engine.decode(),
      .prefill_blocks = engine.prefill_store().num_blocks(),
      .swap_blocks = {engine.swap_blocks(0), engine.swap_blocks(1)},
      .mover = engine.mover(),
      .swap_out = {engine.swap_out(0), engine.swap_out(1)},
      .swap_in = {engine.swap_in(0), engine.swap_in(1)},
      .fork = {engine.fork_mover(0), engine.fork_mover(1)},
      .model_digests = {HexString(pair.full().digest),
                        HexString(pair.pruned().digest)},
      .tokenizer = &pair.tokenizer()};
  if (!engine.shares_store()) {
    backend.decode_blocks = engine.decode_store().num_blocks();
    backend.decode_block_bytes = engine.decode_store().block_bytes();
  }
  return backend;
}

absl::Status MakeScheduler(const ServerConfig& config, const ServerHooks& hooks,
                           Serving& serving) {
  SchedulerBackend backend = BackendOf(*serving.pair, *serving.engine);
  backend.decorate_transport = hooks.decorate_transport;
  ASSIGN_OR_RETURN(serving.scheduler,
                   Scheduler::Create(OptionsOf(config, *serving.engine),
                                     backend, serving.metrics.get()));
  return absl::OkStatus();
}

absl::Status MakeConverter(const ServerConfig& config, Serving& serving) {
  const Pair& pair = *serving.pair;
  ASSIGN_OR_RETURN(
      serving.converter,
      Converter::Create(
          {.tokenizer = &pair.tokenizer(),
           .vocab_size = pair.full().weights.config.vocab_size,
           .eos_ids = pair.eos_ids(),
           .generation = pair.generation(),
           .max_sequence_tokens = serving.engine->max_sequence_tokens(),
           .max_n = MaxSamples(config.max_decode_batch),
           .max_text_bytes = config.max_request_bytes}));
  return absl::OkStatus();
}

// The first id that has a token.
int32_t AnyToken(const Pair& pair) {
  int32_t id = 0;
  while (id + 1 < pair.full().weights.config.vocab_size &&
         !pair.tokenizer().IsToken(id)) {
    ++id;
  }
  return id;
}

void MakeService(const ServerConfig& config,
                 const v1::GetModelInfoResponse& info, Serving& serving) {
  serving.request_log = std::make_unique<RequestLog>(RequestLogOptions{
      .log_requests = config.log_requests, .log_prompts = config.log_prompts});
  serving.service = std::make_unique<InferenceService>(
      ServiceOptions{
          .max_open_streams = config.max_open_streams,
          .tokenizer_threads = config.tokenizer_threads,
          .authenticator = serving.authenticator.get(),
          .log = serving.request_log.get(),
          .on_unauthenticated =
              [m = serving.metrics.get()](Authenticator::Failure failure) {
                m->OnUnauthenticated(failure);
              }},
      serving.scheduler.get(), serving.converter.get(), info,
      serving.metrics.get());
}

absl::Status OpenPorts(const ServerConfig& config, Serving& serving) {
  if (config.metrics_enabled) {
    const auto gauges = MakeStateGauges(
        [s = serving.scheduler.get()] { return s->Stats(); },
        [s = serving.service.get()] { return s->num_open_streams(); });
    ASSIGN_OR_RETURN(
        serving.metrics_server,
        MetricsServer::Start(config.metrics_listen,
                             {serving.metrics->registry(), gauges,
                              MakeSecurityMetrics(serving.certificates.get()),
                              MakeProcessMetrics()}));
  }
  ASSIGN_OR_RETURN(
      serving.grpc_server,
      GrpcServer::Start(
          {.listen = config.listen,
           .health_listen = config.health_enabled
                                ? std::optional(config.health_listen)
                                : std::nullopt,
           .credentials = serving.certificates == nullptr
                              ? nullptr
                              : serving.certificates->credentials(),
           .max_request_bytes = config.max_request_bytes,
           .max_connection_streams = config.max_connection_streams,
           .max_connection_age = config.max_connection_age,
           .max_connection_age_grace = config.max_connection_age_grace,
           .reflection = !serving.authenticator->needs_token()},
          serving.service.get()));
  return absl::OkStatus();
}

void StartReloads(const ServerConfig& config, Serving& serving) {
  const bool has_files =
      serving.certificates != nullptr || serving.authenticator->needs_token();
  if (!has_files) return;
  serving.reload_thread = std::make_unique<Ticker>(
      absl::ToChronoNanoseconds(config.tls_refresh), [&serving] {
        using Files = ServerMetrics::Files;
        if (serving.certificates != nullptr) {
          serving.metrics->OnReload(Files::kCertificates,
                                    serving.certificates->LookAgain());
        }
        serving.metrics->OnReload(Files::kTokens,
                                  serving.authenticator->LookAgain());
      });
}

void StartWatchdog(const ServerConfig& config, Serving& serving) {
  serving.watchdog = std::make_unique<Watchdog>(
      WatchdogOptions{.stuck_step_timeout =
                          absl::ToChronoNanoseconds(config.stuck_step_timeout)},
      serving.scheduler.get(),
      WatchdogEvents{
          .set_serving = [s = serving.grpc_server.get()](
                             bool serving) { s->SetServing(serving); },
          .on_stuck_step = [m = serving.metrics.get()](
                               PoolId pool) { m->OnStuckStep(pool); },
          .on_integrity_failure =
              [m = serving.metrics.get()] { m->OnIntegrityFailure(); }});
  serving.watchdog_thread = std::make_unique<Ticker>(
      kWatchdogPeriod, [watchdog = serving.watchdog.get()] {
        watchdog->Look(std::chrono::steady_clock::now());
      });
}

void LogStart(const Serving& serving, const v1::GetModelInfoResponse& info,
              const PhaseTimes& times) {
  const PairEngine& engine = *serving.engine;
  LogInfo(absl::StrCat(
      "loaded ", info.full().name(), " and ", info.pruned().name(), " in ",
      absl::FormatDuration(absl::Trunc(times.total(), absl::Milliseconds(1))),
      " (", times.ToString(), "), KV map ", info.kv_map(), ", pair digest ",
      info.pair_digest()));
  if (serving.pair->lacks_manifest()) {
    LogInfo(absl::StrCat(info.pruned().name(),
                         " has no overfill.json: that it was made from ",
                         info.full().name(), " is not checked"));
  }
  const auto describe = [](const KvStore& store) {
    return absl::StrCat(store.num_blocks(), " blocks of ",
                        store.layout().block_tokens, " tokens, ",
                        store.num_blocks() * store.block_bytes(), " bytes");
  };
  LogInfo(absl::StrCat("device ", serving.device->info().description,
                       "; KV store: ", describe(engine.prefill_store())));
  if (!engine.shares_store()) {
    LogInfo(absl::StrCat("decode KV store: ", describe(engine.decode_store())));
  }
  for (int store = 0; store < engine.num_stores(); ++store) {
    const KvStore* const swap = engine.swap_store(store);
    LogInfo(absl::StrCat("swap space of KV store ", store, ": ",
                         swap == nullptr ? "none" : describe(*swap)));
  }
}

}  // namespace

absl::Status StartServing(const ServerConfig& config, const ServerHooks& hooks,
                          Serving& serving) {
  RETURN_IF_ERROR(CheckBindable(config.listen));
  if (config.metrics_enabled) {
    RETURN_IF_ERROR(CheckBindable(config.metrics_listen));
  }
  if (config.health_enabled) {
    RETURN_IF_ERROR(CheckBindable(config.health_listen));
  }
  RETURN_IF_ERROR(LoadSecurity(config, serving));
  PhaseTimes times(absl::Now());
  RETURN_IF_ERROR(LoadPair(config, times, serving));
  const v1::GetModelInfoResponse info = MakeModelInfo(
      *serving.pair, *serving.engine, serving.device->info(), config);
  serving.metrics = std::make_unique<ServerMetrics>(
      InfoLabels{{"version", Version()}}, ModelInfoLabels(info));
  RETURN_IF_ERROR(MakeScheduler(config, hooks, serving));
  RETURN_IF_ERROR(MakeConverter(config, serving));
  RETURN_IF_ERROR(WarmUp(*serving.scheduler, AnyToken(*serving.pair),
                         serving.engine->max_sequence_tokens(),
                         kWarmUpTimeout));
  times.EndPhase("warm-up", absl::Now());
  LogStart(serving, info, times);
  serving.metrics->Enable();
  MakeService(config, info, serving);
  RETURN_IF_ERROR(OpenPorts(config, serving));
  StartWatchdog(config, serving);
  StartReloads(config, serving);
  return absl::OkStatus();
}

}  // namespace overfill
