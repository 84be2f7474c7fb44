#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "engine/model_config.h"
#include "engine/token_ids.h"

namespace overfill {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;

// A number within [min, max] that float holds, `min` itself only where
// `with_min` says so.
absl::StatusOr<std::optional<float>> FloatIn(const Json& json, const char* key,
                                             double min, bool with_min,
                                             double max,
                                             absl::string_view origin) {
  ASSIGN_OR_RETURN(const auto value, JsonNumber(json, key, origin));
  if (!value) return std::optional<float>();
  const float narrow = static_cast<float>(*value);
  if (narrow < min || (narrow == min && !with_min) || narrow > max) {
    return absl::InvalidArgumentError(absl::StrCat(
        origin, ": ", key, " must be ", with_min ? "between " : "above ", min,
        with_min ? " and " : " and at most ", max, ", is ", *value));
  }
  return std::optional<float>(narrow);
}

// What would change an answer elsewhere and does nothing here.
constexpr const char* kIgnored[] = {
    "bad_words_ids",
    "begin_suppress_tokens",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "penalty_alpha",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "typical_p",
};

// 0 and 1 turn the numbers among them off.
bool IsNeutral(const Json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) {
    return value.get<double>() == 0 || value.get<double>() == 1;
  }
  return value.is_null() || value.empty();
}

void WarnOfIgnored(const Json& raw, absl::string_view origin) {
  std::vector<const char*> names;
  for (const char* key : kIgnored) {
    const Json* value = FindJson(raw, key);
    // An id of 0 or 1 is an id.
    const bool is_id = absl::EndsWith(key, "_token_id");
    if (value != nullptr && (is_id || !IsNeutral(*value))) names.push_back(key);
  }
  if (names.empty()) return;
  LogWarning(absl::StrCat(
      origin, ": not supported, and ignored: ", absl::StrJoin(names, ", ")));
}

}  // namespace

absl::StatusOr<GenerationConfig> ParseGenerationConfig(
    absl::string_view json, absl::string_view origin) {
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr int32_t kMaxInt = std::numeric_limits<int32_t>::max();
  ASSIGN_OR_RETURN(const Json raw, ParseJsonObject(json, origin));
  GenerationConfig config;
  ASSIGN_OR_RETURN(config.do_sample, JsonBool(raw, "do_sample", origin));
  ASSIGN_OR_RETURN(config.temperature,
                   FloatIn(raw, "temperature", 0, true, kMax, origin));
  ASSIGN_OR_RETURN(config.top_p, FloatIn(raw, "top_p", 0, false, 1, origin));
  ASSIGN_OR_RETURN(config.min_p, FloatIn(raw, "min_p", 0, true, 1, origin));
  ASSIGN_OR_RETURN(config.repetition_penalty,
                   FloatIn(raw, "repetition_penalty", 0, false, kMax, origin));
  ASSIGN_OR_RETURN(const auto top_k, JsonInt(raw, "top_k", 0, kMaxInt, origin));
  if (top_k) config.top_k = static_cast<int32_t>(*top_k);
  ASSIGN_OR_RETURN(config.eos_ids,
                   ParseTokenIds(raw, "eos_token_id", kMaxInt, origin));
  return config;
}

absl::StatusOr<GenerationConfig> LoadGenerationConfig(
    const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/generation_config.json");
  const auto text = ReadFile(path, kMaxFileBytes);
  if (absl::IsNotFound(text.status())) return GenerationConfig();
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(const auto config, ParseGenerationConfig(*text, path));
  ASSIGN_OR_RETURN(const Json raw, ParseJsonObject(*text, path));
  WarnOfIgnored(raw, path);
  return config;
}

}  // namespace overfill
