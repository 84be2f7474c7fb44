// Sample against the reference, by its distribution, and at its edges.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "kernels/philox.h"
#include "tests/kernels/backend_test.h"

namespace overfill {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// A row as a test states it.
struct Row {
  std::vector<float> logits;
  SampleParams params;
  std::vector<TokenAdjustment> adjustments;
};

class SamplingTest : public BackendTest {
 protected:
  // Samples all rows in one call. `is_token` is empty: all ids have one.
  std::vector<SampleResult> Sample(const std::vector<Row>& rows,
                                   const std::vector<uint8_t>& is_token = {}) {
    const int64_t vocab_size = static_cast<int64_t>(rows[0].logits.size());
    std::vector<float> logits;
    std::vector<SampleParams> params;
    std::vector<TokenAdjustment> adjustments = {{-1, kNan, 1, 1, 1}};
    for (const Row& row : rows) {
      logits.insert(logits.end(), row.logits.begin(), row.logits.end());
      params.push_back(row.params);
      params.back().adjustments_begin =
          static_cast<int32_t>(adjustments.size());
      adjustments.insert(adjustments.end(), row.adjustments.begin(),
                         row.adjustments.end());
      params.back().adjustments_end = static_cast<int32_t>(adjustments.size());
    }
    const int64_t num_rows = static_cast<int64_t>(rows.size());
    const DeviceMatrix matrix = MakeMatrix(num_rows, vocab_size, logits);
    const auto device_params = Upload(params);
    const auto device_adjustments = Upload(adjustments);
    const auto device_is_token =
        Upload(is_token.empty() ? std::vector<uint8_t>(1) : is_token);
    SampleResult poison;
    std::memset(static_cast<void*>(&poison), 0x5a, sizeof(poison));
    const auto results = Upload(std::vector<SampleResult>(num_rows, poison));
    SampleBatch batch;
    batch.num_rows = static_cast<int32_t>(num_rows);
    batch.params = device_params.data();
    batch.adjustments = device_adjustments.data();
    {
      StreamScope scope(*stream_);
      ops().Sample(*stream_, matrix.view,
                   is_token.empty() ? nullptr : device_is_token.data(), batch,
                   results.data());
    }
    EXPECT_TRUE(matrix.PaddingIntact());
    return results.Read();
  }

  SampleResult SampleOne(const Row& row,
                         const std::vector<uint8_t>& is_token = {}) {
    return Sample({row}, is_token)[0];
  }

  // Whether the choice is the reference's, up to what f32 cannot tell.
  void ExpectReferenceChoice(const Row& row,
                             const std::vector<uint8_t>& is_token,
                             const SampleResult& result);
  void ExpectLogprobs(const Row& row, const std::vector<uint8_t>& is_token,
                      const SampleResult& result);

  Row RandomRow(int64_t vocab_size);
};

void SamplingTest::ExpectReferenceChoice(const Row& row,
                                         const std::vector<uint8_t>& is_token,
                                         const SampleResult& result) {
  const SampleParams& p = row.params;
  const std::vector<double> processed = reference::ProcessedLogits(
      row.logits, is_token.empty() ? nullptr : is_token.data(), p,
      row.adjustments);
  constexpr double kSlack = 1e-5;
  const std::vector<int32_t> at_least = reference::MaskedOrder(
      processed, p, p.top_p >= 1 ? 1 : p.top_p * (1 - kSlack),
      p.min_p * (1 + kSlack));
  const std::vector<int32_t> at_most = reference::MaskedOrder(
      processed, p, p.top_p >= 1 ? 1 : p.top_p * (1 + kSlack),
      p.min_p * (1 - kSlack));
  if (at_least.empty()) {
    EXPECT_EQ(result.outcome, SampleOutcome::kNoCandidate);
    EXPECT_EQ(result.token_id, -1);
    return;
  }
  ASSERT_EQ(result.outcome, SampleOutcome::kOk);
  ASSERT_NE(std::find(at_most.begin(), at_most.end(), result.token_id),
            at_most.end())
      << "token " << result.token_id << " is not in the mask";
  const auto key = [&](int32_t id) {
    return processed[id] + (p.temperature > 0 ? reference::Noise(p, id) : 0);
  };
  double best = -std::numeric_limits<double>::infinity();
  for (int32_t id : at_least) best = std::max(best, key(id));
  const double tolerance =
      8 * kRoundoffF32 * (8 + 2 * std::abs(processed[at_least[0]]));
  EXPECT_GE(key(result.token_id), best - tolerance)
      << "token " << result.token_id;
}

void SamplingTest::ExpectLogprobs(const Row& row,
                                  const std::vector<uint8_t>& is_token,
                                  const SampleResult& result) {
  if (row.params.num_logprobs < 0) {
    EXPECT_EQ(result.num_top, 0);
    return;
  }
  const std::vector<double> logprobs = reference::LogSoftmax(
      row.logits, is_token.empty() ? nullptr : is_token.data());
  std::vector<int32_t> order;
  for (size_t id = 0; id < logprobs.size(); ++id) {
    if (is_token.empty() || is_token[id] != 0) {
      order.push_back(static_cast<int32_t>(id));
    }
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return row.logits[a] > row.logits[b];
  });
  const int32_t wanted = std::min<int32_t>(row.params.num_logprobs,
                                           static_cast<int32_t>(order.size()));
  ASSERT_EQ(result.num_top, wanted);
  const auto near = [&](double actual, double expected) {
    EXPECT_NEAR(actual, expected, 16 * kRoundoffF32 * (1 + std::abs(expected)));
  };
  near(result.logprob, logprobs[result.token_id]);
  for (int32_t i = 0; i < wanted; ++i) {
    ASSERT_EQ(result.top_ids[i], order[i]);
    near(result.top_logprobs[i], logprobs[order[i]]);
  }
}

Row SamplingTest::RandomRow(int64_t vocab_size) {
  Row row;
  row.logits = Normals(vocab_size, false, 3.0f);
  SampleParams& p = row.params;
  const std::array<float, 6> temperatures = {0.f, 0.f, 0.3f, 1.f, 1.f, 2.5f};
  p.temperature = temperatures[Uniform(0, 5)];
  if (Uniform(0, 1) != 0) p.top_p = 0.05f * static_cast<float>(Uniform(1, 19));
  if (Uniform(0, 1) != 0) p.top_k = static_cast<int32_t>(Uniform(1, 60));
  if (Uniform(0, 2) == 0) p.min_p = 0.01f * static_cast<float>(Uniform(0, 100));
  p.repetition_penalty = 0.5f + 0.1f * static_cast<float>(Uniform(0, 15));
  p.presence_penalty = 0.25f * static_cast<float>(Uniform(-8, 8));
  p.frequency_penalty = 0.25f * static_cast<float>(Uniform(-8, 8));
  p.num_logprobs = static_cast<int32_t>(Uniform(-1, kMaxTopLogprobs));
  p.seed = random_();
  p.sample_index = static_cast<uint32_t>(Uniform(0, 3));
  p.token_index = static_cast<uint32_t>(Uniform(0, 5000));
  for (int64_t id = 0; id < vocab_size; ++id) {
    if (Uniform(0, 9) != 0) continue;
    TokenAdjustment change;
    change.token_id = static_cast<int32_t>(id);
    change.bias = Uniform(0, 1) != 0 ? Normal(5.0f) : 0.0f;
    change.output_count = static_cast<int32_t>(Uniform(0, 3));
    change.seen = Uniform(0, 1) != 0 || change.output_count > 0;
    change.banned = Uniform(0, 3) == 0;
    row.adjustments.push_back(change);
  }
  return row;
}

TEST_P(SamplingTest, AgreesWithTheReference) {
  for (const int64_t vocab_size : {1, 2, 7, 64, 257, 5003, 40009}) {
    std::vector<uint8_t> is_token(vocab_size, 1);
    for (int64_t id = 0; id < vocab_size; ++id) is_token[id] = id % 7 != 5;
    for (int i = 0; i < (vocab_size < 1000 ? 40 : 6); ++i) {
      std::vector<Row> rows;
      for (int64_t r = Uniform(1, 9); r > 0; --r) {
        rows.push_back(RandomRow(vocab_size));
      }
      const bool masked = i % 2 == 0;
      const std::vector<uint8_t> mask =
          masked ? is_token : std::vector<uint8_t>();
      const std::vector<SampleResult> results = Sample(rows, mask);
      for (size_t r = 0; r < rows.size(); ++r) {
        SCOPED_TRACE(testing::Message() << "vocabulary " << vocab_size
                                        << " round " << i << " row " << r);
        ExpectReferenceChoice(rows[r], mask, results[r]);
        if (results[r].outcome == SampleOutcome::kOk) {
          ExpectLogprobs(rows[r], mask, results[r]);
        }
      }
    }
  }
}

TEST_P(SamplingTest, ADrawDependsOnNothingElseInTheBatch) {
  std::vector<Row> rows;
  for (int i = 0; i < 20; ++i) rows.push_back(RandomRow(1003));
  const std::vector<SampleResult> together = Sample(rows);
  for (size_t r = 0; r < rows.size(); ++r) {
    const SampleResult alone = SampleOne(rows[r]);
    EXPECT_EQ(alone.token_id, together[r].token_id);
    EXPECT_EQ(alone.logprob, together[r].logprob);
    EXPECT_EQ(alone.num_top, together[r].num_top);
  }
}

// Pearson's statistic of `draws` samples against the masked softmax. The bound
// is the quantile that a right sampler exceeds once in 10^7 runs or less
// (Wilson and Hilferty's approximation).
TEST_P(SamplingTest, DistributionIsTheMaskedSoftmax) {
  constexpr int kDraws = 20000;
  struct Rule {
    float temperature, top_p, min_p;
    int32_t top_k;
  };
  for (const Rule& rule : {Rule{1.0f, 1, 0, 0}, Rule{0.5f, 1, 0, 0},
                           Rule{1.0f, 0.8f, 0, 0}, Rule{1.0f, 1, 0.15f, 0},
                           Rule{1.5f, 1, 0, 5}, Rule{1.0f, 0.7f, 0.1f, 6}}) {
    Row row;
    row.logits = Normals(12, false, 1.0f);
    row.params.temperature = rule.temperature;
    row.params.top_p = rule.top_p;
    row.params.min_p = rule.min_p;
    row.params.top_k = rule.top_k;
    row.params.seed = random_();
    const std::vector<double> processed =
        reference::ProcessedLogits(row.logits, nullptr, row.params, {});
    const std::vector<int32_t> kept = reference::MaskedOrder(
        processed, row.params, row.params.top_p, row.params.min_p);
    double total = 0;
    for (int32_t id : kept) total += std::exp(processed[id]);
    std::vector<Row> rows(kDraws, row);
    for (int i = 0; i < kDraws; ++i) {
      rows[i].params.token_index = static_cast<uint32_t>(i / 2);
      rows[i].params.sample_index = static_cast<uint32_t>(i % 2);
    }
    std::map<int32_t, int> counts;
    for (const SampleResult& result : Sample(rows)) ++counts[result.token_id];
    double statistic = 0;
    int seen = 0;
    for (int32_t id : kept) {
      const double expected = kDraws * std::exp(processed[id]) / total;
      statistic += (counts[id] - expected) * (counts[id] - expected) / expected;
      seen += counts[id];
    }
    EXPECT_EQ(seen, kDraws) << "an id outside the mask was drawn";
    const double freedom = std::max<double>(1, kept.size() - 1.0);
    const double part = 2.0 / (9.0 * freedom);
    const double bound =
        freedom * std::pow(1 - part + 5.2 * std::sqrt(part), 3);
    EXPECT_LT(statistic, bound)
        << kept.size() << " candidates, temperature " << rule.temperature;
  }
}

TEST_P(SamplingTest, SeedSampleAndTokenIndexAllMatter) {
  Row row;
  row.logits.assign(50000, 0.0f);
  row.params.temperature = 1;
  row.params.seed = random_();
  std::vector<Row> rows(6, row);
  rows[1].params.seed ^= 1;
  rows[2].params.seed ^= uint64_t{1} << 63;
  rows[3].params.sample_index = 1;
  rows[4].params.token_index = 1;
  const std::vector<SampleResult> results = Sample(rows);
  std::vector<int32_t> ids;
  for (int i = 0; i < 5; ++i) ids.push_back(results[i].token_id);
  EXPECT_EQ(results[5].token_id, ids[0]);
  std::sort(ids.begin(), ids.end());
  // Five draws of 50000 ids: a tie is one in 5000 runs; two would be a bug.
  EXPECT_GE(std::unique(ids.begin(), ids.end()) - ids.begin(), 4);
}

TEST_P(SamplingTest, GreedyTakesTheLowestOfEquals) {
  for (const int64_t vocab_size : {2, 40, 5000, 40000}) {
    Row row;
    row.logits.assign(vocab_size, -1.0f);
    const int64_t last = vocab_size - 1;
    const int64_t first = Uniform(0, last - 1);
    row.logits[first] = row.logits[last] = 2.5f;
    EXPECT_EQ(SampleOne(row).token_id, first);
    row.logits.assign(vocab_size, 0.0f);
    EXPECT_EQ(SampleOne(row).token_id, 0);
  }
}

TEST_P(SamplingTest, TiesAtACutAreKeptInOrderOfId) {
  Row row;
  row.logits.assign(3000, 1.0f);
  row.params.temperature = 1;
  std::vector<Row> rows;
  for (int i = 0; i < 300; ++i) {
    row.params.token_index = static_cast<uint32_t>(i);
    row.params.top_k = 3;
    row.params.top_p = 1;
    rows.push_back(row);
    row.params.top_k = 0;
    row.params.top_p = 0.0009f;  // just under 3 of 3000
    rows.push_back(row);
  }
  std::array<bool, 3> drawn = {};
  for (const SampleResult& result : Sample(rows)) {
    ASSERT_GE(result.token_id, 0);
    ASSERT_LT(result.token_id, 3);
    drawn[result.token_id] = true;
  }
  EXPECT_TRUE(drawn[0] && drawn[1] && drawn[2]);
}

TEST_P(SamplingTest, AdjustmentsApplyInTheirOrder) {
  // (2 + 1) / 1.5 - 0.25 * 2 - 0.125 = 1.375, above and below its neighbours;
  // any other order gives another number.
  Row row;
  row.logits = {2.0f, 1.37f, -1.0f, 0.0f};
  row.params.repetition_penalty = 1.5f;
  row.params.frequency_penalty = 0.25f;
  row.params.presence_penalty = 0.125f;
  row.adjustments = {{0, 1.0f, 2, 1, 0}};
  EXPECT_EQ(SampleOne(row).token_id, 0);
  row.logits[1] = 1.38f;
  EXPECT_EQ(SampleOne(row).token_id, 1);
  // A negative logit is multiplied: -1 * 1.5 = -1.5.
  row.logits = {-1.0f, -1.49f};
  row.adjustments = {{0, 0.0f, 0, 1, 0}};
  EXPECT_EQ(SampleOne(row).token_id, 1);
  row.logits[1] = -1.51f;
  EXPECT_EQ(SampleOne(row).token_id, 0);
  // Seen in the prompt only: no presence or frequency penalty.
  row.logits = {3.0f, 1.99f};
  row.adjustments = {{0, 0.0f, 0, 1, 0}};
  EXPECT_EQ(SampleOne(row).token_id, 0);
}

TEST_P(SamplingTest, BannedIdsAreNeverDrawn) {
  Row row;
  row.logits.assign(100, 0.0f);
  row.logits[17] = 50.0f;
  row.adjustments = {{17, 100.0f, 0, 0, 1}};
  EXPECT_EQ(SampleOne(row).token_id, 0);
  std::vector<Row> rows;
  for (int i = 0; i < 200; ++i) {
    row.params.temperature = 5;
    row.params.token_index = static_cast<uint32_t>(i);
    rows.push_back(row);
  }
  for (const SampleResult& result : Sample(rows)) {
    EXPECT_NE(result.token_id, 17);
    EXPECT_GE(result.token_id, 0);
  }
  row.logits = {1.0f, 2.0f};
  row.adjustments = {{0, 0, 0, 0, 1}, {1, 0, 0, 0, 1}};
  for (const float temperature : {0.0f, 1.0f}) {
    row.params.temperature = temperature;
    const SampleResult result = SampleOne(row);
    EXPECT_EQ(result.outcome, SampleOutcome::kNoCandidate);
    EXPECT_EQ(result.token_id, -1);
  }
}

TEST_P(SamplingTest, IdsWithoutATokenTakeNoPart) {
  // Not even when their logits are the best, or no numbers.
  for (const float bait : {100.0f, kNan, kInf, -kInf}) {
    Row row;
    row.logits = {1.0f, bait, 2.0f, bait, 0.0f};
    row.params.num_logprobs = 5;
    row.adjustments = {{1, 50.0f, 0, 0, 0}};
    const std::vector<uint8_t> is_token = {1, 0, 1, 0, 1};
    for (const float temperature : {0.0f, 1.0f}) {
      row.params.temperature = temperature;
      const SampleResult result = SampleOne(row, is_token);
      ASSERT_EQ(result.outcome, SampleOutcome::kOk);
      EXPECT_EQ(result.token_id % 2, 0);
      ASSERT_EQ(result.num_top, 3);
      EXPECT_EQ(result.top_ids[0], 2);
      const double total = std::exp(1.0) + std::exp(2.0) + 1;
      EXPECT_NEAR(result.top_logprobs[0], 2 - std::log(total), 1e-6);
    }
  }
}

TEST_P(SamplingTest, OnlyTheRowThatIsNotFiniteFails) {
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const int num_logprobs : {-1, 0, 3}) {
      for (const bool adjusted : {false, true}) {
        std::vector<Row> rows;
        for (int i = 0; i < 5; ++i) {
          rows.push_back(RandomRow(333));
          rows.back().params.num_logprobs = num_logprobs;
          rows.back().adjustments.clear();
        }
        rows[2].logits[Uniform(0, 332)] = bad;
        if (adjusted) {
          // Even when the id is banned.
          rows[2].logits.assign(333, 0.0f);
          rows[2].logits[5] = bad;
          rows[2].adjustments = {{5, 0, 0, 0, 1}};
        }
        const std::vector<SampleResult> results = Sample(rows);
        for (int i = 0; i < 5; ++i) {
          EXPECT_EQ(results[i].outcome,
                    i == 2 ? SampleOutcome::kNonFinite : SampleOutcome::kOk);
          EXPECT_EQ(results[i].token_id < 0, i == 2);
        }
      }
    }
  }
}

TEST_P(SamplingTest, ExtremesOfLogitsAndTemperature) {
  Row row;
  row.params.seed = random_();
  for (const float temperature : {1e-30f, 1e-6f, 1.0f, 1e6f, 1e30f}) {
    for (const float scale : {1e-30f, 1.0f, 1e30f}) {
      for (const float top_p : {1e-6f, 0.5f, 1.0f}) {
        row.logits = Normals(700, false, 1.0f);
        for (float& logit : row.logits) logit *= scale;
        row.logits[44] = 5 * scale;
        row.params.temperature = temperature;
        row.params.top_p = top_p;
        row.params.min_p = top_p == 0.5f ? 1.0f : 0.0f;
        const SampleResult result = SampleOne(row);
        ASSERT_EQ(result.outcome, SampleOutcome::kOk);
        ASSERT_GE(result.token_id, 0);
        ASSERT_LT(result.token_id, 700);
        // Where the logits still differ after the division.
        const float spread = scale / temperature;
        if (spread >= 1e5f || (top_p < 1e-3f && spread > 1e-20f)) {
          EXPECT_EQ(result.token_id, 44);
        }
      }
    }
  }
  // An endless bias is a very large one.
  row.logits = {1.0f, 2.0f};
  row.params = SampleParams();
  row.adjustments = {{0, kInf, 0, 0, 0}};
  EXPECT_EQ(SampleOne(row).token_id, 0);
  row.adjustments = {{1, -kInf, 0, 0, 0}};
  EXPECT_EQ(SampleOne(row).token_id, 0);
}

TEST(PhiloxTest, KnownAnswers) {
  // From the known-answer file of the authors' library, philox4x32 10 rounds.
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, 0, 0),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c,
                                     0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                       0xffffffff, 0xffffffff),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6,
                                     0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                       0xa4093822, 0x299f31d0),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420,
                                     0x24126ea1}));
}

OVERFILL_INSTANTIATE_BACKENDS(SamplingTest);

}  // namespace
}  // namespace overfill
