// Token ids in a checkpoint's JSON files.
#ifndef OVERFILL_ENGINE_TOKEN_IDS_H_
#define OVERFILL_ENGINE_TOKEN_IDS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/json.h"

namespace overfill {

// The member `key` of `object`, one id or a list of them, each below `end`; as
// the file has them. Absent or null: none.
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const Json& object,
                                                   const char* key, int32_t end,
                                                   absl::string_view origin);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TOKEN_IDS_H_
