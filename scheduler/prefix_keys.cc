#include "scheduler/prefix_keys.h"

#include <string>

#include "base/check.h"
#include "base/sha256.h"

namespace overfill {
namespace {

constexpr absl::string_view kDomain = "overfill prefix block v1";

void AppendInt32(int32_t value, std::string& bytes) {
  const auto bits = static_cast<uint32_t>(value);
  for (int shift = 0; shift < 32; shift += 8) {
    bytes.push_back(static_cast<char>(bits >> shift & 0xff));
  }
}

absl::string_view Bytes(const BlockKey& key) {
  return {reinterpret_cast<const char*>(key.data()), key.size()};
}

}  // namespace

std::vector<BlockKey> PrefixKeys(absl::string_view model_digest,
                                 absl::string_view tenant,
                                 std::span<const int32_t> tokens,
                                 int32_t block_tokens, int32_t num_blocks) {
  OVERFILL_CHECK(block_tokens > 0 && num_blocks >= 0)
      << num_blocks << " blocks of " << block_tokens << " tokens";
  OVERFILL_CHECK_LE(int64_t{num_blocks} * block_tokens,
                    static_cast<int64_t>(tokens.size()));
  std::string size;
  AppendInt32(block_tokens, size);
  std::vector<BlockKey> keys;
  keys.reserve(num_blocks);
  std::string ids;
  for (int32_t block = 0; block < num_blocks; ++block) {
    ids.clear();
    for (int32_t token : tokens.subspan(
             static_cast<size_t>(block) * block_tokens, block_tokens)) {
      AppendInt32(token, ids);
    }
    Sha256 hash;
    hash.UpdateField(kDomain);
    hash.UpdateField(model_digest);
    hash.UpdateField(tenant);
    hash.UpdateField(size);
    hash.UpdateField(keys.empty() ? absl::string_view() : Bytes(keys.back()));
    hash.UpdateField(ids);
    keys.push_back(hash.Finish());
  }
  return keys;
}

}  // namespace overfill
