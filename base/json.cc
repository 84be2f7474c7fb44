#include "base/json.h"

#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace overfill {
namespace {

constexpr int kMaxDepth = 64;

absl::Status WrongType(absl::string_view origin, const char* key,
                       absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(origin, ": ", key, " must be ", expected));
}

}  // namespace

absl::StatusOr<Json> ParseJsonObject(absl::string_view text,
                                     absl::string_view origin) {
  // The parser takes a zero byte for the end of its input.
  if (absl::StrContains(text, '\0')) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": not valid JSON"));
  }
  bool too_deep = false;
  const Json::parser_callback_t callback =
      [&too_deep](int depth, Json::parse_event_t, Json&) {
        too_deep = too_deep || depth > kMaxDepth;
        return !too_deep;
      };
  Json result = Json::parse(text.begin(), text.end(), callback,
                            /*allow_exceptions=*/false);
  if (too_deep) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": JSON is nested deeper than ", kMaxDepth));
  }
  if (result.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": not valid JSON"));
  }
  if (!result.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": the top level must be a JSON object"));
  }
  return result;
}

const Json* FindJson(const Json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return nullptr;
  return &*it;
}

absl::StatusOr<std::optional<int64_t>> JsonInt(const Json& object,
                                               const char* key, int64_t min,
                                               int64_t max,
                                               absl::string_view origin) {
  const Json* value = FindJson(object, key);
  if (value == nullptr) return std::optional<int64_t>();
  if (!value->is_number_integer()) {
    return WrongType(origin, key, "an integer");
  }
  const bool too_big = value->is_number_unsigned() &&
                       value->get<uint64_t>() > uint64_t{INT64_MAX};
  if (too_big || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    return WrongType(
        origin, key,
        absl::StrCat("between ", min, " and ", max, ", is ", value->dump()));
  }
  return std::optional<int64_t>(value->get<int64_t>());
}

absl::StatusOr<std::optional<double>> JsonNumber(const Json& object,
                                                 const char* key,
                                                 absl::string_view origin) {
  const Json* value = FindJson(object, key);
  if (value == nullptr) return std::optional<double>();
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    return WrongType(origin, key, "a finite number");
  }
  return std::optional<double>(value->get<double>());
}

absl::StatusOr<std::optional<bool>> JsonBool(const Json& object,
                                             const char* key,
                                             absl::string_view origin) {
  const Json* value = FindJson(object, key);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_boolean()) return WrongType(origin, key, "true or false");
  return std::optional<bool>(value->get<bool>());
}

absl::StatusOr<std::optional<std::string>> JsonString(
    const Json& object, const char* key, absl::string_view origin) {
  const Json* value = FindJson(object, key);
  if (value == nullptr) return std::optional<std::string>();
  if (!value->is_string()) return WrongType(origin, key, "a string");
  return std::optional<std::string>(value->get<std::string>());
}

}  // namespace overfill
