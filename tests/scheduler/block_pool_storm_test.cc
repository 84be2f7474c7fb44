// Random schedules of a block pool, against a plain account of the same events.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/block_pool.h"
#include "tests/scheduler/block_pool_helpers.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

constexpr uint8_t kChains = 2;
constexpr uint8_t kDepths = 4;
constexpr uint64_t kOwners = 3;

// Who holds a block and what touches it, by name.
struct PlainBlock {
  std::set<uint64_t> holders;
  std::multiset<uint64_t> pins;
  std::optional<BlockKey> key;
  bool was_shared = false;
};

// How often the schedules came to what they are to test.
struct Reached {
  int evictions = 0;
  int allocations_with_both = 0;  // a free one, though there are cached ones
  int cached_reuses = 0;
  int held_reuses = 0;
  int quarantined_reuses = 0;
  int cached_after_pin = 0;
  int second_keys = 0;
  int cached_withdrawals = 0;
  int quarantined_withdrawals = 0;
  int shared_hand_overs = 0;
};

class Book {
 public:
  Book(std::mt19937_64& random, int32_t num_blocks, Reached& reached)
      : random_(random),
        reached_(reached),
        pool_(num_blocks),
        plain_(num_blocks) {}

  void Act() {
    using Action = void (Book::*)();
    static constexpr Action kActions[] = {
        &Book::Reserve,  &Book::Unreserve, &Book::Allocate, &Book::Allocate,
        &Book::Allocate, &Book::Publish,   &Book::Publish,  &Book::Publish,
        &Book::Publish,  &Book::Reuse,     &Book::Reuse,    &Book::Release,
        &Book::Release,  &Book::Release,   &Book::Release,  &Book::Pin,
        &Book::Pin,      &Book::Unpin,     &Book::HandOver, &Book::Share,
        &Book::Withdraw,
    };
    (this->*kActions[random_() % std::size(kActions)])();
  }

  void Verify() {
    std::vector<BlockPool::Holding> holdings;
    for (uint64_t owner = 1; owner <= kOwners; ++owner) {
      holdings.push_back({owner, tables_[owner], credits_[owner]});
    }
    const absl::Status status = pool_.CheckIntegrity(holdings);
    ASSERT_TRUE(status.ok()) << status;
    int32_t owned = 0;
    int32_t quarantined = 0;
    int32_t free = 0;
    for (int32_t block = 0; block < pool_.num_blocks(); ++block) {
      owned += !plain_[block].holders.empty();
      quarantined += IsQuarantined(block);
      free += IsFree(block);
    }
    ASSERT_EQ(pool_.num_owned(), owned);
    ASSERT_EQ(pool_.num_quarantined(), quarantined);
    ASSERT_EQ(pool_.num_free(), free);
    ASSERT_EQ(pool_.num_cached(), static_cast<int32_t>(cached_.size()));
    ASSERT_EQ(pool_.credits(), Credits());
    ASSERT_EQ(pool_.available(),
              free + static_cast<int32_t>(cached_.size()) - Credits());
    ASSERT_NO_FATAL_FAILURE(VerifyAnswers());
  }

  // Everything comes home; then all blocks go out in the order of the account.
  void Close() {
    while (!pins_.empty()) Unpin();
    for (uint64_t owner = 1; owner <= kOwners; ++owner) {
      while (!tables_[owner].empty()) ReleaseAt(owner, 0);
      pool_.Unreserve(std::exchange(credits_[owner], 0));
    }
    ASSERT_NO_FATAL_FAILURE(Verify());
    ASSERT_EQ(pool_.available(), pool_.num_blocks());
    ASSERT_TRUE(pool_.Reserve(pool_.num_blocks()));
    credits_[1] = pool_.num_blocks();
    while (credits_[1] > 0) ASSERT_NO_FATAL_FAILURE(AllocateFor(1));
    ASSERT_NO_FATAL_FAILURE(Verify());
  }

 private:
  struct Answers {
    std::vector<std::vector<int32_t>> prefixes;  // by chain
    std::vector<bool> is_cached;                 // by block
    bool operator==(const Answers&) const = default;
  };

  uint64_t SomeOwner() { return 1 + random_() % kOwners; }
  int32_t SomeBlock() {
    return static_cast<int32_t>(random_() % pool_.num_blocks());
  }
  int32_t Credits() const {
    int32_t sum = 0;
    for (const auto& [owner, credits] : credits_) sum += credits;
    return sum;
  }
  bool IsCached(int32_t block) const {
    return std::find(cached_.begin(), cached_.end(), block) != cached_.end();
  }
  bool IsQuarantined(int32_t block) const {
    return plain_[block].holders.empty() && !plain_[block].pins.empty();
  }
  bool IsFree(int32_t block) const {
    return plain_[block].holders.empty() && plain_[block].pins.empty() &&
           !plain_[block].key;
  }
  // The block that has the key, by a look at all of them.
  std::optional<int32_t> BlockOf(const BlockKey& key) const {
    for (int32_t block = 0; block < pool_.num_blocks(); ++block) {
      if (plain_[block].key == key) return block;
    }
    return std::nullopt;
  }
  std::vector<int32_t> Prefix(uint8_t chain) const {
    std::vector<int32_t> run;
    for (const BlockKey& key : Chain(chain, kDepths)) {
      const std::optional<int32_t> block = BlockOf(key);
      if (!block) break;
      run.push_back(*block);
    }
    return run;
  }
  // After a holder or a pin has gone.
  void Settle(int32_t block) {
    PlainBlock& b = plain_[block];
    if (b.holders.empty()) b.was_shared = false;
    if (b.holders.empty() && b.pins.empty() && b.key) cached_.push_back(block);
  }

  void VerifyAnswers() {
    Answers answers;
    for (uint8_t chain = 0; chain < kChains; ++chain) {
      answers.prefixes.push_back(Prefix(chain));
      ASSERT_EQ(pool_.FindPrefix(Chain(chain, kDepths)),
                answers.prefixes.back());
    }
    for (int32_t block = 0; block < pool_.num_blocks(); ++block) {
      answers.is_cached.push_back(IsCached(block));
      ASSERT_EQ(pool_.IsCached(block), answers.is_cached.back());
    }
    if (answers != answers_) {
      ASSERT_NE(pool_.version(), version_);
    }
    answers_ = std::move(answers);
    version_ = pool_.version();
  }

  void Reserve() {
    const auto count = static_cast<int32_t>(random_() % 4);
    const bool fits = count <= pool_.available();
    ASSERT_EQ(pool_.Reserve(count), fits);
    if (fits) credits_[SomeOwner()] += count;
  }
  void Unreserve() {
    int32_t& credits = credits_[SomeOwner()];
    const int32_t count =
        std::min(credits, static_cast<int32_t>(random_() % 2));
    pool_.Unreserve(count);
    credits -= count;
  }

  void Allocate() {
    const uint64_t owner = SomeOwner();
    if (credits_[owner] == 0) {
      if (!pool_.Reserve(1)) return;
      ++credits_[owner];
    }
    AllocateFor(owner);
  }
  void AllocateFor(uint64_t owner) {
    bool has_free = false;
    for (int32_t block = 0; block < pool_.num_blocks(); ++block) {
      has_free = has_free || IsFree(block);
    }
    --credits_[owner];
    const int32_t block = pool_.Allocate(owner);
    if (has_free) {
      ASSERT_TRUE(IsFree(block));
      reached_.allocations_with_both += !cached_.empty();
    } else {
      ASSERT_FALSE(cached_.empty());
      ASSERT_EQ(block, cached_.front());
      cached_.pop_front();
      plain_[block].key.reset();
      ++reached_.evictions;
    }
    plain_[block].holders = {owner};
    tables_[owner].push_back(block);
  }

  void Release() {
    const uint64_t owner = SomeOwner();
    if (tables_[owner].empty()) return;
    ReleaseAt(owner, random_() % tables_[owner].size());
  }
  void ReleaseAt(uint64_t owner, size_t i) {
    std::vector<int32_t>& table = tables_[owner];
    const int32_t block = table[i];
    table.erase(table.begin() + static_cast<ptrdiff_t>(i));
    pool_.Release(block, owner);
    plain_[block].holders.erase(owner);
    Settle(block);
  }

  void HandOver() {
    const uint64_t from = SomeOwner();
    const uint64_t to = SomeOwner();
    if (tables_[from].empty()) return;
    const int32_t block = tables_[from].back();
    PlainBlock& b = plain_[block];
    if (b.holders.count(to) != 0) return;
    pool_.Transfer(block, from, to);
    reached_.shared_hand_overs += b.was_shared;
    tables_[from].pop_back();
    tables_[to].push_back(block);
    b.holders.erase(from);
    b.holders.insert(to);
  }

  void Share() {
    const uint64_t from = SomeOwner();
    const uint64_t to = SomeOwner();
    if (tables_[from].empty()) return;
    const int32_t block = tables_[from].back();
    if (!plain_[block].holders.insert(to).second) return;
    pool_.Share(block);
    plain_[block].was_shared = true;
    tables_[to].push_back(block);
  }

  void Publish() {
    const uint64_t owner = SomeOwner();
    if (tables_[owner].empty()) return;
    const int32_t block = tables_[owner][random_() % tables_[owner].size()];
    PlainBlock& b = plain_[block];
    const BlockKey key = b.key ? *b.key
                               : Key(static_cast<uint8_t>(random_() % kChains),
                                     static_cast<uint8_t>(random_() % kDepths));
    const std::optional<int32_t> there = BlockOf(key);
    pool_.Publish(block, key);
    reached_.second_keys += there && *there != block;
    if (!there) b.key = key;
  }

  void Withdraw() {
    if (pool_.num_blocks() == 0) return;
    const int32_t block = SomeBlock();
    pool_.Withdraw(block);
    reached_.cached_withdrawals += IsCached(block);
    reached_.quarantined_withdrawals +=
        IsQuarantined(block) && plain_[block].key;
    cached_.remove(block);
    plain_[block].key.reset();
  }

  // A prefix that is there, as far as there are credits for it.
  void Reuse() {
    const uint64_t owner = SomeOwner();
    for (int32_t block : Prefix(static_cast<uint8_t>(random_() % kChains))) {
      PlainBlock& b = plain_[block];
      if (b.holders.count(owner) != 0) continue;
      if (IsCached(block)) {
        if (credits_[owner] > 0) {
          --credits_[owner];
        } else if (!pool_.Reserve(1)) {
          return;
        }
        ++reached_.cached_reuses;
      }
      reached_.held_reuses += !b.holders.empty();
      reached_.quarantined_reuses += IsQuarantined(block);
      pool_.Reuse(block, owner);
      cached_.remove(block);
      b.was_shared = b.was_shared || !b.holders.empty();
      b.holders.insert(owner);
      tables_[owner].push_back(block);
    }
  }

  void Pin() {
    std::vector<int32_t> blocks;
    for (uint64_t tables = 1 + random_() % 2; tables > 0; --tables) {
      const std::vector<int32_t>& table = tables_[SomeOwner()];
      blocks.insert(blocks.end(), table.begin(), table.end());
    }
    const uint64_t pin = pool_.Pin(blocks, "x");
    for (int32_t block : blocks) plain_[block].pins.insert(pin);
    pins_.emplace_back(pin, std::move(blocks));
  }
  void Unpin() {
    if (pins_.empty()) return;
    std::swap(pins_[random_() % pins_.size()], pins_.back());
    const auto [pin, blocks] = std::move(pins_.back());
    pins_.pop_back();
    pool_.Unpin(pin);
    for (size_t i = blocks.size(); i-- > 0;) {
      PlainBlock& b = plain_[blocks[i]];
      b.pins.erase(b.pins.find(pin));
      if (!b.holders.empty()) continue;
      Settle(blocks[i]);
      reached_.cached_after_pin += IsCached(blocks[i]);
    }
  }

  std::mt19937_64& random_;
  Reached& reached_;
  BlockPool pool_;
  std::vector<PlainBlock> plain_;
  std::list<int32_t> cached_;  // the oldest first
  std::map<uint64_t, std::vector<int32_t>> tables_;
  std::map<uint64_t, int32_t> credits_;
  std::vector<std::pair<uint64_t, std::vector<int32_t>>> pins_;
  Answers answers_;
  uint64_t version_ = ~uint64_t{0};
};

TEST(BlockPoolStorm, RandomSchedulesAddUp) {
  std::mt19937_64 random(TestSeed());
  Reached reached;
  for (int schedule = 0; schedule < 4000; ++schedule) {
    Book book(random, static_cast<int32_t>(random() % 16), reached);
    for (int i = 0; i < 100; ++i) {
      ASSERT_NO_FATAL_FAILURE(book.Act());
      ASSERT_NO_FATAL_FAILURE(book.Verify());
    }
    ASSERT_NO_FATAL_FAILURE(book.Close());
  }
  constexpr int kOften = 200;
  EXPECT_GE(reached.evictions, kOften);
  EXPECT_GE(reached.allocations_with_both, kOften);
  EXPECT_GE(reached.cached_reuses, kOften);
  EXPECT_GE(reached.held_reuses, kOften);
  EXPECT_GE(reached.quarantined_reuses, kOften);
  EXPECT_GE(reached.cached_after_pin, kOften);
  EXPECT_GE(reached.second_keys, kOften);
  EXPECT_GE(reached.cached_withdrawals, kOften);
  EXPECT_GE(reached.quarantined_withdrawals, kOften);
  EXPECT_GE(reached.shared_hand_overs, kOften);
}

}  // namespace
}  // namespace overfill
