// Arbitrary bytes as the headers of a call: `traceparent` gives ids that can
// stand in a log as they are, and no `authorization` lets anyone in.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "base/check.h"
#include "server/authenticator.h"
#include "server/trace_context.h"

namespace overfill {
namespace {

void CheckTrace(absl::string_view header) {
  const auto context = ParseTraceParent(header);
  if (!context) return;
  constexpr char kDigits[] = "0123456789abcdef";
  OVERFILL_CHECK_EQ(context->trace_id.size(), size_t{32});
  OVERFILL_CHECK_EQ(context->parent_id.size(), size_t{16});
  for (const std::string& id : {context->trace_id, context->parent_id}) {
    OVERFILL_CHECK(id.find_first_not_of(kDigits) == std::string::npos);
    OVERFILL_CHECK(id.find_first_not_of('0') != std::string::npos);
  }
}

const Authenticator& NobodysAuthenticator() {
  static const Authenticator* const made = [] {
    char path[] = "/tmp/overfill_headers_fuzz_XXXXXX";
    OVERFILL_CHECK(mkstemp(path) >= 0);
    // A hash of which nobody knows the token.
    std::ofstream(path) << R"({"tenants": [{"name": "a", "token_sha256": [")"
                        << std::string(64, '0') << R"("]}]})";
    auto authenticator = Authenticator::FromFile(path);
    OVERFILL_CHECK_OK(authenticator.status());
    remove(path);
    return authenticator->release();
  }();
  return *made;
}

void CheckToken(const std::string& header) {
  auto failure = Authenticator::Failure::kMissing;
  const auto tenant = NobodysAuthenticator().Authenticate(
      {{"authorization", header}}, &failure);
  OVERFILL_CHECK(!tenant.ok());
  OVERFILL_CHECK(failure != Authenticator::Failure::kMissing);
}

}  // namespace
}  // namespace overfill

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  overfill::CheckTrace(text);
  overfill::CheckToken(text);
  overfill::CheckToken("Bearer " + text);
  return 0;
}
