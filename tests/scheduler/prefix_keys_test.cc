#include "scheduler/prefix_keys.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/sha256.h"
#include "gtest/gtest.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

using Tokens = std::vector<int32_t>;

Tokens RandomTokens(std::mt19937_64& random, size_t count) {
  Tokens tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random());
  return tokens;
}

// A field as the definition has it: its length in 8 bytes, then its bytes.
std::string Field(const std::string& bytes) {
  std::string field(8, '\0');
  uint64_t length = bytes.size();
  for (char& byte : field) {
    byte = static_cast<char>(length % 256);
    length /= 256;
  }
  return field + bytes;
}

std::string LittleEndian(int64_t value) {
  if (value < 0) value += int64_t{1} << 32;
  std::string bytes;
  for (int i = 0; i < 4; ++i, value /= 256) {
    bytes += static_cast<char>(value % 256);
  }
  return bytes;
}

// One block's key, from the whole text of the definition at once.
BlockKey ByDefinition(const std::string& model, const std::string& tenant,
                      int32_t block_tokens, const std::string& parent,
                      const Tokens& block) {
  std::string ids;
  for (int32_t token : block) ids += LittleEndian(token);
  Sha256 hash;
  hash.Update(Field("overfill prefix block v1") + Field(model) + Field(tenant) +
              Field(LittleEndian(block_tokens)) + Field(parent) + Field(ids));
  return hash.Finish();
}

TEST(PrefixKeys, FollowTheirDefinition) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 200; ++round) {
    const auto block_tokens = static_cast<int32_t>(1 + random() % 20);
    const auto num_blocks = static_cast<int32_t>(random() % 6);
    const Tokens tokens = RandomTokens(
        random, block_tokens * num_blocks + random() % block_tokens);
    const std::string model(random() % 40, 'm');
    const std::string tenant(random() % 300, '\0');
    std::vector<BlockKey> expected;
    std::string parent;
    for (int32_t i = 0; i < num_blocks; ++i) {
      const auto begin = tokens.begin() + i * block_tokens;
      expected.push_back(ByDefinition(model, tenant, block_tokens, parent,
                                      {begin, begin + block_tokens}));
      parent.assign(expected.back().begin(), expected.back().end());
    }
    EXPECT_EQ(PrefixKeys(model, tenant, tokens, block_tokens, num_blocks),
              expected);
  }
}

TEST(PrefixKeys, DependOnNothingAfterTheirBlock) {
  std::mt19937_64 random(TestSeed());
  Tokens tokens = RandomTokens(random, 67);
  const std::vector<BlockKey> keys = PrefixKeys("m", "t", tokens, 16, 4);
  const std::vector<BlockKey> first = {keys[0], keys[1]};
  EXPECT_EQ(PrefixKeys("m", "t", tokens, 16, 2), first);
  tokens.resize(33);
  EXPECT_EQ(PrefixKeys("m", "t", tokens, 16, 2), first);
  tokens[32] ^= 1;
  EXPECT_EQ(PrefixKeys("m", "t", tokens, 16, 2), first);
  EXPECT_TRUE(PrefixKeys("m", "t", tokens, 16, 0).empty());
  EXPECT_TRUE(PrefixKeys("m", "t", {}, 16, 0).empty());
}

// The first block whose keys differ; all later ones must differ, too.
size_t FirstDifference(const std::vector<BlockKey>& a,
                       const std::vector<BlockKey>& b) {
  EXPECT_EQ(a.size(), b.size());
  size_t first = 0;
  while (first < a.size() && a[first] == b[first]) ++first;
  for (size_t i = first; i < a.size(); ++i) EXPECT_NE(a[i], b[i]) << i;
  return first;
}

TEST(PrefixKeys, AnyChangeChangesAllKeysFromThereOn) {
  std::mt19937_64 random(TestSeed());
  constexpr int32_t kBlockTokens = 4;
  constexpr int32_t kBlocks = 5;
  const Tokens tokens = RandomTokens(random, kBlockTokens * kBlocks);
  const std::vector<BlockKey> keys =
      PrefixKeys("model", "tenant", tokens, kBlockTokens, kBlocks);
  const auto first_difference = [&](const std::string& model,
                                    const std::string& tenant) {
    return FirstDifference(
        keys, PrefixKeys(model, tenant, tokens, kBlockTokens, kBlocks));
  };
  EXPECT_EQ(first_difference("model", "tenant"), keys.size());
  EXPECT_EQ(first_difference("model2", "tenant"), 0u);
  EXPECT_EQ(first_difference("model", "tenanT"), 0u);
  EXPECT_EQ(first_difference("model", ""), 0u);
  for (size_t position = 0; position < tokens.size(); ++position) {
    for (int bit = 0; bit < 32; ++bit) {
      Tokens other = tokens;
      other[position] = static_cast<int32_t>(
          static_cast<uint32_t>(other[position]) ^ uint32_t{1} << bit);
      EXPECT_EQ(FirstDifference(keys, PrefixKeys("model", "tenant", other,
                                                 kBlockTokens, kBlocks)),
                position / kBlockTokens);
    }
  }
  // Two tokens that change places, within a block and over its end.
  for (size_t position : {0, 3, 13}) {
    Tokens other = tokens;
    std::swap(other[position], other[position + 1]);
    EXPECT_EQ(FirstDifference(keys, PrefixKeys("model", "tenant", other,
                                               kBlockTokens, kBlocks)),
              position / kBlockTokens);
  }
}

TEST(PrefixKeys, ABlockOfTheSameTokensHasAnotherKeyElsewhere) {
  const Tokens tokens(64, 7);
  std::set<BlockKey> keys;
  size_t count = 0;
  for (int32_t block_tokens : {1, 2, 4, 8, 16, 32, 64}) {
    for (const BlockKey& key :
         PrefixKeys("m", "t", tokens, block_tokens, 64 / block_tokens)) {
      keys.insert(key);
      ++count;
    }
  }
  EXPECT_EQ(keys.size(), count);
}

// The bytes of one field in another: moved over every boundary between two
// neighbours, and a field that looks like the text of those after it.
TEST(PrefixKeys, FieldsDoNotRunIntoEachOther) {
  std::set<BlockKey> keys;
  size_t count = 0;
  const auto add = [&](const std::string& model, const std::string& tenant,
                       const Tokens& tokens) {
    keys.insert(PrefixKeys(model, tenant, tokens,
                           static_cast<int32_t>(tokens.size()), 1)[0]);
    ++count;
  };
  const std::string text = "abcabcabc";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    add(text.substr(0, cut), text.substr(cut), {1, 2});
  }
  // The tenant against what follows it: sizes, the parent, the tokens.
  const std::string size = LittleEndian(2);
  const std::string ids = LittleEndian(1) + LittleEndian(2);
  add("m", "", {1, 2});
  add("m", size, {1, 2});
  add("m", Field(size), {1, 2});
  add("m", Field(size) + Field("") + Field(ids), {1, 2});
  add("m" + Field(""), "", {1, 2});
  add("m" + Field("t"), "", {1, 2});
  add("m", "t", {1, 2});
  add("m", std::string("t\0", 2), {1, 2});
  add("m", "t", {1});
  add("m", "t", {1, 2, 0});
  EXPECT_EQ(keys.size(), count);

  // A second block's parent is not to be had as a first block's tokens, nor
  // in its tenant.
  const BlockKey parent = PrefixKeys("m", "t", Tokens{1}, 1, 1)[0];
  const BlockKey child = PrefixKeys("m", "t", Tokens{1, 2}, 1, 2)[1];
  Tokens words(parent.size() / 4);
  std::memcpy(words.data(), parent.data(), parent.size());
  words.push_back(2);
  EXPECT_NE(PrefixKeys("m", "t", words, 9, 1)[0], child);
  EXPECT_NE(PrefixKeys("m", "t" + std::string(parent.begin(), parent.end()),
                       Tokens{2}, 1, 1)[0],
            child);
}

// A client chooses its tokens: they must not spell the end of another tenant's
// text, were the tenant's length not in front of it.
TEST(PrefixKeys, TokensCannotSpellTheEndOfAnotherTenantsText) {
  const std::string end = Field(LittleEndian(2)) + Field("") +
                          Field(LittleEndian(1) + LittleEndian(2));
  ASSERT_EQ(end.size() % 4, 0u);
  Tokens words(end.size() / 4);
  std::memcpy(words.data(), end.data(), end.size());
  const auto count = static_cast<int32_t>(words.size());
  const std::string whole = Field(LittleEndian(count)) + Field("") + Field(end);
  const std::string tenant = whole.substr(0, whole.size() - end.size());
  EXPECT_NE(PrefixKeys("m", "", words, count, 1),
            PrefixKeys("m", tenant, Tokens{1, 2}, 2, 1));
}

TEST(PrefixKeysDeathTest, OnlyFullBlocksHaveKeys) {
  const Tokens tokens(7);
  EXPECT_DEATH(PrefixKeys("m", "t", tokens, 4, 2), "8 vs 7");
  EXPECT_DEATH(PrefixKeys("m", "t", tokens, 1 << 30, 1 << 30), "vs 7");
  EXPECT_DEATH(PrefixKeys("m", "t", tokens, 0, 1), "1 blocks of 0 tokens");
  EXPECT_DEATH(PrefixKeys("m", "t", tokens, 4, -1), "-1 blocks");
}

}  // namespace
}  // namespace overfill
