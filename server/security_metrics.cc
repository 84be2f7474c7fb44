#include "server/security_metrics.h"

#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "prometheus/client_metric.h"
#include "prometheus/metric_family.h"
#include "prometheus/metric_type.h"
#include "server/grpc_server.h"

namespace overfill {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

class SecurityMetrics : public prometheus::Collectable {
 public:
  explicit SecurityMetrics(const Certificates* certificates)
      : certificates_(certificates) {}

  std::vector<MetricFamily> Collect() const override {
    ClientMetric failures;
    failures.counter.value = static_cast<double>(TlsHandshakeFailures());
    std::vector<MetricFamily> families = {
        {"overfill_tls_handshake_failures_total",
         "Connections that TLS refused.",
         MetricType::Counter,
         {std::move(failures)}}};
    if (certificates_ == nullptr) return families;
    MetricFamily expiry = {"overfill_certificate_expiry_timestamp_seconds",
                           "When a certificate that is in use ends.",
                           MetricType::Gauge,
                           {}};
    const auto add = [&expiry](const char* name, absl::Time end) {
      ClientMetric metric;
      metric.label = {{"certificate", name}};
      metric.gauge.value = absl::ToDoubleSeconds(end - absl::UnixEpoch());
      expiry.metric.push_back(std::move(metric));
    };
    add("server", certificates_->server_expiry());
    if (const auto end = certificates_->client_ca_expiry()) {
      add("client_ca", *end);
    }
    families.push_back(std::move(expiry));
    return families;
  }

 private:
  const Certificates* const certificates_;
};

}  // namespace

std::shared_ptr<prometheus::Collectable> MakeSecurityMetrics(
    const Certificates* certificates) {
  return std::make_shared<SecurityMetrics>(certificates);
}

}  // namespace overfill
