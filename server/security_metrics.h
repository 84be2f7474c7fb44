// What /metrics says of TLS.
#ifndef OVERFILL_SERVER_SECURITY_METRICS_H_
#define OVERFILL_SERVER_SECURITY_METRICS_H_

#include <memory>

#include "prometheus/collectable.h"
#include "server/certificates.h"

namespace overfill {

// overfill_tls_handshake_failures_total, and with certificates
// overfill_certificate_expiry_timestamp_seconds. `certificates` may be null,
// else it outlives the result.
std::shared_ptr<prometheus::Collectable> MakeSecurityMetrics(
    const Certificates* certificates);

}  // namespace overfill

#endif  // OVERFILL_SERVER_SECURITY_METRICS_H_
