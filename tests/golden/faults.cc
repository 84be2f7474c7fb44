#include "tests/golden/faults.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/sha256.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

constexpr std::array<std::pair<const char*, Fault>, 7> kFaultNames = {{
    {"none", Fault::kNone},
    {"kv_zeroed", Fault::kKvZeroed},
    {"kv_swapped", Fault::kKvSwapped},
    {"positions_off_by_one", Fault::kPositionsOffByOne},
    {"last_block_dropped", Fault::kLastBlockDropped},
    {"first_token_by_decode", Fault::kFirstTokenByDecode},
    {"neighbours_block", Fault::kNeighboursBlock},
}};

// The faults reach into the store as if it were host memory: CPU only.
std::byte* Bytes(const KvView& kv, int64_t element) {
  return static_cast<std::byte*>(kv.data) + element * DTypeBytes(kv.dtype);
}

// A sequence's draws are samples of one request, at the same token.
bool DrawsFirstToken(const SequenceStep& step) {
  return !step.draws.empty() && step.draws[0]->token_index() == 0;
}

bool DrawsLaterToken(const SequenceStep& step) {
  return !step.draws.empty() && step.draws[0]->token_index() > 0;
}

bool IsFirstDecodeStep(const SequenceStep& step) {
  return DrawsLaterToken(step) && step.draws[0]->token_index() == 1 &&
         step.token_ids.size() == 1;
}

uint64_t SeedOf(const SequenceStep& step) {
  return step.draws[0]->params().seed;
}

}  // namespace

absl::StatusOr<Fault> ParseFault(absl::string_view name) {
  for (const auto& [known, fault] : kFaultNames) {
    if (name == known) return fault;
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown fault ", name));
}

void FaultyDecode::HurtKv(std::span<const int32_t> table, int32_t num_tokens) {
  const KvView& kv = store_.view();
  const int32_t block_tokens = kv.block_tokens;
  const int32_t num_blocks = (num_tokens + block_tokens - 1) / block_tokens;
  const int64_t half_bytes = kv.layer_elements() / 2 * DTypeBytes(kv.dtype);
  for (int32_t b = 0; b < num_blocks; ++b) {
    const bool partial = b == num_blocks - 1 && num_tokens % block_tokens != 0;
    for (int32_t layer = 0; layer < kv.num_layers; ++layer) {
      std::byte* k = Bytes(kv, kv.TileOffset(table[b], layer, 0, 0));
      if (fault_ == Fault::kKvZeroed ||
          (fault_ == Fault::kLastBlockDropped && partial)) {
        std::memset(k, 0, 2 * half_bytes);
      } else if (fault_ == Fault::kKvSwapped) {
        std::swap_ranges(k, k + half_bytes, k + half_bytes);
      }
    }
  }
}

absl::StatusOr<StepResult> FaultyDecode::Run(const StepBatch& batch) {
  StepBatch hurt = batch;
  std::vector<std::vector<int32_t>> tables(batch.sequences.size());
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    SequenceStep& step = hurt.sequences[i];
    if (!DrawsLaterToken(step)) continue;
    const uint64_t seed = SeedOf(step);
    first_blocks_.emplace(seed, step.block_table[0]);
    if (IsFirstDecodeStep(step)) HurtKv(step.block_table, step.start_position);
    if (fault_ == Fault::kPositionsOffByOne) --step.start_position;
    if (fault_ != Fault::kNeighboursBlock) continue;
    for (const auto& [other, block] : first_blocks_) {
      if (other == seed) continue;
      tables[i].assign(step.block_table.begin(), step.block_table.end());
      tables[i][0] = block;
      step.block_table = tables[i];
      break;
    }
  }
  return inner_.Run(hurt);
}

absl::StatusOr<StepResult> FirstTokenByDecode::Run(const StepBatch& batch) {
  ASSIGN_OR_RETURN(StepResult result, prefill_.Run(batch));
  auto tokens = result.tokens.begin();
  for (const SequenceStep& step : batch.sequences) {
    const auto first = std::exchange(tokens, tokens + std::ssize(step.draws));
    if (!DrawsFirstToken(step)) continue;
    SequenceStep last = step;
    last.token_ids = step.token_ids.last(1);
    last.start_position =
        step.start_position + static_cast<int32_t>(step.token_ids.size()) - 1;
    ASSIGN_OR_RETURN(StepResult again, decode_.Run({.sequences = {last}}));
    std::move(again.tokens.begin(), again.tokens.end(), first);
  }
  return result;
}

void KvDigests::Add(uint64_t seed, std::string digest) {
  MutexLock lock(&mu_);
  OVERFILL_CHECK(digests_.emplace(seed, std::move(digest)).second)
      << "request " << seed << " was handed over twice";
}

std::map<uint64_t, std::string> KvDigests::Take() {
  MutexLock lock(&mu_);
  return std::exchange(digests_, {});
}

absl::StatusOr<StepResult> KvProbe::Run(const StepBatch& batch) {
  if (when_ == When::kBeforeDecode) {
    for (const SequenceStep& step : batch.sequences) {
      if (!IsFirstDecodeStep(step)) continue;
      digests_.Add(SeedOf(step), Digest(step.block_table, step.start_position));
    }
  }
  ASSIGN_OR_RETURN(StepResult result, inner_.Run(batch));
  if (when_ == When::kAfterPrefill) {
    for (const SequenceStep& step : batch.sequences) {
      if (!DrawsFirstToken(step)) continue;
      digests_.Add(SeedOf(step),
                   Digest(step.block_table,
                          step.start_position +
                              static_cast<int32_t>(step.token_ids.size())));
    }
  }
  return result;
}

std::string KvProbe::Digest(std::span<const int32_t> table,
                            int32_t num_tokens) const {
  const KvView& kv = store_.view();
  Sha256 sha;
  for (int32_t layer : kv_layers_) {
    for (int half = 0; half < 2; ++half) {
      for (int32_t head = 0; head < kv.num_kv_heads; ++head) {
        for (int32_t token = 0; token < num_tokens; ++token) {
          const int64_t tile =
              kv.TileOffset(table[token / kv.block_tokens], layer, half, head);
          const int64_t slot = token % kv.block_tokens;
          sha.Update({reinterpret_cast<const char*>(
                          Bytes(kv, tile + slot * kv.head_dim)),
                      static_cast<size_t>(kv.head_dim * DTypeBytes(kv.dtype))});
        }
      }
    }
  }
  return HexString(sha.Finish());
}

}  // namespace overfill
