#include "scheduler/block_pool.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/scheduler/block_pool_helpers.h"

namespace overfill {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(BlockPool, CreditsAreNeverMoreThanFreeBlocks) {
  BlockPool pool(3);
  EXPECT_TRUE(pool.Reserve(2));
  EXPECT_FALSE(pool.Reserve(2));
  EXPECT_EQ(pool.credits(), 2);
  EXPECT_TRUE(pool.Reserve(1));
  EXPECT_FALSE(pool.Reserve(1));
  const int32_t block = pool.Allocate(7);
  EXPECT_EQ(pool.credits(), 2);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.available(), 0);
  pool.Unreserve(2);
  EXPECT_EQ(pool.available(), 2);
  pool.Release(block, 7);
  EXPECT_EQ(pool.available(), 3);
  EXPECT_TRUE(pool.CheckIntegrity({}).ok());
}

TEST(BlockPool, APinnedBlockIsQuarantinedUntilItsLastPinIsGone) {
  BlockPool pool(2);
  ASSERT_TRUE(pool.Reserve(1));
  const std::vector<int32_t> table = {pool.Allocate(1)};
  const uint64_t step = pool.Pin(table, "a step");
  const uint64_t copy = pool.Pin(table, "a copy");
  pool.Release(table[0], 1);
  EXPECT_EQ(pool.num_quarantined(), 1);
  EXPECT_EQ(pool.num_owned(), 0);
  // What is quarantined is not promised to anybody.
  EXPECT_FALSE(pool.Reserve(2));
  EXPECT_TRUE(pool.CheckIntegrity({}).ok());
  pool.Unpin(step);
  EXPECT_EQ(pool.num_quarantined(), 1);
  pool.Unpin(copy);
  EXPECT_EQ(pool.num_quarantined(), 0);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_TRUE(pool.CheckIntegrity({}).ok());
}

TEST(BlockPool, ASharedBlockIsFreeAfterItsLastReference) {
  BlockPool pool(1);
  ASSERT_TRUE(pool.Reserve(1));
  const std::vector<int32_t> table = {pool.Allocate(1)};
  pool.Share(table[0]);
  const BlockPool::Holding both[] = {{1, table, 0}, {2, table, 0}};
  EXPECT_TRUE(pool.CheckIntegrity(both).ok()) << pool.CheckIntegrity(both);
  pool.Release(table[0], 1);
  EXPECT_EQ(pool.num_owned(), 1);
  pool.Release(table[0], 2);
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(BlockPool, AHandedOverBlockIsTheNewOwners) {
  BlockPool pool(1);
  ASSERT_TRUE(pool.Reserve(1));
  const std::vector<int32_t> table = {pool.Allocate(1)};
  pool.Transfer(table[0], 1, 2);
  const BlockPool::Holding before[] = {{1, table, 0}};
  EXPECT_FALSE(pool.CheckIntegrity(before).ok());
  const BlockPool::Holding after[] = {{2, table, 0}};
  EXPECT_TRUE(pool.CheckIntegrity(after).ok());
}

TEST(BlockPool, AReleasedPublishedBlockIsKeptUntilItIsNeeded) {
  BlockPool pool(3);
  const std::vector<int32_t> table = TakeChain(pool, 1, 7, 2);
  ReleaseTable(pool, 1, table);
  EXPECT_EQ(pool.num_cached(), 2);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.available(), 3);
  EXPECT_EQ(pool.FindPrefix(Chain(7, 3)), table);
  EXPECT_TRUE(pool.IsCached(table[0]));
  // The free one goes first, then the deeper of the chain.
  const std::vector<int32_t> other = Take(pool, 2, 2);
  EXPECT_THAT(other, ElementsAre(2, table[1]));
  EXPECT_THAT(pool.FindPrefix(Chain(7, 3)), ElementsAre(table[0]));
  const BlockPool::Holding holdings[] = {{2, other, 0}};
  EXPECT_TRUE(pool.CheckIntegrity(holdings).ok());
  ReleaseTable(pool, 2, other);
  EXPECT_EQ(pool.num_free(), 2);
}

TEST(BlockPool, FindPrefixEndsAtTheFirstKeyThatIsNotThere) {
  BlockPool pool(4);
  const std::vector<int32_t> table = TakeChain(pool, 1, 7, 3);
  EXPECT_THAT(pool.FindPrefix({}), IsEmpty());
  EXPECT_THAT(pool.FindPrefix(Chain(8, 3)), IsEmpty());
  EXPECT_EQ(pool.FindPrefix(Chain(7, 4)), table);
  EXPECT_THAT(pool.FindPrefix(Chain(7, 1)), ElementsAre(table[0]));
  pool.Withdraw(table[1]);
  EXPECT_THAT(pool.FindPrefix(Chain(7, 3)), ElementsAre(table[0]));
  pool.Withdraw(table[0]);
  EXPECT_THAT(pool.FindPrefix(Chain(7, 3)), IsEmpty());
}

TEST(BlockPool, ACachedBlockIsReusedForOneCredit) {
  BlockPool pool(2);
  const std::vector<int32_t> table = TakeChain(pool, 1, 7, 2);
  ReleaseTable(pool, 1, table);
  ASSERT_TRUE(pool.Reserve(2));
  EXPECT_FALSE(pool.Reserve(1));
  for (int32_t block : table) pool.Reuse(block, 2);
  EXPECT_EQ(pool.credits(), 0);
  EXPECT_EQ(pool.available(), 0);
  EXPECT_EQ(pool.num_owned(), 2);
  const BlockPool::Holding one[] = {{2, table, 0}};
  EXPECT_TRUE(pool.CheckIntegrity(one).ok()) << pool.CheckIntegrity(one);
  // A second one shares them, and pays nothing.
  for (int32_t block : table) pool.Reuse(block, 3);
  const BlockPool::Holding both[] = {{2, table, 0}, {3, table, 0}};
  EXPECT_TRUE(pool.CheckIntegrity(both).ok()) << pool.CheckIntegrity(both);
  ReleaseTable(pool, 2, table);
  EXPECT_EQ(pool.num_owned(), 2);
  ReleaseTable(pool, 3, table);
  EXPECT_EQ(pool.num_cached(), 2);
}

TEST(BlockPool, AQuarantinedPublishedBlockIsReusedWithoutACredit) {
  BlockPool pool(1);
  const std::vector<int32_t> table = TakeChain(pool, 1, 7, 1);
  const uint64_t step = pool.Pin(table, "a step");
  ReleaseTable(pool, 1, table);
  EXPECT_EQ(pool.num_quarantined(), 1);
  EXPECT_FALSE(pool.IsCached(table[0]));
  EXPECT_EQ(pool.FindPrefix(Chain(7, 1)), table);
  pool.Reuse(table[0], 2);
  EXPECT_EQ(pool.num_quarantined(), 0);
  const BlockPool::Holding holding[] = {{2, table, 0}};
  EXPECT_TRUE(pool.CheckIntegrity(holding).ok());
  pool.Unpin(step);
  EXPECT_EQ(pool.num_owned(), 1);
  pool.Release(table[0], 2);
  EXPECT_EQ(pool.num_cached(), 1);
}

TEST(BlockPool, APinnedPublishedBlockIsCachedAfterItsLastPin) {
  BlockPool pool(1);
  const std::vector<int32_t> table = TakeChain(pool, 1, 7, 1);
  const uint64_t step = pool.Pin(table, "a step");
  const uint64_t copy = pool.Pin(table, "a copy");
  ReleaseTable(pool, 1, table);
  pool.Unpin(copy);
  EXPECT_EQ(pool.available(), 0);
  pool.Unpin(step);
  EXPECT_EQ(pool.num_quarantined(), 0);
  EXPECT_EQ(pool.num_cached(), 1);
  EXPECT_EQ(pool.available(), 1);
}

TEST(BlockPool, AWithdrawnBlockIsNotFoundInAnyState) {
  BlockPool pool(3);
  const std::vector<int32_t> held = TakeChain(pool, 1, 1, 1);
  const std::vector<int32_t> cached = TakeChain(pool, 1, 2, 1);
  const std::vector<int32_t> pinned = TakeChain(pool, 1, 3, 1);
  const uint64_t step = pool.Pin(pinned, "a step");
  ReleaseTable(pool, 1, cached);
  ReleaseTable(pool, 1, pinned);
  for (int32_t block = 0; block < 3; ++block) {
    pool.Withdraw(block);
    pool.Withdraw(block);  // has none any more
  }
  for (uint8_t chain = 1; chain <= 3; ++chain) {
    EXPECT_THAT(pool.FindPrefix(Chain(chain, 1)), IsEmpty());
  }
  EXPECT_EQ(pool.num_free(), 1);
  pool.Unpin(step);
  EXPECT_EQ(pool.num_free(), 2);
  ReleaseTable(pool, 1, held);
  EXPECT_EQ(pool.num_free(), 3);
  EXPECT_TRUE(pool.CheckIntegrity({}).ok());
}

TEST(BlockPool, AKeyNamesTheFirstBlockThatHasIt) {
  BlockPool pool(2);
  const std::vector<int32_t> first = TakeChain(pool, 1, 7, 1);
  const std::vector<int32_t> second = TakeChain(pool, 2, 7, 1);
  pool.Publish(first[0], Key(7, 0));
  EXPECT_EQ(pool.FindPrefix(Chain(7, 1)), first);
  ReleaseTable(pool, 2, second);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.num_cached(), 0);
  ReleaseTable(pool, 1, first);
  EXPECT_EQ(pool.num_cached(), 1);
  // Where it is gone, another may take its place.
  pool.Withdraw(first[0]);
  const std::vector<int32_t> third = TakeChain(pool, 3, 7, 1);
  EXPECT_EQ(pool.FindPrefix(Chain(7, 1)), third);
}

// The blocks that are cached, in the order in which they are evicted.
std::vector<int32_t> EvictAll(BlockPool& pool) {
  EXPECT_EQ(pool.num_cached(), pool.num_blocks());
  return Take(pool, 99, pool.num_blocks());
}

TEST(BlockPool, TheLeastRecentlyUsedChainGoesFirstFromItsEnd) {
  BlockPool pool(6);
  const std::vector<int32_t> a = TakeChain(pool, 1, 1, 3);
  const std::vector<int32_t> b = TakeChain(pool, 2, 2, 3);
  ReleaseTable(pool, 1, a);
  ReleaseTable(pool, 2, b);
  ASSERT_TRUE(pool.Reserve(2));
  for (int32_t block : {a[0], a[1]}) pool.Reuse(block, 3);
  ReleaseTable(pool, 3, {a[0], a[1]});
  EXPECT_THAT(EvictAll(pool), ElementsAre(a[2], b[2], b[1], b[0], a[1], a[0]));
}

TEST(BlockPool, PinnedChainsOfOneStepAreCachedDeeperBlocksFirst) {
  BlockPool pool(4);
  const std::vector<int32_t> a = TakeChain(pool, 1, 1, 3);
  for (int32_t block : {a[0], a[1]}) pool.Reuse(block, 2);
  ASSERT_TRUE(pool.Reserve(1));
  const std::vector<int32_t> b = {a[0], a[1], pool.Allocate(2)};
  pool.Publish(b[2], Key(2, 2));
  std::vector<int32_t> rows = a;
  rows.insert(rows.end(), b.begin(), b.end());
  const uint64_t step = pool.Pin(rows, "a step");
  ReleaseTable(pool, 1, a);
  ReleaseTable(pool, 2, b);
  EXPECT_EQ(pool.num_quarantined(), 4);
  pool.Unpin(step);
  EXPECT_THAT(EvictAll(pool), ElementsAre(b[2], a[2], a[1], a[0]));
}

TEST(BlockPool, TheVersionChangesWithWhatCanBeFound) {
  BlockPool pool(2);
  uint64_t version = pool.version();
  const auto changed = [&] {
    return std::exchange(version, pool.version()) != version;
  };
  std::vector<int32_t> table = Take(pool, 1, 1);
  EXPECT_FALSE(changed());
  pool.Publish(table[0], Key(1, 0));
  EXPECT_TRUE(changed());
  pool.Publish(table[0], Key(1, 0));
  EXPECT_FALSE(changed());
  pool.Release(table[0], 1);
  EXPECT_TRUE(changed());
  ASSERT_TRUE(pool.Reserve(1));
  pool.Reuse(table[0], 2);
  EXPECT_TRUE(changed());
  const uint64_t pin = pool.Pin(table, "a step");
  pool.Release(table[0], 2);
  EXPECT_FALSE(changed());
  pool.Unpin(pin);
  EXPECT_TRUE(changed());
  Take(pool, 3, 1);
  EXPECT_FALSE(changed());
  Take(pool, 3, 1);  // evicts
  EXPECT_TRUE(changed());
  pool.Publish(table[0], Key(1, 1));
  EXPECT_TRUE(changed());
  pool.Withdraw(table[0]);
  EXPECT_TRUE(changed());
  pool.Withdraw(table[0]);
  EXPECT_FALSE(changed());
}

TEST(BlockPool, AHandOverOfASharedBlockHasNoEffect) {
  BlockPool pool(2);
  const std::vector<int32_t> table = TakeChain(pool, 1, 7, 2);
  pool.Reuse(table[0], 2);
  for (int32_t block : table) pool.Transfer(block, 1, 3);
  const std::vector<int32_t> second = {table[0]};
  const BlockPool::Holding holdings[] = {{3, table, 0}, {2, second, 0}};
  EXPECT_TRUE(pool.CheckIntegrity(holdings).ok());
  ReleaseTable(pool, 3, table);
  // It was shared: it has no owner to be asked for.
  pool.Transfer(table[0], 2, 4);
  pool.Release(table[0], 4);
  EXPECT_EQ(pool.num_cached(), 2);
}

// All that is linear in the pool would take minutes here.
TEST(BlockPool, ALargePoolIsAsQuickAsASmallOne) {
  constexpr int32_t kBlocks = 200000;
  BlockPool pool(kBlocks);
  uint32_t serial = 0;
  const auto next_key = [&serial] {
    BlockKey key{};
    ++serial;
    for (int i = 0; i < 4; ++i) key[i] = static_cast<uint8_t>(serial >> 8 * i);
    return key;
  };
  for (int32_t i = 0; i < 5 * kBlocks; ++i) {
    ASSERT_TRUE(pool.Reserve(1));
    const int32_t block = pool.Allocate(1);
    const BlockKey key = next_key();
    pool.Publish(block, key);
    const uint64_t pin = pool.Pin({&block, 1}, "a step");
    pool.Release(block, 1);
    pool.Unpin(pin);
    ASSERT_EQ(pool.FindPrefix({&key, 1}).size(), 1u);
  }
  EXPECT_EQ(pool.num_cached(), kBlocks);
  EXPECT_TRUE(pool.CheckIntegrity({}).ok());
}

TEST(BlockPoolDeathTest, MisuseIsStopped) {
  BlockPool pool(2);
  EXPECT_DEATH(pool.Allocate(1), "unpaid");
  ASSERT_TRUE(pool.Reserve(1));
  const int32_t block = pool.Allocate(1);
  EXPECT_DEATH(pool.Release(block, 2), "another's");
  EXPECT_DEATH(pool.Release(1 - block, 1), "not held");
  EXPECT_DEATH(pool.Release(2, 1), "block 2");
  EXPECT_DEATH(pool.Transfer(block, 2, 3), "not its owner's");
  EXPECT_DEATH(pool.Unpin(1), "pin 1");
  EXPECT_DEATH(pool.Unreserve(1), "credits");
  EXPECT_DEATH(pool.Transfer(1 - block, 2, 3), "not held");
  EXPECT_DEATH(pool.Publish(1 - block, Key(1, 0)), "not held");
  EXPECT_DEATH(pool.Reuse(block, 2), "not published");
  EXPECT_DEATH(pool.Withdraw(-1), "block -1");
  EXPECT_DEATH(pool.IsCached(2), "block 2");
  pool.Publish(block, Key(1, 0));
  EXPECT_DEATH(pool.Publish(block, Key(1, 1)), "another key");
  EXPECT_DEATH(pool.Reuse(block, 1), "its own");
  pool.Release(block, 1);
  EXPECT_DEATH(pool.Reuse(block, 1), "unpaid");
}

}  // namespace
}  // namespace overfill
