// JSON from outside, by nlohmann-json, without its exceptions.
#ifndef OVERFILL_BASE_JSON_H_
#define OVERFILL_BASE_JSON_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace overfill {

using Json = nlohmann::json;

// Parses `text`; `origin` (a path, a field) begins every error message. The
// top level must be an object. Nesting deeper than 64 is refused.
absl::StatusOr<Json> ParseJsonObject(absl::string_view text,
                                     absl::string_view origin);

// The value of `key`, or nullptr when it is absent or null.
const Json* FindJson(const Json& object, const char* key);

// Typed members of an object. An absent or null member is nullopt; a value of
// another type, out of the range or not finite is INVALID_ARGUMENT
// "ORIGIN: KEY ...".
absl::StatusOr<std::optional<int64_t>> JsonInt(const Json& object,
                                               const char* key, int64_t min,
                                               int64_t max,
                                               absl::string_view origin);
absl::StatusOr<std::optional<double>> JsonNumber(const Json& object,
                                                 const char* key,
                                                 absl::string_view origin);
absl::StatusOr<std::optional<bool>> JsonBool(const Json& object,
                                             const char* key,
                                             absl::string_view origin);
absl::StatusOr<std::optional<std::string>> JsonString(const Json& object,
                                                      const char* key,
                                                      absl::string_view origin);

}  // namespace overfill

#endif  // OVERFILL_BASE_JSON_H_
