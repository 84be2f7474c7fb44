#include "engine/tokenizer/bpe.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/hash/hash.h"
#include "engine/tokenizer/unicode.h"

namespace overfill {
namespace {

// Up to this many symbols, looking for the best pair in a plain array beats a
// heap.
constexpr size_t kFewSymbols = 48;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

}  // namespace

size_t WordCache::SlotOf(absl::string_view word) {
  return absl::Hash<absl::string_view>()(word) % kNumSlots;
}

bool WordCache::Find(absl::string_view word, std::vector<int32_t>* ids) const {
  if (slots_ == nullptr || word.size() > kMaxWordBytes) return false;
  const Slot& slot = (*slots_)[SlotOf(word)];
  if (slot.word_bytes != word.size() ||
      std::memcmp(slot.word.data(), word.data(), word.size()) != 0) {
    return false;
  }
  ids->insert(ids->end(), slot.tokens.begin(),
              slot.tokens.begin() + slot.num_tokens);
  return true;
}

void WordCache::Insert(absl::string_view word, const int32_t* tokens,
                       size_t num_tokens) {
  if (word.empty() || word.size() > kMaxWordBytes || num_tokens > kMaxTokens) {
    return;
  }
  if (slots_ == nullptr) {
    slots_ = std::make_unique<std::array<Slot, kNumSlots>>();
  }
  Slot& slot = (*slots_)[SlotOf(word)];
  slot.word_bytes = static_cast<uint8_t>(word.size());
  std::memcpy(slot.word.data(), word.data(), word.size());
  slot.num_tokens = static_cast<uint8_t>(num_tokens);
  std::copy(tokens, tokens + num_tokens, slot.tokens.begin());
}

BpeModel::BpeModel(BpeConfig config) : config_(std::move(config)) {
  merges_.reserve(config_.merges.size());
  int32_t rank = 0;
  for (const Merge& merge : config_.merges) {
    merges_.try_emplace(PairKey(merge.left, merge.right),
                        MergeResult{rank++, merge.result});
  }
  config_.merges = {};
}

const BpeModel::MergeResult* BpeModel::FindMerge(int32_t left,
                                                 int32_t right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

void BpeModel::Encode(absl::string_view word, WordCache* cache,
                      std::vector<int32_t>* ids) const {
  if (!config_.whole_words.empty()) {
    const auto it = config_.whole_words.find(word);
    if (it != config_.whole_words.end()) {
      ids->push_back(it->second);
      return;
    }
  }
  if (config_.byte_level) return EncodePiece(word, cache, ids);
  // Without a pre-tokenizer a whole prompt is one word. It falls into parts
  // that no merge can ever join, in practice the words between spaces.
  for (size_t begin = 0; begin < word.size();) {
    const size_t end = UnjoinableEnd(word, begin);
    EncodePiece(word.substr(begin, end - begin), cache, ids);
    begin = end;
  }
}

size_t BpeModel::UnjoinableEnd(absl::string_view word, size_t begin) const {
  size_t pos = begin;
  char32_t left = NextChar(word, &pos);
  while (pos < word.size()) {
    size_t next = pos;
    const char32_t right = NextChar(word, &next);
    // Characters without a token become unknown or byte tokens, whose merges
    // (and the fusing of unknown tokens) do not go by their characters.
    if (!config_.joinable_chars.contains(PairKey(left, right)) &&
        config_.char_tokens.contains(left) &&
        config_.char_tokens.contains(right)) {
      break;
    }
    left = right;
    pos = next;
  }
  return pos;
}

void BpeModel::EncodePiece(absl::string_view piece, WordCache* cache,
                           std::vector<int32_t>* ids) const {
  if (cache != nullptr && cache->Find(piece, ids)) return;
  const size_t begin = ids->size();
  AppendSymbols(piece, ids);
  if (ids->size() - begin <= kFewSymbols) {
    MergeFew(ids, begin);
  } else {
    MergeMany(ids, begin);
  }
  if (cache != nullptr) {
    cache->Insert(piece, ids->data() + begin, ids->size() - begin);
  }
}

void BpeModel::AppendSymbols(absl::string_view piece,
                             std::vector<int32_t>* ids) const {
  bool behind_unknown = false;
  const auto append_unknown = [&] {
    if (config_.unk_token == kNoToken) return;
    if (!(behind_unknown && config_.fuse_unk)) {
      ids->push_back(config_.unk_token);
    }
    behind_unknown = true;
  };
  const auto append_byte = [&](char byte) {
    const int32_t token = config_.byte_tokens[static_cast<uint8_t>(byte)];
    if (token == kNoToken) return append_unknown();
    ids->push_back(token);
    behind_unknown = false;
  };
  if (config_.byte_level) {
    for (const char byte : piece) append_byte(byte);
    return;
  }
  for (size_t pos = 0; pos < piece.size();) {
    const size_t begin = pos;
    const auto it = config_.char_tokens.find(NextChar(piece, &pos));
    if (it != config_.char_tokens.end()) {
      ids->push_back(it->second);
      behind_unknown = false;
    } else if (config_.byte_fallback) {
      for (size_t i = begin; i < pos; ++i) append_byte(piece[i]);
    } else {
      append_unknown();
    }
  }
}

void BpeModel::MergeFew(std::vector<int32_t>* ids, size_t begin) const {
  int32_t* symbols = ids->data() + begin;
  size_t size = ids->size() - begin;
  // [size - 1]: what joining symbol i with its right neighbour gives.
  std::array<MergeResult, kFewSymbols> pairs;
  const auto find = [&](size_t i) {
    const MergeResult* merge = FindMerge(symbols[i], symbols[i + 1]);
    return merge == nullptr ? MergeResult{kNoRank, kNoToken} : *merge;
  };
  for (size_t i = 0; i + 1 < size; ++i) pairs[i] = find(i);
  while (size > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < size; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == kNoRank) break;
    symbols[best] = pairs[best].token;
    std::copy(symbols + best + 2, symbols + size, symbols + best + 1);
    std::copy(pairs.begin() + best + 1, pairs.begin() + size - 1,
              pairs.begin() + best);
    --size;
    if (best + 1 < size) pairs[best] = find(best);
    if (best > 0) pairs[best - 1] = find(best - 1);
  }
  ids->resize(begin + size);
}

void BpeModel::MergeMany(std::vector<int32_t>* ids, size_t begin) const {
  struct Symbol {
    int32_t token;  // kNoToken: merged into its left neighbour
    int32_t prev, next;
  };
  struct Candidate {
    int32_t rank;
    int32_t position;  // of the left symbol
    int32_t token;
    bool operator<(const Candidate& other) const {  // std heaps are max-heaps
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  const auto size = static_cast<int32_t>(ids->size() - begin);
  std::vector<Symbol> symbols(size);
  std::vector<Candidate> heap;
  heap.reserve(size);
  for (int32_t i = 0; i < size; ++i) {
    symbols[i] = {(*ids)[begin + i], i - 1, i + 1 < size ? i + 1 : -1};
  }
  const auto candidate = [&](int32_t i) -> std::optional<Candidate> {
    if (i < 0 || symbols[i].next < 0) return std::nullopt;
    const MergeResult* merge =
        FindMerge(symbols[i].token, symbols[symbols[i].next].token);
    if (merge == nullptr) return std::nullopt;
    return Candidate{merge->rank, i, merge->token};
  };
  for (int32_t i = 0; i < size; ++i) {
    if (const auto found = candidate(i)) heap.push_back(*found);
  }
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    const Candidate top = heap.front();
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
    Symbol& left = symbols[top.position];
    if (left.token == kNoToken) continue;
    // A merge since then may have changed the pair.
    const auto current = candidate(top.position);
    if (!current || current->rank != top.rank) continue;
    Symbol& right = symbols[left.next];
    left.token = top.token;
    right.token = kNoToken;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].prev = top.position;
    for (const int32_t i : {left.prev, top.position}) {
      if (const auto found = candidate(i)) {
        heap.push_back(*found);
        std::push_heap(heap.begin(), heap.end());
      }
    }
  }
  ids->resize(begin);
  for (int32_t i = 0; i >= 0; i = symbols[i].next) {
    ids->push_back(symbols[i].token);
  }
}

}  // namespace overfill
