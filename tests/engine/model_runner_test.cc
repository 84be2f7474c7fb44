#include "engine/model_runner.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/kv_store.h"
#include "gtest/gtest.h"
#include "tests/engine/model_runner_fixture.h"

namespace overfill {
namespace {

TEST_F(ModelRunnerTest, ChunksOfAPromptGiveTheLogitsOfTheWhole) {
  const Logits whole = Run({Rows(0, 30, 0)})[0];
  for (const std::vector<int32_t>& chunks : {std::vector<int32_t>(30, 1),
                                             {29, 1},
                                             {1, 29},
                                             {4, 4, 8, 14},
                                             {7, 23},
                                             {13, 5, 5, 7}}) {
    Poison(*store_);
    int32_t start = 0;
    Logits last;
    for (int32_t rows : chunks) {
      last = Run({Rows(start, rows, 20)})[0];
      start += rows;
    }
    EXPECT_LT(Difference(last, whole), kTolerance);
  }
  // One token less is another answer: the comparison can fail.
  EXPECT_GT(Difference(Run({Rows(0, 29, 20)})[0], whole), 100 * kTolerance);
}

TEST_F(ModelRunnerTest, NeighboursInTheBatchDoNotChangeASequence) {
  const std::vector<Logits> alone = {
      Run({Rows(0, 9, 0)})[0], Run({Rows(9, 1, 0)})[0],
      Run({Rows(0, 33, 5)})[0], Run({Rows(0, 1, 20)})[0]};
  Poison(*store_);
  Run({Rows(0, 9, 0), Rows(0, 16, 40)});
  const auto together =
      Run({Rows(0, 33, 5), Rows(9, 1, 0), Rows(16, 3, 40), Rows(0, 1, 20)});
  EXPECT_LT(Difference(together[0], alone[2]), kTolerance);
  EXPECT_LT(Difference(together[1], alone[1]), kTolerance);
  EXPECT_LT(Difference(together[3], alone[3]), kTolerance);
  EXPECT_LT(Difference(together[2], Run({Rows(0, 19, 0)})[0]), kTolerance);
}

TEST_F(ModelRunnerTest, ALongerTableThanTheStepReadsIsWelcome) {
  const Logits want = Run({Rows(0, 6, 0)})[0];
  Poison(*store_);
  SequenceStep step = Rows(0, 6, 0);
  step.block_table = std::span<const int32_t>(blocks_).first(30);
  EXPECT_LT(Difference(Run({step, Rows(0, 2, 40)})[0], want), kTolerance);
}

TEST_F(ModelRunnerTest, OnlyDrawsHaveTokens) {
  SequenceStep silent = Rows(0, 5, 0);
  silent.draws = {};
  Run({silent, Rows(0, 7, 10)});
  ASSERT_EQ(last_result_.tokens.size(), 1u);
  EXPECT_TRUE(logits_[0].empty());
  EXPECT_EQ(last_result_.tokens[0].token_id, ArgMax(logits_[1]));
  // The silent one's KV is there all the same.
  const Logits after = Run({Rows(5, 2, 0)})[0];
  EXPECT_LT(Difference(after, Run({Rows(0, 7, 20)})[0]), kTolerance);

  Run({silent});
  EXPECT_TRUE(last_result_.tokens.empty());
  Run({});
  EXPECT_TRUE(last_result_.tokens.empty());
}

TEST_F(ModelRunnerTest, ANonFiniteRowFailsAlone) {
  const auto alone = Run({Rows(0, 9, 0), Rows(0, 12, 10)});
  std::vector<int32_t> bad(tokens_.begin(), tokens_.begin() + 10);
  bad[6] = TinyModel::kPoisonedToken;
  SequenceStep poisoned = Rows(0, 10, 30);
  poisoned.token_ids = bad;
  const auto together = Run({Rows(0, 9, 0), poisoned, Rows(0, 12, 10)});
  EXPECT_EQ(last_result_.tokens[1].status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(last_result_.tokens[1].token_id, -1);
  for (const auto& [got, want] : {std::pair(0, 0), std::pair(2, 1)}) {
    EXPECT_TRUE(last_result_.tokens[got].status.ok());
    EXPECT_EQ(last_result_.tokens[got].token_id, ArgMax(alone[want]));
    EXPECT_LT(Difference(together[got], alone[want]), kTolerance);
  }
  // Whoever gets the failed sequence's blocks next is unharmed.
  EXPECT_LT(Difference(Run({Rows(0, 9, 30)})[0], alone[0]), kTolerance);
}

TEST_F(ModelRunnerTest, AnAbandonedStepStopsAndTheNextOneIsWhole) {
  const Logits want = Run({Rows(0, 9, 0)})[0];
  Poison(*store_);
  std::atomic<bool> is_abandoned = true;
  const StepBatch batch = {.sequences = {Rows(0, 9, 0)},
                           .is_abandoned = &is_abandoned};
  const absl::Status status = runner_->Run(batch).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  // It stopped behind the first layer: the last one's KV is poison still.
  const int64_t layer_bytes = store_->block_bytes() / 3;
  const auto* block = static_cast<const std::byte*>(store_->view().data) +
                      blocks_[0] * store_->block_bytes();
  EXPECT_NE(block[0], std::byte{0xff});
  EXPECT_EQ(block[2 * layer_bytes], std::byte{0xff});
  EXPECT_EQ(Difference(Run({Rows(0, 9, 0)})[0], want), 0);
  is_abandoned = false;
  EXPECT_TRUE(runner_->Run(batch).ok());
}

TEST_F(ModelRunnerTest, LogprobsAreOfTheRawLogits) {
  SamplingParams params = Greedy();
  params.num_logprobs = 3;
  const Logits plain = Run({Rows(0, 8, 0)})[0];
  const int32_t best = ArgMax(plain);
  params.logit_bias = {{best, -100.0f}};  // the choice, not the logprobs
  const SamplingState state(&params, {}, 0);
  const SamplingState* const draw = &state;
  SequenceStep step = Rows(0, 8, 0);
  step.draws = std::span(&draw, 1);
  const Logits raw = Run({Rows(0, 5, 20), step})[1];
  EXPECT_LT(Difference(raw, plain), kTolerance);

  const SampledToken& token = last_result_.tokens[1];
  ASSERT_TRUE(token.status.ok());
  EXPECT_NE(token.token_id, best);
  double sum = 0;
  for (float logit : raw) sum += std::exp(double{logit});
  ASSERT_EQ(token.top_logprobs.size(), 3u);
  EXPECT_EQ(token.top_logprobs[0].first, best);
  EXPECT_EQ(token.top_logprobs[1].first, token.token_id);
  EXPECT_EQ(token.top_logprobs[1].second, token.logprob);
  for (const auto& [id, logprob] : token.top_logprobs) {
    EXPECT_NEAR(logprob, raw[id] - std::log(sum), 1e-4);
  }
  // Nobody asked the other one.
  EXPECT_TRUE(last_result_.tokens[0].top_logprobs.empty());
}

TEST_F(ModelRunnerTest, BansHoldFromTheFirstToken) {
  const int32_t best = ArgMax(Run({Rows(0, 8, 0)})[0]);
  SamplingParams params = Greedy();
  params.min_tokens = 1;
  params.min_tokens_banned_ids = {best};
  SamplingState state(&params, {}, 0);
  const SamplingState* const draw = &state;
  SequenceStep step = Rows(0, 8, 0);
  step.draws = std::span(&draw, 1);
  Run({step});
  EXPECT_NE(last_result_.tokens[0].token_id, best);
  state.Accept(last_result_.tokens[0].token_id);
  Run({step});
  EXPECT_EQ(last_result_.tokens[0].token_id, best);
}

TEST_F(ModelRunnerTest, ADrawDependsOnNothingElseInTheBatch) {
  std::vector<SamplingParams> params(20);
  std::vector<SamplingState> states;
  for (size_t i = 0; i < params.size(); ++i) {
    params[i].temperature = 1.5f;
    params[i].seed = 77 + i;
    states.emplace_back(&params[i], std::span<const int32_t>(), 0);
  }
  std::vector<const SamplingState*> draws;
  for (const SamplingState& state : states) draws.push_back(&state);
  const auto step = [&](size_t i) {
    SequenceStep result = Rows(0, 3, static_cast<int32_t>(3 * i));
    result.draws = std::span(draws).subspan(i, 1);
    return result;
  };
  std::vector<int32_t> alone;
  std::vector<SequenceStep> all;
  for (size_t i = 0; i < params.size(); ++i) {
    Run({step(i)});
    alone.push_back(last_result_.tokens[0].token_id);
    all.push_back(step(i));
  }
  std::reverse(all.begin(), all.end());
  Run(all);
  std::vector<int32_t> together;
  for (const auto& token : last_result_.tokens) {
    together.insert(together.begin(), token.token_id);
  }
  EXPECT_EQ(together, alone);
  std::sort(alone.begin(), alone.end());
  EXPECT_GT(std::unique(alone.begin(), alone.end()) - alone.begin(), 5);
}

TEST_F(ModelRunnerTest, LongAdjustmentListsGrowTheStaging) {
  SamplingParams params = Greedy();
  params.repetition_penalty = 1e6f;  // what the prompt said is not said again
  std::vector<int32_t> seen(TinyModel::kVocab - 1);
  std::iota(seen.begin(), seen.end(), 0);
  seen.erase(seen.begin() + 17);
  const SamplingState state(&params, seen, 0);
  const SamplingState* const draw = &state;
  std::vector<SequenceStep> steps;
  for (int32_t i = 0; i < kLimits.max_sequences; ++i) {
    steps.push_back(Rows(0, 2, /*first_block=*/i));
    steps.back().draws = std::span(&draw, 1);
  }
  const auto logits = Run(steps);
  for (size_t i = 0; i < steps.size(); ++i) {
    Logits processed = logits[i];
    for (int32_t id : seen) {
      processed[id] =
          processed[id] > 0 ? processed[id] / 1e6f : processed[id] * 1e6f;
    }
    EXPECT_EQ(last_result_.tokens[i].token_id, ArgMax(processed));
  }
}

TEST_F(ModelRunnerTest, AnIdOutsideTheVocabularyFailsItsRowAlone) {
  SamplingParams params = Greedy();
  for (int32_t bad : {TinyModel::kVocab, -1, 1 << 30}) {
    params.logit_bias = {{3, 1.0f}, {bad, 5.0f}};
    const SamplingState state(&params, {}, 0);
    const SamplingState* const draw = &state;
    SequenceStep step = Rows(0, 4, 0);
    step.draws = std::span(&draw, 1);
    const auto logits = Run({Rows(0, 6, 10), step, Rows(0, 7, 20)});
    EXPECT_FALSE(last_result_.tokens[1].status.ok());
    EXPECT_EQ(last_result_.tokens[0].token_id, ArgMax(logits[0]));
    EXPECT_EQ(last_result_.tokens[2].token_id, ArgMax(logits[2]));
  }
}

TEST_F(ModelRunnerTest, BatchesThatBreakTheLimitsAreRefused) {
  const std::vector<int32_t> many(300, 1);
  const std::vector<int32_t> outside = {1, TinyModel::kVocab};
  const std::vector<int32_t> negative = {-1};
  const std::vector<int32_t> bad_block = {0, kNumBlocks};
  const std::vector<int32_t> negative_block = {-1};
  const std::vector<const SamplingState*> full(kLimits.max_sequences, &greedy_);
  const std::array<const SamplingState*, 2> missing = {&greedy_, nullptr};
  const auto with = [this](auto member, auto value) {
    SequenceStep step = Rows(0, 2, 0);
    step.*member = value;
    return std::vector<SequenceStep>{Rows(0, 2, 10), step};
  };
  using Ids = std::span<const int32_t>;
  using Draws = std::span<const SamplingState* const>;
  const std::vector<std::vector<SequenceStep>> batches = {
      with(&SequenceStep::token_ids, Ids()),
      with(&SequenceStep::token_ids, Ids(many)),
      with(&SequenceStep::token_ids, Ids(outside)),
      with(&SequenceStep::token_ids, Ids(negative)),
      with(&SequenceStep::start_position, -1),
      with(&SequenceStep::start_position, 3),  // beyond its one block
      with(&SequenceStep::start_position, 99),
      with(&SequenceStep::start_position, 2147483647),
      with(&SequenceStep::block_table, Ids()),
      with(&SequenceStep::block_table, Ids(bad_block)),
      with(&SequenceStep::block_table, Ids(negative_block)),
      with(&SequenceStep::draws, Draws(full)),  // and one beside them
      with(&SequenceStep::draws, Draws(missing)),
      std::vector<SequenceStep>(kLimits.max_sequences + 1, Rows(0, 1, 0)),
      {Rows(0, 100, 0), Rows(0, 100, 0), Rows(0, 57, 0)},
  };
  for (size_t i = 0; i < batches.size(); ++i) {
    auto result = runner_->Run({.sequences = batches[i]});
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument)
        << "batch " << i;
  }
  const auto* bytes = static_cast<const uint8_t*>(store_->view().data);
  EXPECT_TRUE(std::all_of(bytes, bytes + store_->view().block_bytes(),
                          [](uint8_t byte) { return byte == 0xff; }));
  EXPECT_TRUE(runner_->Run({.sequences = {Rows(0, 2, 0)}}).ok());
}

TEST_F(ModelRunnerTest, AMapOfLayersReadsThemInPlace) {
  const TinyModel small(*device_, /*num_layers=*/2, /*seed=*/12);
  auto own_store = Store(2);
  auto own =
      ModelRunner::Create(*device_, small.weights(), *own_store, Options());
  ASSERT_TRUE(own.ok()) << own.status();
  ModelRunnerOptions options = Options();
  options.kv_layers = {2, 0};
  auto mapped = ModelRunner::Create(*device_, small.weights(), *store_,
                                    std::move(options));
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  std::vector<Logits> got;
  for (ModelRunner* runner : {own->get(), mapped->get()}) {
    for (const SequenceStep& step : {Rows(0, 9, 0), Rows(9, 1, 0)}) {
      ASSERT_TRUE(runner->Run({.sequences = {step}}).ok());
      got.push_back(logits_[0]);
    }
  }
  EXPECT_EQ(got[0], got[2]);
  EXPECT_EQ(got[1], got[3]);
  // Layer l of the small model lies in layer kv_layers[l] of the large store.
  const KvView& kv = store_->view();
  const KvView& own_kv = own_store->view();
  const auto layer = [&](const KvView& view, int32_t l) {
    return static_cast<const float*>(view.data) +
           view.TileOffset(blocks_[0], l, 0, 0);
  };
  const size_t bytes = kv.layer_elements() * sizeof(float);
  EXPECT_EQ(std::memcmp(layer(kv, 2), layer(own_kv, 0), bytes), 0);
  EXPECT_EQ(std::memcmp(layer(kv, 0), layer(own_kv, 1), bytes), 0);
  EXPECT_NE(std::memcmp(layer(kv, 0), layer(own_kv, 0), bytes), 0);
  EXPECT_TRUE(std::isnan(layer(kv, 1)[0]));  // nobody's
}

TEST_F(ModelRunnerTest, ModelsThatDoNotFitTheStoreAreRefused) {
  const auto create = [&](auto change) {
    ModelRunnerOptions options = Options();
    change(options);
    return ModelRunner::Create(*device_, model_.weights(), *store_,
                               std::move(options))
        .status()
        .code();
  };
  using O = ModelRunnerOptions;
  EXPECT_EQ(create([](O&) {}), absl::StatusCode::kOk);
  const std::vector<void (*)(O&)> bad = {
      [](O& o) {
        o.kv_layers = {0, 1};
      },
      [](O& o) {
        o.kv_layers = {0, 1, 3};
      },
      [](O& o) {
        o.kv_layers = {0, 1, -1};
      },
      [](O& o) {
        o.kv_layers = {0, 1, 1};
      },
      [](O& o) { o.limits.max_rows = 0; },
      [](O& o) { o.limits.max_sequences = 0; },
      [](O& o) { o.limits.max_sequence_tokens = 0; },
      [](O& o) { o.limits.max_sequence_tokens = 257; },
  };
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(create(bad[i]), absl::StatusCode::kInvalidArgument) << i;
  }
  for (auto member : {&KvLayout::num_kv_heads, &KvLayout::head_dim}) {
    KvLayout layout = store_->layout();
    layout.*member *= 2;
    auto store = KvStore::Create(*device_, layout, 2 * *KvBlockBytes(layout));
    EXPECT_EQ(
        ModelRunner::Create(*device_, model_.weights(), **store, Options())
            .status()
            .code(),
        absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace overfill
