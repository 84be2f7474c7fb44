#include "server/tenants.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "openssl/crypto.h"
#include "server/convert.h"

namespace overfill {
namespace {

constexpr size_t kMaxNameBytes = 64;

absl::Status Invalid(absl::string_view origin, absl::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat(origin, ": ", message));
}

// Names stand in logs and metrics as they are.
bool IsName(const std::string& name) {
  const auto is_good = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' ||
           c == '_' || c == '.';
  };
  return !name.empty() && name.size() <= kMaxNameBytes &&
         std::all_of(name.begin(), name.end(), is_good);
}

absl::Status CheckMembers(const Json& object,
                          std::initializer_list<absl::string_view> known,
                          absl::string_view origin) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    return Invalid(origin, absl::StrCat("unknown member \"", key, "\""));
  }
  return absl::OkStatus();
}

absl::StatusOr<Tenant> ReadTenant(const Json& object,
                                  absl::string_view origin) {
  RETURN_IF_ERROR(
      CheckMembers(object,
                   {"name", "token_sha256", "max_requests_in_flight",
                    "max_tokens_per_minute", "max_priority"},
                   origin));
  Tenant tenant;
  ASSIGN_OR_RETURN(const auto name, JsonString(object, "name", origin));
  if (!name || !IsName(*name)) {
    return Invalid(origin, absl::StrCat("name must be 1 to ", kMaxNameBytes,
                                        " letters, digits, '-', '_' or '.'"));
  }
  tenant.name = *name;
  ASSIGN_OR_RETURN(const auto requests,
                   JsonInt(object, "max_requests_in_flight", 0,
                           std::numeric_limits<int32_t>::max(), origin));
  ASSIGN_OR_RETURN(const auto tokens, JsonInt(object, "max_tokens_per_minute",
                                              0, int64_t{1} << 53, origin));
  ASSIGN_OR_RETURN(
      const auto priority,
      JsonInt(object, "max_priority", -kMaxPriority, kMaxPriority, origin));
  tenant.limits = {
      .max_requests_in_flight = static_cast<int32_t>(requests.value_or(0)),
      .max_tokens_per_minute = tokens.value_or(0),
      .max_priority = static_cast<int32_t>(priority.value_or(0))};
  return tenant;
}

absl::StatusOr<std::vector<Sha256Digest>> ReadDigests(
    const Json& object, absl::string_view origin) {
  const absl::Status bad = Invalid(
      origin, "token_sha256 must be a list of SHA-256 sums of 64 hex digits");
  const Json* const list = FindJson(object, "token_sha256");
  if (list == nullptr || !list->is_array()) return bad;
  std::vector<Sha256Digest> digests;
  for (const Json& item : *list) {
    if (!item.is_string()) return bad;
    const std::string& hex = item.get_ref<const std::string&>();
    if (hex.size() != 64 ||
        hex.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
      return bad;
    }
    const std::string bytes = absl::HexStringToBytes(hex);
    Sha256Digest& digest = digests.emplace_back();
    std::copy(bytes.begin(), bytes.end(), digest.begin());
  }
  return digests;
}

}  // namespace

absl::StatusOr<TenantTable> TenantTable::Parse(absl::string_view text,
                                               absl::string_view origin) {
  ASSIGN_OR_RETURN(const Json root, ParseJsonObject(text, origin));
  RETURN_IF_ERROR(CheckMembers(root, {"tenants"}, origin));
  const Json* const list = FindJson(root, "tenants");
  if (list == nullptr || !list->is_array()) {
    return Invalid(origin, "tenants must be a list");
  }
  if (list->size() > kMaxTenants) {
    return Invalid(origin, absl::StrCat("more than ", kMaxTenants, " tenants"));
  }
  TenantTable table;
  std::set<std::string> names;
  std::set<Sha256Digest> digests;
  for (size_t i = 0; i < list->size(); ++i) {
    const Json& object = (*list)[i];
    const std::string where = absl::StrCat(origin, ": tenants[", i, "]");
    if (!object.is_object()) return Invalid(where, "must be an object");
    ASSIGN_OR_RETURN(Tenant read, ReadTenant(object, where));
    ASSIGN_OR_RETURN(const auto own, ReadDigests(object, where));
    const auto tenant = std::make_shared<const Tenant>(std::move(read));
    if (!names.insert(tenant->name).second) {
      return Invalid(where, "another tenant has this name");
    }
    table.tenants_.push_back(tenant);
    for (const Sha256Digest& digest : own) {
      if (!digests.insert(digest).second) {
        return Invalid(where, "a token stands in the file twice");
      }
      table.tokens_.push_back({digest, tenant});
    }
  }
  if (table.tokens_.size() > kMaxTokens) {
    return Invalid(origin, absl::StrCat("more than ", kMaxTokens, " tokens"));
  }
  return table;
}

std::shared_ptr<const Tenant> TenantTable::Find(absl::string_view token) const {
  Sha256 hasher;
  hasher.Update(token);
  const Sha256Digest digest = hasher.Finish();
  const Token* found = nullptr;
  for (const Token& candidate : tokens_) {
    if (CRYPTO_memcmp(candidate.digest.data(), digest.data(), digest.size()) ==
        0) {
      found = &candidate;
    }
  }
  return found == nullptr ? nullptr : found->tenant;
}

}  // namespace overfill
