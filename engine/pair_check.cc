#include "engine/pair_check.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

template <typename T>
absl::Status Same(absl::string_view field, const T& full, const T& pruned) {
  if (full == pruned) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", full, " and ", pruned));
}

absl::Status CheckRope(const RopeConfig& full, const RopeConfig& pruned) {
  RETURN_IF_ERROR(Same("rope_theta", full.theta, pruned.theta));
  const auto type = [](const RopeConfig& rope) {
    return rope.llama3 ? "llama3" : "default";
  };
  RETURN_IF_ERROR(
      Same<absl::string_view>("rope_type", type(full), type(pruned)));
  if (!full.llama3) return absl::OkStatus();
  const Llama3RopeScaling& a = *full.llama3;
  const Llama3RopeScaling& b = *pruned.llama3;
  RETURN_IF_ERROR(Same("RoPE factor", a.factor, b.factor));
  RETURN_IF_ERROR(
      Same("RoPE low_freq_factor", a.low_freq_factor, b.low_freq_factor));
  RETURN_IF_ERROR(
      Same("RoPE high_freq_factor", a.high_freq_factor, b.high_freq_factor));
  return Same("RoPE original_max_position_embeddings", a.original_max_positions,
              b.original_max_positions);
}

std::string ListText(std::vector<int32_t> ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return absl::StrCat("[", absl::StrJoin(ids, ", "), "]");
}

// Fields of special tokens: compared where both sides state them.
absl::Status SameIds(absl::string_view field, const std::vector<int32_t>& full,
                     const std::vector<int32_t>& pruned) {
  if (full.empty() || pruned.empty()) return absl::OkStatus();
  return Same(field, ListText(full), ListText(pruned));
}
absl::Status SameId(absl::string_view field, std::optional<int32_t> full,
                    std::optional<int32_t> pruned) {
  if (!full || !pruned) return absl::OkStatus();
  return Same(field, *full, *pruned);
}

absl::Status CheckVocabulary(const PairSide& full, const PairSide& pruned) {
  RETURN_IF_ERROR(
      Same("vocab_size", full.config.vocab_size, pruned.config.vocab_size));
  const std::string difference =
      full.tokenizer->DescribeDifference(*pruned.tokenizer);
  if (!difference.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.json differs: ", difference));
  }
  RETURN_IF_ERROR(
      SameId("bos_token_id", full.config.bos_id, pruned.config.bos_id));
  RETURN_IF_ERROR(SameId("bos_token of the tokenizer", full.tokenizer->bos_id(),
                         pruned.tokenizer->bos_id()));
  RETURN_IF_ERROR(
      SameIds("eos_token_id", full.config.eos_ids, pruned.config.eos_ids));
  RETURN_IF_ERROR(SameId("eos_token of the tokenizer", full.tokenizer->eos_id(),
                         pruned.tokenizer->eos_id()));
  return SameIds("eos_token_id of generation_config.json",
                 full.generation.eos_ids, pruned.generation.eos_ids);
}

absl::Status CheckFields(const PairSide& full, const PairSide& pruned,
                         const KvMapSpec& map) {
  RETURN_IF_ERROR(CheckVocabulary(full, pruned));
  RETURN_IF_ERROR(CheckKvMap(map, full.config, pruned.config));
  RETURN_IF_ERROR(CheckRope(full.config.rope, pruned.config.rope));
  // A projection may lead from one family's KV to another's.
  if (map.kind != KvMapKind::kProjection) {
    RETURN_IF_ERROR(Same<absl::string_view>(
        "architecture", ArchitectureName(full.config.architecture),
        ArchitectureName(pruned.config.architecture)));
  }
  // What the pruned model was trained to read is KV of the full model's type.
  RETURN_IF_ERROR(Same<absl::string_view>("dtype", DTypeName(full.config.dtype),
                                          DTypeName(pruned.config.dtype)));
  return Same<absl::string_view>("KV dtype", DTypeName(full.kv_dtype),
                                 DTypeName(pruned.kv_dtype));
}

}  // namespace

absl::Status CheckPair(const PairSide& full, const PairSide& pruned,
                       const KvMapSpec& map) {
  const absl::Status status = CheckFields(full, pruned, map);
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(full.directory, " and ", pruned.directory,
                                   " are no pair: ", status.message()));
}

absl::StatusOr<std::vector<int32_t>> EosIds(const PairSide& side) {
  std::vector<int32_t> ids = side.generation.eos_ids;
  if (ids.empty()) ids = side.config.eos_ids;
  if (ids.empty() && side.tokenizer->eos_id()) {
    ids.push_back(*side.tokenizer->eos_id());
  }
  for (const int32_t id : ids) {
    if (id >= 0 && id < side.config.vocab_size) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        side.directory, "/generation_config.json: eos_token_id ", id,
        " is not below the vocab_size ", side.config.vocab_size));
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace overfill
