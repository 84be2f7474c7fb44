// How many prompt rows a step may have while answers run.
#ifndef OVERFILL_SCHEDULER_CHUNK_GOVERNOR_H_
#define OVERFILL_SCHEDULER_CHUNK_GOVERNOR_H_

#include <array>
#include <cstdint>
#include <optional>

#include "scheduler/observer.h"

namespace overfill {

struct ChunkLimits {
  int32_t min_rows = 16;  // 1..; max_rows where that is less
  int32_t max_rows = 0;   // 1..
  // What the gap between two tokens of an answer should be at most, as a rule:
  // its typical value follows the target, its tail is above. 0: automatic,
  // 1.65 times the gap without prompts, so that the tail stays within twice.
  double target_seconds = 0;
};

// The time between two tokens of a pool's answers, once for each of its steps.
struct TokenGap {
  PoolId answers_in = PoolId::kDecode;
  int32_t num_decode_rows = 0;  // of the step that made the second token
  // The largest chunk of a prompt that was read meanwhile, in the same step or
  // in one beside it; 0: undisturbed.
  int32_t prompt_rows = 0;
  PoolId prompts_in = PoolId::kPrefill;
  double seconds = 0;
};

// Learns the gap without prompts, by the number of decode rows, and what a
// chunk adds to it, and gives the largest chunk that keeps the gaps at their
// target. The cost of a chunk is a line over its rows, as they are where
// weights are read whatever the rows; but chunks that hardly differ tell a line
// by their noise, so it is followed only a little further than one through the
// origin. Every estimate is a median or leaves outliers out, so a stall moves
// none; all are of the last few dozens of gaps, so a new load is learned in as
// many. It starts at min_rows, and offers at most twice what it has seen.
//
// Pure host data; not thread-safe.
class ChunkGovernor {
 public:
  explicit ChunkGovernor(const ChunkLimits& limits);

  // A gap that is negative or not a number is ignored.
  void OnGap(const TokenGap& gap);

  // For a step of pool `prompts_in`, in [min_rows, max_rows]; `num_decode_rows`
  // by PoolId: of the answers that run. Where none do: max_rows. The same until
  // the next OnGap.
  int32_t MaxPromptRows(PoolId prompts_in,
                        const std::array<int32_t, 2>& num_decode_rows) const;

  // Whether it is long ago that there was a gap without prompts, so that it is
  // time for one to measure.
  bool WantsUndisturbed(PoolId answers_in, int32_t num_decode_rows) const;
  // What such a gap is; 0: not known yet.
  double UndisturbedSeconds(PoolId answers_in, int32_t num_decode_rows) const;

 private:
  // Of the last few values.
  class Median {
   public:
    void Add(double value);
    std::optional<double> value() const { return value_; }

   private:
    static constexpr int kWindow = 31;
    std::array<double, kWindow> values_{};
    int64_t num_added_ = 0;
    std::optional<double> value_;
  };

  // The gap without prompts, at about one number of decode rows.
  struct Base {
    Median undisturbed;
    int64_t num_since_undisturbed = 0;
  };

  struct Sample {
    int32_t rows = 0;
    int bucket = 0;
    double seconds = 0;
  };

  // What prompt rows of one pool add to the gaps of one pool's answers, in
  // seconds: fixed + rows * per_row; plain_per_row is by the large ones alone.
  struct Cost {
    // More than two chunks, where each lies beside as many gaps as layers.
    static constexpr int kWindow = 48;
    std::array<Sample, kWindow> samples{};
    int64_t num_added = 0;
    double fixed = 0;
    double per_row = 0;
    double plain_per_row = 0;
    int32_t most_rows = 0;  // of the samples
  };

  static constexpr int kNumBuckets = 32;
  static int BucketOf(int32_t num_decode_rows);

  std::optional<double> BaseOf(PoolId answers_in, int bucket) const;
  double Target(double base) const;
  void Fit(PoolId answers_in, Cost& cost) const;
  int32_t Limit(const Cost& cost, double base) const;

  const ChunkLimits limits_;
  std::array<std::array<Base, kNumBuckets>, 2> bases_;  // by answers' PoolId
  std::array<std::array<Cost, 2>, 2> costs_;            // [answers][prompts]
};

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_CHUNK_GOVERNOR_H_
