// Arbitrary bytes as a safetensors file, and as an index of shards: what is
// accepted must keep the rules that the loader relies on.
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "base/check.h"
#include "base/checked_math.h"
#include "engine/safetensors.h"
#include "engine/safetensors_header.h"

namespace overfill {
namespace {

void CheckTensors(std::span<const std::byte> file,
                  const StoredTensors& tensors) {
  size_t used = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto elements = CheckedProduct(tensor.shape);
    OVERFILL_CHECK(elements.has_value()) << name;
    const auto width = SafetensorsElementBytes(tensor.dtype);
    OVERFILL_CHECK(width.has_value()) << tensor.dtype;
    OVERFILL_CHECK_EQ(*elements * *width, tensor.bytes.size());
    OVERFILL_CHECK(tensor.bytes.data() >= file.data() &&
                   tensor.bytes.data() + tensor.bytes.size() <=
                       file.data() + file.size())
        << name;
    used += tensor.bytes.size();
  }
  // What is no tensor is the header and its size: at least 8 bytes and "{}".
  OVERFILL_CHECK_LE(used + 10, file.size());
}

}  // namespace
}  // namespace overfill

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto tensors = overfill::ParseSafetensors(bytes, "fuzz");
  if (tensors.ok()) {
    overfill::CheckTensors(bytes, *tensors);
  } else {
    OVERFILL_CHECK(!absl::StrContains(tensors.status().message(), '\n'));
  }
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto index = overfill::ParseSafetensorsIndex(text, "fuzz");
  if (!index.ok()) return 0;
  for (const auto& [name, shard] : *index) {
    OVERFILL_CHECK(!absl::StrContains(shard, '/') && shard[0] != '.');
  }
  return 0;
}
