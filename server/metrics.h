// The server's metrics, in Prometheus' format. docs/api.md lists them.
#ifndef OVERFILL_SERVER_METRICS_H_
#define OVERFILL_SERVER_METRICS_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "prometheus/collectable.h"
#include "prometheus/counter.h"
#include "prometheus/exposer.h"
#include "prometheus/family.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "scheduler/observer.h"
#include "server/authenticator.h"
#include "server/config.h"
#include "server/reload.h"

namespace overfill {

// What the model info metric says.
using InfoLabels = std::map<std::string, std::string>;

// Thread-safe. Nothing is counted before Enable: the warm-up is not traffic.
class ServerMetrics : public SchedulerObserver {
 public:
  ServerMetrics(const InfoLabels& build, const InfoLabels& model);

  void Enable() { enabled_.store(true, std::memory_order_relaxed); }

  void OnStep(PoolId pool, double seconds, int32_t num_prompt_rows,
              int32_t num_decode_rows, int32_t num_sequences) override;
  void OnFirstToken(DecodePath path, double ttft_seconds,
                    double queue_seconds) override;
  void OnToken(DecodePath path, double inter_token_seconds) override;
  void OnMigration(double seconds, int64_t bytes, bool copied) override;
  void OnPrefixLookup(int32_t queried_tokens, int32_t hit_tokens) override;
  void OnPreemption() override;
  void OnTransferRetry() override;
  void OnCompletion(DecodePath path, const Completion& completion) override;
  void OnTerminal(DecodePath path, const Terminal& terminal,
                  double e2e_seconds) override;
  void OnReject(absl::string_view reason) override;

  // What the watchdog finds.
  void OnStuckStep(PoolId pool);
  void OnIntegrityFailure();

  // A call that was not let in, and what became of a look at changed files.
  enum class Files { kCertificates, kTokens };
  void OnUnauthenticated(Authenticator::Failure failure);
  void OnReload(Files files, Reload reload);

  // All of the above, for an exposer.
  std::shared_ptr<prometheus::Collectable> registry() const {
    return registry_;
  }

 private:
  struct PathMetrics {
    prometheus::Histogram* queue;
    prometheus::Histogram* ttft;
    prometheus::Histogram* inter_token;
    prometheus::Histogram* per_output_token;
    prometheus::Histogram* end_to_end;
    prometheus::Counter* prompt_tokens;
    prometheus::Counter* completion_tokens;
  };
  struct PoolMetrics {
    prometheus::Histogram* seconds;
    prometheus::Histogram* prompt_rows;
    prometheus::Histogram* decode_rows;
    prometheus::Histogram* sequences;
    prometheus::Counter* stuck_steps;
  };
  struct MigrationMetrics {
    prometheus::Histogram* seconds;
    prometheus::Histogram* bytes;
  };

  void AddPathMetrics();
  void AddPoolMetrics();
  void AddMigrationMetrics();
  void AddEventCounters();
  void AddSecurityCounters();
  bool enabled() const { return enabled_.load(std::memory_order_relaxed); }

  const std::shared_ptr<prometheus::Registry> registry_;
  std::atomic<bool> enabled_ = false;
  std::array<PathMetrics, kNumDecodePaths> paths_;  // by DecodePath
  std::array<PoolMetrics, 2> pools_;                // by PoolId
  std::array<MigrationMetrics, 2> migrations_;      // handoff, copy
  prometheus::Counter* prefix_queried_tokens_;
  prometheus::Counter* prefix_hit_tokens_;
  prometheus::Counter* preemptions_;
  prometheus::Counter* transfer_retries_;
  prometheus::Counter* integrity_failures_;
  prometheus::Family<prometheus::Counter>* requests_;    // by path and outcome
  prometheus::Family<prometheus::Counter>* rejected_;    // by reason
  std::array<prometheus::Counter*, 3> unauthenticated_;  // by Failure
  // By Files; loaded, failed.
  std::array<std::array<prometheus::Counter*, 2>, 2> reloads_;
};

// Serves GET /metrics until destroyed.
class MetricsServer {
 public:
  // UNAVAILABLE when the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(
      const HostPort& listen,
      std::vector<std::shared_ptr<prometheus::Collectable>> collectables);

  ~MetricsServer();

  int32_t port() const { return port_; }

 private:
  MetricsServer() = default;
  // A connection that comes and goes.
  void Knock() const;

  std::vector<std::shared_ptr<prometheus::Collectable>> collectables_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::string host_;  // that Start was given
  int32_t port_ = 0;
};

}  // namespace overfill

#endif  // OVERFILL_SERVER_METRICS_H_
