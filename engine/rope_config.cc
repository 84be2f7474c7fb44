#include "engine/rope_config.h"

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "engine/safetensors.h"

namespace overfill {
namespace {

constexpr double kMaxTheta = 1e15;
constexpr double kMaxFactor = 1e6;

absl::Status Invalid(absl::string_view origin, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(origin, ": ", what));
}

// A rope_scaling or rope_parameters object, or what its absence means.
struct RopeSection {
  bool present = false;
  std::optional<double> theta;
  std::optional<Llama3RopeScaling> llama3;
};

// "rope_type", or "type" as older files call it.
absl::StatusOr<std::string> ParseType(const Json& section,
                                      absl::string_view origin) {
  ASSIGN_OR_RETURN(const auto type, JsonString(section, "rope_type", origin));
  ASSIGN_OR_RETURN(const auto legacy, JsonString(section, "type", origin));
  if (type && legacy && *type != *legacy) {
    return Invalid(origin, "rope_type and type differ");
  }
  if (type || legacy) return type ? *type : *legacy;
  return std::string("default");
}

absl::StatusOr<double> RequireNumber(const Json& section, const char* key,
                                     double min, double max,
                                     absl::string_view origin) {
  ASSIGN_OR_RETURN(const auto value, JsonNumber(section, key, origin));
  if (!value) return Invalid(origin, absl::StrCat(key, " is absent"));
  if (*value < min || *value > max) {
    return Invalid(origin, absl::StrCat(key, " must be between ", min, " and ",
                                        max, ", is ", *value));
  }
  return *value;
}

absl::StatusOr<Llama3RopeScaling> ParseLlama3(const Json& section,
                                              absl::string_view origin) {
  Llama3RopeScaling scaling;
  ASSIGN_OR_RETURN(scaling.factor,
                   RequireNumber(section, "factor", 1, kMaxFactor, origin));
  ASSIGN_OR_RETURN(
      scaling.low_freq_factor,
      RequireNumber(section, "low_freq_factor", 0, kMaxFactor, origin));
  ASSIGN_OR_RETURN(
      scaling.high_freq_factor,
      RequireNumber(section, "high_freq_factor", 0, kMaxFactor, origin));
  if (scaling.high_freq_factor <= scaling.low_freq_factor) {
    return Invalid(origin, "high_freq_factor must exceed low_freq_factor");
  }
  constexpr const char* kOriginal = "original_max_position_embeddings";
  ASSIGN_OR_RETURN(const auto original,
                   JsonInt(section, kOriginal, 1,
                           std::numeric_limits<int32_t>::max(), origin));
  if (!original) return Invalid(origin, absl::StrCat(kOriginal, " is absent"));
  scaling.original_max_positions = *original;
  return scaling;
}

// A section of type default changes nothing, so it must not look as if it did.
absl::Status CheckPlain(const Json& section, absl::string_view origin) {
  for (const char* key : {"factor", "low_freq_factor", "high_freq_factor",
                          "short_factor", "long_factor", "beta_fast",
                          "beta_slow", "attention_factor", "mrope_section"}) {
    const Json* value = FindJson(section, key);
    if (value == nullptr) continue;
    return Invalid(origin, absl::StrCat("has ", key,
                                        ", which the rope_type default has "
                                        "not: rope_type is absent or wrong"));
  }
  return absl::OkStatus();
}

absl::Status CheckWholeRotary(const Json& object, absl::string_view origin) {
  for (const char* key : {"partial_rotary_factor", "rotary_pct"}) {
    ASSIGN_OR_RETURN(const auto value, JsonNumber(object, key, origin));
    if (value && *value != 1) {
      return Invalid(origin, absl::StrCat(key, " is ", *value,
                                          ": partial rotary embeddings are "
                                          "not supported"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<double>> ParseTheta(const Json& object,
                                                 absl::string_view origin) {
  ASSIGN_OR_RETURN(const auto theta, JsonNumber(object, "rope_theta", origin));
  if (theta && (*theta <= 1 || *theta > kMaxTheta)) {
    return Invalid(origin, absl::StrCat("rope_theta must be above 1 and at "
                                        "most ",
                                        kMaxTheta, ", is ", *theta));
  }
  return theta;
}

absl::StatusOr<RopeSection> ParseSection(const Json& config, const char* key,
                                         absl::string_view file) {
  RopeSection result;
  const Json* section = FindJson(config, key);
  if (section == nullptr) return result;
  const std::string origin = absl::StrCat(file, ": ", key);
  if (!section->is_object()) return Invalid(origin, "must be an object");
  result.present = true;
  for (const auto& [name, value] : section->items()) {
    if (value.is_object()) {
      return Invalid(origin, "parameters per kind of layer are not supported");
    }
  }
  RETURN_IF_ERROR(CheckWholeRotary(*section, origin));
  ASSIGN_OR_RETURN(result.theta, ParseTheta(*section, origin));
  ASSIGN_OR_RETURN(const std::string type, ParseType(*section, origin));
  if (type == "llama3") {
    ASSIGN_OR_RETURN(result.llama3, ParseLlama3(*section, origin));
    return result;
  }
  if (type != "default") {
    return Invalid(origin, absl::StrCat("rope_type ", QuoteTensorName(type),
                                        " is not supported (default, "
                                        "llama3)"));
  }
  RETURN_IF_ERROR(CheckPlain(*section, origin));
  return result;
}

}  // namespace

absl::StatusOr<RopeConfig> ParseRopeConfig(const Json& config,
                                           absl::string_view origin) {
  RETURN_IF_ERROR(CheckWholeRotary(config, origin));
  ASSIGN_OR_RETURN(const auto top_theta, ParseTheta(config, origin));
  ASSIGN_OR_RETURN(const RopeSection scaling,
                   ParseSection(config, "rope_scaling", origin));
  ASSIGN_OR_RETURN(const RopeSection parameters,
                   ParseSection(config, "rope_parameters", origin));
  if (scaling.present && parameters.present &&
      scaling.llama3 != parameters.llama3) {
    return Invalid(origin, "rope_scaling and rope_parameters differ");
  }
  std::optional<double> theta;
  for (const auto& stated : {top_theta, scaling.theta, parameters.theta}) {
    if (stated && theta && *stated != *theta) {
      return Invalid(origin, absl::StrCat("rope_theta is stated twice: ",
                                          *theta, " and ", *stated));
    }
    if (stated) theta = stated;
  }
  if (!theta) return Invalid(origin, "rope_theta is absent");
  return RopeConfig{
      .theta = *theta,
      .llama3 = parameters.present ? parameters.llama3 : scaling.llama3};
}

}  // namespace overfill
