// Arbitrary bytes as a file of tokens: what passes obeys every limit, and an
// error is one line that begins with the file's name.
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "base/check.h"
#include "server/convert.h"
#include "server/tenants.h"

namespace overfill {
namespace {

void CheckTable(const TenantTable& table) {
  OVERFILL_CHECK(table.tenants().size() <= TenantTable::kMaxTenants);
  OVERFILL_CHECK(table.num_tokens() <= TenantTable::kMaxTokens);
  std::set<std::string> names;
  for (const auto& tenant : table.tenants()) {
    OVERFILL_CHECK(!tenant->name.empty());
    OVERFILL_CHECK(names.insert(tenant->name).second);
    OVERFILL_CHECK(tenant->limits.max_requests_in_flight >= 0);
    OVERFILL_CHECK(tenant->limits.max_tokens_per_minute >= 0);
    OVERFILL_CHECK(tenant->limits.max_priority >= -kMaxPriority &&
                   tenant->limits.max_priority <= kMaxPriority);
  }
  OVERFILL_CHECK(table.Find("") == nullptr || table.num_tokens() > 0);
}

}  // namespace
}  // namespace overfill

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto table = overfill::TenantTable::Parse(text, "FILE");
  if (table.ok()) {
    overfill::CheckTable(*table);
  } else {
    OVERFILL_CHECK(absl::StartsWith(table.status().message(), "FILE"));
  }
  return 0;
}
