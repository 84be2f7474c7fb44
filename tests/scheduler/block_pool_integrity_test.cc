// What CheckIntegrity must find in a pool that was broken on purpose.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scheduler/block_pool.h"
#include "tests/scheduler/block_pool_helpers.h"

namespace overfill {

class BlockPoolPeer {
 public:
  explicit BlockPoolPeer(BlockPool& pool) : pool_(pool) {}

  auto& block(int32_t block) { return pool_.blocks_[block]; }
  auto& free() { return pool_.free_; }
  auto& by_key() { return pool_.by_key_; }
  auto& oldest() { return pool_.oldest_; }
  auto& newest() { return pool_.newest_; }
  auto& num_cached() { return pool_.num_cached_; }
  auto& num_owned() { return pool_.num_owned_; }
  auto& num_quarantined() { return pool_.num_quarantined_; }
  auto& credits() { return pool_.credits_; }
  auto& pins() { return pool_.pins_; }

 private:
  BlockPool& pool_;
};

namespace {

using ::testing::HasSubstr;

TEST(BlockPool, IntegrityNamesWhatIsBroken) {
  BlockPool pool(4);
  ASSERT_TRUE(pool.Reserve(3));
  const std::vector<int32_t> one = {pool.Allocate(1)};
  const std::vector<int32_t> two = {pool.Allocate(2)};
  const auto error = [&](std::vector<BlockPool::Holding> holdings) {
    return std::string(pool.CheckIntegrity(holdings).message());
  };
  const std::vector<int32_t> outside = {4};
  const std::vector<int32_t> nothing;
  const std::vector<int32_t> twice = {two[0], two[0]};
  EXPECT_EQ(error({{1, one, 1}, {2, two, 0}}), "");
  EXPECT_THAT(error({{1, one, 1}, {2, one, 0}}), HasSubstr("two owners"));
  EXPECT_THAT(error({{1, one, 1}, {2, nothing, 0}}), HasSubstr("in 0 tables"));
  EXPECT_THAT(error({{1, one, 1}, {2, outside, 0}}), HasSubstr("block 4 of 4"));
  EXPECT_THAT(error({{1, one, 1}, {2, twice, 0}}),
              HasSubstr("twice in a table"));
  EXPECT_THAT(error({{1, one, 0}, {2, two, 0}}),
              HasSubstr("1 credits are out"));
}

// Blocks 0 and 1: owner 1's, published; 1 is owner 2's, too. 2 and 3: cached.
// 4: quarantined. 5 and 6: free. One credit is out, owner 2's.
class BrokenPool : public ::testing::Test {
 protected:
  void SetUp() override {
    one_ = TakeChain(pool_, 1, 1, 2);
    two_ = {one_[1]};
    pool_.Reuse(one_[1], 2);
    const std::vector<int32_t> cached = TakeChain(pool_, 3, 2, 2);
    const std::vector<int32_t> pinned = Take(pool_, 3, 1);
    pool_.Pin(pinned, "a lost copy");
    for (int32_t block : cached) pool_.Release(block, 3);
    ReleaseTable(pool_, 3, pinned);
    ASSERT_TRUE(pool_.Reserve(1));
    ASSERT_EQ(Error(), "");
  }

  std::string Error() const {
    const BlockPool::Holding holdings[] = {{1, one_, 0}, {2, two_, 1}};
    return std::string(pool_.CheckIntegrity(holdings).message());
  }

  BlockPool pool_{7};
  BlockPoolPeer peer_{pool_};
  std::vector<int32_t> one_;
  std::vector<int32_t> two_;
};

TEST_F(BrokenPool, ReferencesAndOwners) {
  ++peer_.block(0).references;
  EXPECT_THAT(Error(), HasSubstr("block 0 with 2 references and 0 pins has"));
  peer_.block(0).owner = 0;
  EXPECT_THAT(Error(), HasSubstr("block 0 counts 2 references and is in 1"));
  peer_.block(0).references = 1;
  peer_.block(0).owner = 2;
  EXPECT_THAT(Error(), HasSubstr("block 0 has two owners: 2 and 1"));
  peer_.block(0).owner = 1;
  --peer_.block(1).references;
  EXPECT_THAT(Error(), HasSubstr("block 1 counts 1 references and is in 2"));
  peer_.block(1).references = 2;
  peer_.block(1).owner = 1;
  EXPECT_THAT(Error(), HasSubstr("block 1 with 2 references"));
  peer_.block(1).owner = 0;
  peer_.block(5).owner = 1;
  EXPECT_THAT(Error(), HasSubstr("block 5 with 0 references"));
  peer_.block(5).owner = 0;
  peer_.block(5).references = -1;
  EXPECT_THAT(Error(), HasSubstr("block 5 with -1 references"));
}

TEST_F(BrokenPool, Counts) {
  for (int32_t* count :
       {&peer_.num_cached(), &peer_.num_owned(), &peer_.num_quarantined()}) {
    ++*count;
    EXPECT_THAT(Error(), HasSubstr("counted 2 owned and 1 quarantined"));
    --*count;
  }
  // Two that make up for each other.
  ++peer_.num_cached();
  peer_.free().pop_back();
  EXPECT_THAT(Error(), HasSubstr("has 2 up to block 3, not 3"));
  --peer_.num_cached();
  ++peer_.num_owned();
  EXPECT_THAT(Error(), HasSubstr("counted 2 owned and 1 quarantined"));
}

TEST_F(BrokenPool, Credits) {
  peer_.credits() = 5;
  EXPECT_THAT(Error(), HasSubstr("5 credits on 2 free and 2 cached blocks"));
  peer_.credits() = -1;
  EXPECT_THAT(Error(), HasSubstr("-1 credits"));
  peer_.credits() = 2;
  EXPECT_THAT(Error(), HasSubstr("2 credits are out, their holders have 1"));
}

TEST_F(BrokenPool, FreeList) {
  const int32_t last = peer_.free().back();
  peer_.free().back() = peer_.free().front();
  EXPECT_THAT(Error(), HasSubstr("twice in the free list"));
  peer_.free().back() = 3;
  EXPECT_THAT(Error(), HasSubstr("block 3 is cached and is in the free list"));
  peer_.free().back() = 0;
  EXPECT_THAT(Error(), HasSubstr("block 0 is owned and is in the free list"));
  peer_.free().back() = 4;
  EXPECT_THAT(Error(),
              HasSubstr("block 4 is quarantined and is in the free list"));
  peer_.free().back() = last;
  EXPECT_EQ(Error(), "");
}

TEST_F(BrokenPool, OrderOfCachedBlocks) {
  // 2 is the oldest, 3 the newest.
  peer_.block(3).older = 0;
  EXPECT_THAT(Error(), HasSubstr("broken at block 3"));
  peer_.block(3).older = 2;
  peer_.block(3).newer = 2;
  EXPECT_THAT(Error(), HasSubstr("broken at block 2"));
  peer_.block(3).newer = 4;
  EXPECT_THAT(Error(), HasSubstr("broken at block 4"));
  peer_.block(3).newer = 7;
  EXPECT_THAT(Error(), HasSubstr("broken at block 7"));
  peer_.block(3).newer = -1;
  peer_.newest() = 2;
  EXPECT_THAT(Error(), HasSubstr("2 up to block 3, not 2 up to block 2"));
  peer_.newest() = 3;
  peer_.oldest() = 3;
  EXPECT_THAT(Error(), HasSubstr("broken at block 3"));
  peer_.block(3).older = -1;
  EXPECT_THAT(Error(), HasSubstr("1 up to block 3, not 2"));
}

TEST_F(BrokenPool, Keys) {
  const BlockKey key = peer_.block(0).key;
  // A free block that kept its key could be found, and written over.
  peer_.block(5).has_key = true;
  EXPECT_THAT(Error(), HasSubstr("block 5 is cached and is in the free list"));
  peer_.block(5).has_key = false;
  peer_.block(2).has_key = false;
  EXPECT_THAT(Error(), HasSubstr("block 2 is free and is not in the free"));
  peer_.block(2).has_key = true;
  peer_.block(4).has_key = true;
  peer_.block(4).key = key;
  EXPECT_THAT(Error(), HasSubstr("the key of block 4 leads to block 0"));
  peer_.block(4).has_key = false;
  peer_.by_key()[key] = 4;
  EXPECT_THAT(Error(), HasSubstr("the key of block 0 leads to block 4"));
  peer_.by_key().erase(key);
  EXPECT_THAT(Error(), HasSubstr("the key of block 0 leads nowhere"));
  peer_.by_key()[key] = 0;
  for (int32_t block : {-1, 0, 4, 7}) {
    peer_.by_key()[Key(9, 9)] = block;
    EXPECT_THAT(Error(), HasSubstr(absl::StrCat("a key leads to block ", block,
                                                ", which has it not")));
  }
  peer_.by_key().erase(Key(9, 9));
  EXPECT_EQ(Error(), "");
}

TEST_F(BrokenPool, Pins) {
  ++peer_.block(4).pins;
  EXPECT_THAT(Error(), HasSubstr("block 4 counts 2 pins, not 1; pinned by: a "
                                 "lost copy"));
  --peer_.block(4).pins;
  peer_.pins().clear();
  EXPECT_THAT(Error(), HasSubstr("block 4 counts 1 pins, not 0"));
}

}  // namespace
}  // namespace overfill
