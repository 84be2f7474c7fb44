#include "engine/token_ids.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace overfill {

absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const Json& object,
                                                   const char* key, int32_t end,
                                                   absl::string_view origin) {
  // A list longer than this is no list of a few special tokens.
  constexpr size_t kMaxIds = 1024;
  std::vector<int32_t> ids;
  const Json* value = FindJson(object, key);
  if (value == nullptr) return ids;
  const Json list = value->is_array() ? *value : Json::array({*value});
  if (list.size() > kMaxIds) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": ", key, " lists ", list.size(),
                     " ids, more than ", kMaxIds));
  }
  for (const Json& id : list) {
    if (!id.is_number_unsigned() ||
        id.get<uint64_t>() >= static_cast<uint64_t>(end)) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ": ", key, " must be token ids below ", end));
    }
    ids.push_back(static_cast<int32_t>(id.get<uint64_t>()));
  }
  return ids;
}

}  // namespace overfill
