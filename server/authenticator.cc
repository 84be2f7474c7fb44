#include "server/authenticator.h"

#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

constexpr absl::string_view kScheme = "bearer ";
constexpr size_t kMaxTokenBytes = 4096;

struct FileState {
  absl::StatusOr<TenantTable> table;
  Sha256Digest seen;
};

Sha256Digest DigestOf(absl::string_view text) {
  Sha256 hasher;
  hasher.Update(text);
  return hasher.Finish();
}

FileState ReadTokens(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, TenantTable::kMaxFileBytes);
  if (!text.ok()) return {text.status(), DigestOf(text.status().ToString())};
  return {TenantTable::Parse(*text, path), DigestOf(*text)};
}

// The token, or why there is none.
struct Bearer {
  std::optional<absl::string_view> token;
  Authenticator::Failure failure = Authenticator::Failure::kMissing;
};

Bearer FindToken(const Authenticator::Metadata& metadata) {
  const auto [begin, end] = metadata.equal_range("authorization");
  if (begin == end) return {};
  // Two of them: which one did a proxy in between check?
  if (std::next(begin) != end) {
    return {std::nullopt, Authenticator::Failure::kMalformed};
  }
  absl::string_view value(begin->second.data(), begin->second.size());
  if (!absl::StartsWithIgnoreCase(value, kScheme) ||
      value.size() > kScheme.size() + kMaxTokenBytes) {
    return {std::nullopt, Authenticator::Failure::kMalformed};
  }
  value.remove_prefix(kScheme.size());
  return {value};
}

}  // namespace

Authenticator::Authenticator()
    : everyone_(std::make_shared<const Tenant>(
          Tenant{.name = "", .limits = {.max_priority = kAnyPriority}})) {}

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::FromFile(
    const std::string& path) {
  auto result = std::make_unique<Authenticator>();
  result->path_ = path;
  FileState state = ReadTokens(path);
  RETURN_IF_ERROR(state.table.status());
  MutexLock lock(&result->mu_);
  result->table_ = std::make_shared<const TenantTable>(*std::move(state.table));
  result->seen_ = state.seen;
  return result;
}

const char* Authenticator::FailureName(Failure failure) {
  switch (failure) {
    case Failure::kMissing:
      return "missing";
    case Failure::kMalformed:
      return "malformed";
    case Failure::kUnknown:
      return "unknown";
  }
  return "unknown";
}

absl::StatusOr<std::shared_ptr<const Tenant>> Authenticator::Authenticate(
    const Metadata& metadata, Failure* failure) const {
  if (!needs_token()) return everyone_;
  const Bearer bearer = FindToken(metadata);
  *failure = bearer.failure;
  if (bearer.token) {
    auto tenant = table()->Find(*bearer.token);
    if (tenant != nullptr) return tenant;
    *failure = Failure::kUnknown;
  }
  return absl::UnauthenticatedError(
      *failure == Failure::kUnknown
          ? "the token is not known"
          : "a token is needed: \"authorization: Bearer TOKEN\"");
}

Reload Authenticator::LookAgain() {
  if (!needs_token()) return Reload::kUnchanged;
  FileState state = ReadTokens(path_);
  {
    MutexLock lock(&mu_);
    if (state.seen == seen_) return Reload::kUnchanged;
    seen_ = state.seen;
    if (state.table.ok()) {
      table_ = std::make_shared<const TenantTable>(*std::move(state.table));
    }
  }
  if (!state.table.ok()) {
    LogError(absl::StrCat("the tokens stay as they were: ",
                          state.table.status().message()));
    return Reload::kFailed;
  }
  const auto now = table();
  LogInfo(absl::StrCat("read the tokens again: ", now->tenants().size(),
                       " tenants, ", now->num_tokens(), " tokens"));
  return Reload::kLoaded;
}

std::shared_ptr<const TenantTable> Authenticator::table() const {
  MutexLock lock(&mu_);
  return table_;
}

}  // namespace overfill
