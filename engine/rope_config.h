// The RoPE parameters of a config.json, in either spelling.
#ifndef OVERFILL_ENGINE_ROPE_CONFIG_H_
#define OVERFILL_ENGINE_ROPE_CONFIG_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/json.h"
#include "engine/model_config.h"

namespace overfill {

// `config` is the whole config.json: rope_theta and rope_scaling
// (transformers 4), or rope_parameters (transformers 5). Where both are there
// they must agree. INVALID_ARGUMENT names the key: an absent theta, a type
// other than default and llama3, partial rotary.
absl::StatusOr<RopeConfig> ParseRopeConfig(const Json& config,
                                           absl::string_view origin);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_ROPE_CONFIG_H_
