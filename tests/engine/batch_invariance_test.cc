// With DeviceOptions::batch_invariant a request's logits are the same bits
// alone and in any batch: random neighbours, chunks, threads, blocks and cached
// prefixes against one row at a time on one thread. Without it they are not,
// which shows that the comparison can tell.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <ostream>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/kv_store.h"
#include "engine/model_runner.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "tests/engine/tiny_model.h"
#include "tests/test_seed.h"

namespace overfill {
namespace {

constexpr int32_t kLayers = 2;
constexpr int32_t kMaxTokens = 700;  // several parts of attention
constexpr int32_t kMaxRows = 256;
constexpr int32_t kMaxLive = 5;
constexpr int32_t kNumStreams = 4;
constexpr int kBatchesPerThreadCount = 25;  // 600 over all cases
constexpr int32_t kModelSeed = 7;

using Logits = std::vector<float>;

struct InvarianceCase {
  const char* name;
  TinyModelShape shape;
};

void PrintTo(const InvarianceCase& value, std::ostream* out) {
  *out << value.name;
}

std::unique_ptr<Device> NewDevice(int num_threads, bool batch_invariant) {
  DeviceOptions options;
  options.num_threads = num_threads;
  options.batch_invariant = batch_invariant;
  if (const char* isa = std::getenv("OVERFILL_CPU_ISA")) options.cpu_isa = isa;
  auto device = MakeDevice("cpu", options);
  OVERFILL_CHECK_OK(device.status());
  return *std::move(device);
}

// A device with the model, and a store that begins as NaN.
class World {
 public:
  World(const TinyModelShape& shape, int num_threads, bool batch_invariant,
        int32_t block_tokens)
      : device_(NewDevice(num_threads, batch_invariant)),
        model_(*device_, kLayers, kModelSeed, shape) {
    const KvLayout layout = KvLayoutOf(model_.weights().config,
                                       KvDTypeOf(shape.dtype), block_tokens);
    const int64_t blocks_each = kMaxTokens / block_tokens + 1;
    store_ = *KvStore::Create(*device_, layout,
                              kMaxLive * blocks_each * *KvBlockBytes(layout));
    std::memset(store_->view().data, 0xff,
                store_->num_blocks() * store_->block_bytes());
    ModelRunnerOptions options;
    options.limits = {.max_rows = kMaxRows,
                      .max_sequences = kMaxLive,
                      .max_sequence_tokens = kMaxTokens};
    options.logits_hook = [this](int32_t sequence, std::span<const float> row) {
      logits_[sequence].assign(row.begin(), row.end());
    };
    runner_ = *ModelRunner::Create(*device_, model_.weights(), *store_,
                                   std::move(options));
  }

  int num_threads() const { return device_->info().num_threads; }
  int32_t num_blocks() const { return store_->num_blocks(); }
  int32_t block_tokens() const { return store_->layout().block_tokens; }

  // The logits after each sequence's last row.
  std::vector<Logits> Run(const std::vector<SequenceStep>& sequences) {
    logits_.assign(sequences.size(), {});
    const auto result = runner_->Run({.sequences = sequences});
    OVERFILL_CHECK_OK(result.status());
    for (const auto& token : result->tokens) OVERFILL_CHECK_OK(token.status);
    return logits_;
  }

 private:
  const std::unique_ptr<Device> device_;
  TinyModel model_;
  std::unique_ptr<KvStore> store_;
  std::vector<Logits> logits_;
  std::unique_ptr<ModelRunner> runner_;
};

class BatchInvarianceTest : public testing::TestWithParam<InvarianceCase> {
 protected:
  void SetUp() override {
    random_.seed(TestSeed());
    greedy_params_.temperature = 0;
    // Streams share beginnings of random lengths, so that one's KV can serve
    // another.
    for (std::vector<int32_t>& stream : streams_) {
      stream.resize(kMaxTokens);
      for (int32_t& id : stream) {
        id = static_cast<int32_t>(Uniform(0, TinyModel::kPoisonedToken - 1));
      }
      std::copy_n(streams_[0].begin(), Uniform(0, kMaxTokens / 2),
                  stream.begin());
    }
  }

  int64_t Uniform(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

  SequenceStep Rows(int32_t stream, int32_t start, int32_t num_rows,
                    std::span<const int32_t> table) {
    return {
        .token_ids =
            std::span<const int32_t>(streams_[stream]).subspan(start, num_rows),
        .start_position = start,
        .block_table = table,
        .draws = draws_};
  }

  // The logits at every position of every stream: alone, a row at a time.
  void ComputeReference(bool batch_invariant) {
    World world(GetParam().shape, /*num_threads=*/1, batch_invariant,
                /*block_tokens=*/16);
    std::vector<int32_t> table(world.num_blocks());
    std::iota(table.begin(), table.end(), 0);
    for (int32_t s = 0; s < kNumStreams; ++s) {
      for (int32_t p = 0; p < kMaxTokens; ++p) {
        reference_[s].push_back(world.Run({Rows(s, p, 1, table)})[0]);
      }
    }
  }

  bool Matches(int32_t stream, int32_t position, const Logits& logits) const {
    const Logits& want = reference_[stream][position];
    return logits.size() == want.size() &&
           std::memcmp(logits.data(), want.data(),
                       want.size() * sizeof(float)) == 0;
  }

  struct Live {
    int32_t stream = 0;
    int32_t next = 0;  // position
    int32_t end = 0;   // of its last row
    std::vector<int32_t> table;
  };

  // Starts a stream on free blocks, or on those of a live one where their
  // tokens agree and its KV is written.
  void Start(const World& world);
  void ReleaseEnded();
  void ReleaseAll(const World& world);
  int32_t RowsOfNextChunk(const Live& sequence, int32_t room);
  // These run batches and count the sequences that differ: the first live
  // ones with rows_each; a random one; and a long stream alone, its last rows
  // one by one, the longest KV with the fewest rows, where threads have most
  // reason to share it.
  int RunBatch(World& world, std::span<const int32_t> rows_each);
  int RunRandomBatch(World& world);
  int RunLongAlone(World& world);
  // All of it on all thread counts.
  int CountDifferences(bool batch_invariant);

  std::mt19937_64 random_;
  SamplingParams greedy_params_;
  const SamplingState greedy_{&greedy_params_, {}, 0};
  const std::array<const SamplingState*, 1> draws_ = {&greedy_};
  std::vector<int32_t> streams_[kNumStreams];
  std::vector<Logits> reference_[kNumStreams];  // [position]

  // Of one world.
  std::vector<Live> live_;
  std::vector<int32_t> free_blocks_;
  std::vector<int32_t> block_users_;

  int num_batches_ = 0;
  int num_compared_ = 0;
  int num_cached_ = 0;  // sequences that began on another's KV
  std::string first_difference_;
};

void BatchInvarianceTest::Start(const World& world) {
  Live started;
  started.stream = static_cast<int32_t>(Uniform(0, kNumStreams - 1));
  const std::vector<int32_t>& tokens = streams_[started.stream];
  const int32_t block_tokens = world.block_tokens();
  if (!live_.empty() && Uniform(0, 3) != 0) {
    const Live& other = live_[Uniform(0, std::ssize(live_) - 1)];
    const auto same = std::mismatch(tokens.begin(), tokens.end(),
                                    streams_[other.stream].begin())
                          .first -
                      tokens.begin();
    // One token at least is left to read.
    const int64_t usable =
        std::min({int64_t{same}, int64_t{other.next}, int64_t{kMaxTokens - 1}});
    const auto blocks = static_cast<int32_t>(Uniform(0, usable / block_tokens));
    started.table.assign(other.table.begin(), other.table.begin() + blocks);
    started.next = blocks * block_tokens;
    if (blocks > 0) ++num_cached_;
  }
  started.end = static_cast<int32_t>(
      Uniform(0, 1) != 0 ? kMaxTokens : Uniform(started.next + 1, kMaxTokens));
  while (std::ssize(started.table) * block_tokens < started.end) {
    OVERFILL_CHECK(!free_blocks_.empty());
    started.table.push_back(free_blocks_.back());
    free_blocks_.pop_back();
  }
  for (int32_t block : started.table) ++block_users_[block];
  live_.push_back(std::move(started));
}

void BatchInvarianceTest::ReleaseEnded() {
  std::erase_if(live_, [this](const Live& sequence) {
    if (sequence.next < sequence.end) return false;
    for (int32_t block : sequence.table) {
      if (--block_users_[block] == 0) free_blocks_.push_back(block);
    }
    return true;
  });
  std::shuffle(free_blocks_.begin(), free_blocks_.end(), random_);
}

void BatchInvarianceTest::ReleaseAll(const World& world) {
  live_.clear();
  block_users_.assign(world.num_blocks(), 0);
  free_blocks_.resize(world.num_blocks());
  std::iota(free_blocks_.begin(), free_blocks_.end(), 0);
  std::shuffle(free_blocks_.begin(), free_blocks_.end(), random_);
}

int32_t BatchInvarianceTest::RowsOfNextChunk(const Live& sequence,
                                             int32_t room) {
  constexpr int32_t kSizes[] = {1, 1, 7, 33, 64, 100, kMaxRows};
  const int64_t most = std::min(room, sequence.end - sequence.next);
  return static_cast<int32_t>(
      std::min(most, Uniform(1, kSizes[Uniform(0, std::ssize(kSizes) - 1)])));
}

int BatchInvarianceTest::RunRandomBatch(World& world) {
  std::shuffle(live_.begin(), live_.end(), random_);
  const int64_t in_batch = Uniform(1, std::ssize(live_));
  std::vector<int32_t> rows_each;
  int32_t room = kMaxRows;
  for (int64_t i = 0; i < in_batch && room > 0; ++i) {
    rows_each.push_back(RowsOfNextChunk(live_[i], room));
    room -= rows_each.back();
  }
  return RunBatch(world, rows_each);
}

int BatchInvarianceTest::RunLongAlone(World& world) {
  ReleaseAll(world);
  Start(world);
  Live& sequence = live_[0];
  sequence.end = kMaxTokens;
  for (const int32_t block : free_blocks_) {
    if (std::ssize(sequence.table) * world.block_tokens() >= kMaxTokens) break;
    sequence.table.push_back(block);
  }
  constexpr int32_t kSingles = 100;
  int differences = 0;
  while (sequence.next < kMaxTokens) {
    const int32_t left = kMaxTokens - kSingles - sequence.next;
    const int32_t rows = left > 0 ? std::min(left, kMaxRows) : 1;
    differences += RunBatch(world, {&rows, 1});
  }
  return differences;
}

int BatchInvarianceTest::RunBatch(World& world,
                                  std::span<const int32_t> rows_each) {
  std::vector<SequenceStep> steps;
  int32_t all_rows = 0;
  for (const int32_t rows : rows_each) {
    Live& sequence = live_[steps.size()];
    steps.push_back(Rows(sequence.stream, sequence.next, rows, sequence.table));
    all_rows += rows;
    sequence.next += rows;
  }
  const std::vector<Logits> logits = world.Run(steps);
  ++num_batches_;
  int differences = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    ++num_compared_;
    if (Matches(live_[i].stream, live_[i].next - 1, logits[i])) continue;
    if (++differences > 1 || !first_difference_.empty()) continue;
    first_difference_ = absl::StrCat(
        steps[i].token_ids.size(), " rows up to position ", live_[i].next - 1,
        " among ", all_rows, " rows, ", world.num_threads(),
        " threads, blocks of ", world.block_tokens());
  }
  return differences;
}

int BatchInvarianceTest::CountDifferences(bool batch_invariant) {
  ComputeReference(batch_invariant);
  int differences = 0;
  for (int threads = 1; threads <= 4; ++threads) {
    const auto block_tokens = static_cast<int32_t>(Uniform(1, 40));
    World world(GetParam().shape, threads, batch_invariant, block_tokens);
    ReleaseAll(world);
    for (int i = 0; i < kBatchesPerThreadCount; ++i) {
      ReleaseEnded();
      while (std::ssize(live_) < kMaxLive) Start(world);
      differences += RunRandomBatch(world);
    }
    differences += RunLongAlone(world);
  }
  return differences;
}

TEST_P(BatchInvarianceTest, LogitsAreTheSameBitsAloneAndInAnyBatch) {
  EXPECT_EQ(CountDifferences(/*batch_invariant=*/true), 0) << first_difference_;
  EXPECT_GT(num_batches_, 4 * kBatchesPerThreadCount);
  EXPECT_GT(num_compared_, num_batches_);
  EXPECT_GT(num_cached_, 0);
  for (int32_t p = 1; p < kMaxTokens; ++p) {
    EXPECT_FALSE(Matches(0, p, reference_[0][p - 1])) << "position " << p;
  }
}

TEST_P(BatchInvarianceTest, WithoutTheModeTheComparisonFindsDifferences) {
  EXPECT_GT(CountDifferences(/*batch_invariant=*/false), 0);
}

// Odd widths, every head_dim of the families that are served, grouped heads,
// and a depth beyond one block of a product's.
INSTANTIATE_TEST_SUITE_P(
    Models, BatchInvarianceTest,
    testing::Values(InvarianceCase{"SmallF32", {.max_positions = kMaxTokens}},
                    InvarianceCase{"OddBF16",
                                   {.hidden_size = 169,
                                    .intermediate_size = 2113,
                                    .num_heads = 2,
                                    .num_kv_heads = 1,
                                    .head_dim = 64,
                                    .max_positions = kMaxTokens,
                                    .dtype = DType::kBF16}},
                    InvarianceCase{"OddInt8",
                                   {.hidden_size = 169,
                                    .intermediate_size = 451,
                                    .num_heads = 2,
                                    .num_kv_heads = 1,
                                    .head_dim = 64,
                                    .max_positions = kMaxTokens,
                                    .dtype = DType::kInt8}},
                    InvarianceCase{"OddF32",
                                   {.hidden_size = 233,
                                    .intermediate_size = 451,
                                    .num_heads = 3,
                                    .num_kv_heads = 3,
                                    .head_dim = 64,
                                    .max_positions = kMaxTokens}},
                    InvarianceCase{"HeadDim80",
                                   {.hidden_size = 160,
                                    .intermediate_size = 300,
                                    .num_heads = 8,
                                    .num_kv_heads = 2,
                                    .head_dim = 80,
                                    .max_positions = kMaxTokens,
                                    .dtype = DType::kBF16}},
                    InvarianceCase{"HeadDim96",
                                   {.hidden_size = 70,
                                    .intermediate_size = 193,
                                    .num_heads = 3,
                                    .num_kv_heads = 1,
                                    .head_dim = 96,
                                    .max_positions = kMaxTokens}},
                    InvarianceCase{"HeadDim128",
                                   {.hidden_size = 131,
                                    .intermediate_size = 257,
                                    .num_heads = 8,
                                    .num_kv_heads = 1,
                                    .head_dim = 128,
                                    .max_positions = kMaxTokens,
                                    .dtype = DType::kBF16,
                                    .qk_norm = true}}),
    [](const testing::TestParamInfo<InvarianceCase>& info) {
      return std::string(info.param.name);
    });

}  // namespace
}  // namespace overfill
