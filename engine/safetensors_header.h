// The header of a safetensors file, read event by event: at 100 MB, a tree of
// JSON values would take many times its size.
#ifndef OVERFILL_ENGINE_SAFETENSORS_HEADER_H_
#define OVERFILL_ENGINE_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace overfill {

struct SafetensorsEntry {
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // in the data
  uint64_t end = 0;
};

// Bytes of one element of `dtype`; nullopt for an unknown name.
std::optional<uint64_t> SafetensorsElementBytes(absl::string_view dtype);

// The entries by name: whole, of known dtypes, each with begin <= end and as
// many bytes as shape and dtype say. How they lie beside each other is not
// checked here.
absl::StatusOr<std::map<std::string, SafetensorsEntry, std::less<>>>
ParseSafetensorsHeader(absl::string_view json, absl::string_view path);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_SAFETENSORS_HEADER_H_
