// Tables and chains of keys for the tests of the block pool.
#ifndef OVERFILL_TESTS_SCHEDULER_BLOCK_POOL_HELPERS_H_
#define OVERFILL_TESTS_SCHEDULER_BLOCK_POOL_HELPERS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/block_pool.h"

namespace overfill {

// The key of a chain's block; unlike all others.
inline BlockKey Key(uint8_t chain, uint8_t depth) {
  BlockKey key{};
  key[0] = chain;
  key[31] = depth;
  return key;
}

inline std::vector<BlockKey> Chain(uint8_t chain, uint8_t length) {
  std::vector<BlockKey> keys;
  for (uint8_t depth = 0; depth < length; ++depth) {
    keys.push_back(Key(chain, depth));
  }
  return keys;
}

// A table that `owner` alone holds.
inline std::vector<int32_t> Take(BlockPool& pool, BlockPool::Owner owner,
                                 int32_t count) {
  EXPECT_TRUE(pool.Reserve(count));
  std::vector<int32_t> table;
  for (int32_t i = 0; i < count; ++i) table.push_back(pool.Allocate(owner));
  return table;
}

// The same, published as a chain.
inline std::vector<int32_t> TakeChain(BlockPool& pool, BlockPool::Owner owner,
                                      uint8_t chain, uint8_t length) {
  std::vector<int32_t> table = Take(pool, owner, length);
  for (uint8_t i = 0; i < length; ++i) pool.Publish(table[i], Key(chain, i));
  return table;
}

// Back to front, as BlockPool asks for.
inline void ReleaseTable(BlockPool& pool, BlockPool::Owner owner,
                         const std::vector<int32_t>& table) {
  for (size_t i = table.size(); i-- > 0;) pool.Release(table[i], owner);
}

}  // namespace overfill

#endif  // OVERFILL_TESTS_SCHEDULER_BLOCK_POOL_HELPERS_H_
