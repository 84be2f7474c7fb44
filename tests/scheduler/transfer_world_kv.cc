// What the blocks of a TransferWorld hold, and who shares it: the prefix cache
// and the fork.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "tests/scheduler/transfer_world.h"

namespace overfill {
namespace {

// Of the first `count` blocks of the one prompt.
std::vector<BlockKey> Keys(int32_t count) {
  std::vector<BlockKey> keys(count);
  for (int32_t i = 0; i < count; ++i) keys[i][0] = static_cast<uint8_t>(i + 1);
  return keys;
}

}  // namespace

// ---- The prefix cache.

std::vector<int32_t> TransferWorld::FindPrefix() const {
  if (!options_.has_prefix_cache) return {};
  return pools_[kPrefillStore].FindPrefix(
      Keys((options_.prompt_tokens - 1) / options_.block_tokens));
}

int32_t TransferWorld::NumHeld() const {
  const std::vector<int32_t> prefix = FindPrefix();
  return static_cast<int32_t>(
      std::count_if(prefix.begin(), prefix.end(), [this](int32_t block) {
        return !pools_[kPrefillStore].IsCached(block);
      }));
}

void TransferWorld::Adopt(int request) {
  Sequence& sequence = sequences_[request];
  Holding& holding = sequence.holdings[kPrefillStore];
  for (int32_t block : FindPrefix()) {
    NoteReuse(block);
    if (pools_[kPrefillStore].IsCached(block)) --holding.credits;
    pools_[kPrefillStore].Reuse(block, UidOf(request));
    holding.table.push_back(block);
    sequence.computed += options_.block_tokens;
  }
  OVERFILL_CHECK_GE(holding.credits, 0);
}

void TransferWorld::NoteReuse(int32_t block) {
  bool is_held = false;
  for (const Sequence& sequence : sequences_) {
    const std::vector<int32_t>& table = sequence.holdings[kPrefillStore].table;
    is_held = is_held || std::count(table.begin(), table.end(), block) > 0;
  }
  const bool is_cached = pools_[kPrefillStore].IsCached(block);
  const WorldBug reuse = is_cached ? WorldBug::kReusesCached
                         : is_held ? WorldBug::kReusesHeld
                                   : WorldBug::kReusesQuarantined;
  if (options_.bug == reuse) violation_ = "reused";
}

void TransferWorld::Publish(int request) {
  if (!options_.has_prefix_cache) return;
  const std::vector<BlockKey> keys =
      Keys(options_.prompt_tokens / options_.block_tokens);
  const Holding& holding = sequences_[request].holdings[kPrefillStore];
  for (size_t i = 0; i < keys.size(); ++i) {
    pools_[kPrefillStore].Publish(holding.table[i], keys[i]);
  }
}

void TransferWorld::Withdraw(int request) {
  const Sequence& sequence = sequences_[request];
  for (int store = 0; store < kNumStores; ++store) {
    for (int32_t block : sequence.holdings[store].table) {
      pools_[store].Withdraw(block);
    }
  }
}

int TransferWorld::KeyOf(int32_t block) const {
  if (!options_.has_prefix_cache) return -1;
  const std::vector<BlockKey> keys =
      Keys(options_.prompt_tokens / options_.block_tokens);
  for (size_t i = 0; i < keys.size(); ++i) {
    const std::vector<int32_t> found =
        pools_[kPrefillStore].FindPrefix(std::span(keys).subspan(i, 1));
    if (!found.empty() && found[0] == block) return static_cast<int>(i);
  }
  return -1;
}

// ---- The fork.

void TransferWorld::BeginAnswers(int request) {
  sequences_[request].state = State::kDecoding;
  for (int sample = 0; sample < kNumRequests; ++sample) {
    if (sequences_[sample].state == State::kWaiting) Fork(request, sample);
  }
}

void TransferWorld::Fork(int from, int to) {
  const std::vector<int32_t>& source =
      sequences_[from].holdings[decode_store_].table;
  Sequence& sample = sequences_[to];
  Holding& holding = sample.holdings[decode_store_];
  sample.computed = options_.prompt_tokens;
  const int32_t full = options_.prompt_tokens / options_.block_tokens;
  const int32_t rest = options_.prompt_tokens % options_.block_tokens;
  const bool shares_all = options_.bug == WorldBug::kForksNoCopy;
  const int32_t num_shared = full + (shares_all && rest > 0 ? 1 : 0);
  for (int32_t i = 0; i < num_shared; ++i) {
    pools_[decode_store_].Share(source[i]);
    holding.table.push_back(source[i]);
  }
  sample.state = State::kDecoding;
  if (rest == 0 || shares_all) return;
  Allocate(to, decode_store_, 1);
  Send(to, {.from_store = decode_store_,
            .to_store = decode_store_,
            .coverage = {options_.prompt_tokens - rest, options_.prompt_tokens},
            .source = {source[full]},
            .destination = {holding.table[full]}});
  if (options_.bug == WorldBug::kForksAtOnce) return;
  sample.state = State::kForking;
}

// ---- The contents.

TransferWorld::Content TransferWorld::RightContent(int request,
                                                   int32_t position) const {
  const bool is_common =
      is_content_shared() && position < options_.prompt_tokens;
  return {.whose = is_common ? Content::kPrompt : request,
          .position = position};
}

size_t TransferWorld::SlotOf(const std::vector<int32_t>& table,
                             int32_t position) const {
  const int32_t block = table[position / options_.block_tokens];
  return block * options_.block_tokens + position % options_.block_tokens;
}

void TransferWorld::WriteStep(int pool, bool is_over, int bad) {
  const Step& step = steps_[pool];
  for (int request = 0; request < kNumRequests; ++request) {
    if ((step.mask >> request & 1) == 0) continue;
    const bool is_good = is_over && (bad >> request & 1) == 0;
    for (int32_t i = step.begin[request]; i < step.end[request]; ++i) {
      contents_[StoreOf(pool)][SlotOf(step.blocks[request], i)] =
          is_good ? RightContent(request, i) : Content();
    }
  }
}

// The transfer writes from the moment on when it begins; all is there at its
// end, read when the source may have become something else.
void TransferWorld::WriteTransfer(const Wire& wire, bool is_whole) {
  const KvTransfer& transfer = wire.transfer;
  const int32_t first =
      transfer.coverage.begin / options_.block_tokens * options_.block_tokens;
  for (int32_t i = transfer.coverage.begin; i < transfer.coverage.end; ++i) {
    Content content;
    if (is_whole) {
      content =
          contents_[transfer.from_store][SlotOf(transfer.source, i - first)];
    }
    contents_[transfer.to_store][SlotOf(transfer.destination, i - first)] =
        content;
  }
}

// What can be read is what it is taken for.
std::string TransferWorld::CheckContents() const {
  for (int request = 0; request < kNumRequests; ++request) {
    const Sequence& sequence = sequences_[request];
    const int store = StoreOfKv(request);
    if (store < 0) continue;
    int32_t end = sequence.computed;
    if (sequence.state == State::kForking) {
      end -= options_.prompt_tokens % options_.block_tokens;
    }
    for (int32_t i = 0; i < end; ++i) {
      const size_t slot = SlotOf(sequence.holdings[store].table, i);
      if (contents_[store][slot] == RightContent(request, i)) continue;
      return absl::StrCat("position ", i, " of request ", request,
                          " is not what it was");
    }
  }
  if (!options_.has_prefix_cache) return "";
  for (int32_t block = 0; block < options_.blocks[kPrefillStore]; ++block) {
    const int key = KeyOf(block);
    if (key < 0) continue;
    for (int32_t i = 0; i < options_.block_tokens; ++i) {
      const Content right = RightContent(0, key * options_.block_tokens + i);
      if (contents_[kPrefillStore][SlotOf({block}, i)] == right) continue;
      return absl::StrCat("block ", block, " is found as what it is not");
    }
  }
  return "";
}

int TransferWorld::StoreOfKv(int request) const {
  switch (sequences_[request].state) {
    case State::kPrefilling:
    case State::kMigrating:
    case State::kToRetry:
      return kPrefillStore;
    case State::kForking:
    case State::kDecoding:
    case State::kSwappingOut:
      return decode_store_;
    case State::kSwapped:
    case State::kSwappingIn:
      return swap_store_;
    default:
      return -1;
  }
}

}  // namespace overfill
