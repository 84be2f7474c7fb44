#include "scheduler/block_pool.h"

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

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
  EXPECT_EQ(error({{1, one, 1}, {2, two, 0}}), "");
  EXPECT_THAT(error({{1, one, 1}, {2, one, 0}}),
              ::testing::HasSubstr("two owners"));
  EXPECT_THAT(error({{1, one, 1}, {2, nothing, 0}}),
              ::testing::HasSubstr("in 0 tables"));
  EXPECT_THAT(error({{1, one, 1}, {2, outside, 0}}),
              ::testing::HasSubstr("block 4 of 4"));
  EXPECT_THAT(error({{1, one, 0}, {2, two, 0}}),
              ::testing::HasSubstr("1 credits are out"));
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
}

// A second, plainer account of the same events.
class Book {
 public:
  explicit Book(std::mt19937_64& random, int32_t num_blocks)
      : random_(random), pool_(num_blocks) {}

  void Act() {
    switch (random_() % 8) {
      case 0:
        return Reserve();
      case 1:
      case 2:
        return Allocate();
      case 3:
        return Release();
      case 4:
        return Pin();
      case 5:
        return Unpin();
      case 6:
        return HandOver();
      default:
        return Unreserve();
    }
  }

  void Verify() const {
    std::vector<BlockPool::Holding> holdings;
    int32_t owned = 0;
    for (const auto& [owner, held] : held_) {
      holdings.push_back({owner, held.table, held.credits});
      owned += static_cast<int32_t>(held.table.size());
    }
    const absl::Status status = pool_.CheckIntegrity(holdings);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(pool_.num_owned(), owned);
    std::vector<bool> touched(pool_.num_blocks(), false);
    for (const auto& [pin, blocks] : pins_) {
      for (int32_t block : blocks) touched[block] = true;
    }
    for (const auto& [owner, held] : held_) {
      for (int32_t block : held.table) touched[block] = false;
    }
    ASSERT_EQ(pool_.num_quarantined(),
              std::count(touched.begin(), touched.end(), true));
  }

  void CloseAll() {
    while (!pins_.empty()) Unpin();
    for (auto& [owner, held] : held_) {
      for (int32_t block : held.table) pool_.Release(block, owner);
      pool_.Unreserve(held.credits);
    }
    held_.clear();
    ASSERT_EQ(pool_.available(), pool_.num_blocks());
  }

 private:
  struct Held {
    std::vector<int32_t> table;
    int32_t credits = 0;
  };

  uint64_t SomeOwner() { return 1 + random_() % 5; }

  void Reserve() {
    const auto count = static_cast<int32_t>(random_() % 4);
    const bool fits = count <= pool_.available();
    ASSERT_EQ(pool_.Reserve(count), fits);
    if (fits) held_[SomeOwner()].credits += count;
  }
  void Unreserve() {
    Held& held = held_[SomeOwner()];
    const auto count = static_cast<int32_t>(random_() % (held.credits + 1));
    pool_.Unreserve(count);
    held.credits -= count;
  }
  void Allocate() {
    const uint64_t owner = SomeOwner();
    Held& held = held_[owner];
    if (held.credits == 0) return;
    --held.credits;
    held.table.push_back(pool_.Allocate(owner));
  }
  void Release() {
    const uint64_t owner = SomeOwner();
    Held& held = held_[owner];
    if (held.table.empty()) return;
    const size_t i = random_() % held.table.size();
    pool_.Release(held.table[i], owner);
    held.table.erase(held.table.begin() + static_cast<ptrdiff_t>(i));
  }
  void HandOver() {
    const uint64_t from = SomeOwner();
    const uint64_t to = SomeOwner();
    if (held_[from].table.empty()) return;
    const int32_t block = held_[from].table.back();
    held_[from].table.pop_back();
    pool_.Transfer(block, from, to);
    held_[to].table.push_back(block);
  }
  void Pin() {
    const Held& held = held_[SomeOwner()];
    pins_.emplace_back(pool_.Pin(held.table, "x"), held.table);
  }
  void Unpin() {
    if (pins_.empty()) return;
    std::swap(pins_[random_() % pins_.size()], pins_.back());
    pool_.Unpin(pins_.back().first);
    pins_.pop_back();
  }

  std::mt19937_64& random_;
  BlockPool pool_;
  std::map<uint64_t, Held> held_;
  std::vector<std::pair<uint64_t, std::vector<int32_t>>> pins_;
};

TEST(BlockPool, RandomSchedulesAddUp) {
  std::mt19937_64 random(TestSeed());
  for (int schedule = 0; schedule < 3000; ++schedule) {
    Book book(random, static_cast<int32_t>(random() % 12));
    for (int i = 0; i < 60; ++i) {
      book.Act();
      ASSERT_NO_FATAL_FAILURE(book.Verify());
    }
    ASSERT_NO_FATAL_FAILURE(book.CloseAll());
  }
}

}  // namespace
}  // namespace overfill
