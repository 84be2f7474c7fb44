// The ops that a step's time is made of, at the shapes of a pruned 1B model,
// on the CPU; "Invariant" is the same under DeviceOptions::batch_invariant.
// Rates are bytes of weights or KV read, so that they compare with the
// machine's read bandwidth, which is measured beside them. Google Benchmark's
// flags apply; OVERFILL_CPU_ISA caps the instruction set.
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

#include "base/check.h"
#include "base/checked_math.h"
#include "benchmark/benchmark.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace overfill {
namespace {

constexpr int32_t kHidden = 1126;
constexpr int32_t kIntermediate = 4505;
constexpr int32_t kHeads = 32;
constexpr int32_t kKvHeads = 8;
constexpr int32_t kHeadDim = 64;
constexpr int32_t kBlockTokens = 16;
// Weights are rotated over this many bytes, so that no cache holds them.
constexpr int64_t kColdBytes = 256 << 20;

Device* NewBenchDevice(bool batch_invariant) {
  DeviceOptions options;
  options.batch_invariant = batch_invariant;
  if (const char* isa = std::getenv("OVERFILL_CPU_ISA")) options.cpu_isa = isa;
  auto made = MakeDevice("cpu", options);
  OVERFILL_CHECK_OK(made.status());
  return made->release();
}

// Made once each, and only when asked for: a team's threads wait in a spin.
Device& BenchDevice(bool batch_invariant = false) {
  if (batch_invariant) {
    static Device* const device = NewBenchDevice(true);
    return *device;
  }
  static Device* const device = NewBenchDevice(false);
  return *device;
}

std::unique_ptr<Buffer> NewBuffer(int64_t bytes) {
  auto buffer = BenchDevice().Allocate(bytes);
  OVERFILL_CHECK_OK(buffer.status());
  return *std::move(buffer);
}

std::vector<float> Noise(int64_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

using Weights = std::vector<std::unique_ptr<LinearWeight>>;

// As many as fill kColdBytes. Kept: a benchmark is entered many times.
const Weights& ColdWeights(Device& device, int64_t out, int64_t in) {
  static auto* const made =
      new std::map<std::tuple<Device*, int64_t, int64_t>, Weights>;
  Weights& weights = (*made)[{&device, out, in}];
  if (!weights.empty()) return weights;
  const std::vector<float> values = Noise(out * in);
  const HostTensor tensor{reinterpret_cast<const std::byte*>(values.data()),
                          DType::kF32,
                          {out, in}};
  for (int64_t bytes = 0; bytes < kColdBytes; bytes += 2 * in * out) {
    auto weight = device.ops().MakeLinear({&tensor, 1}, {}, DType::kBF16);
    OVERFILL_CHECK_OK(weight.status());
    weights.push_back(*std::move(weight));
  }
  return weights;
}

// One bf16 product of range(0) rows, range(1) -> range(2).
void RunLinear(benchmark::State& state, bool batch_invariant) {
  const int64_t rows = state.range(0), in = state.range(1),
                out = state.range(2);
  Device& device = BenchDevice(batch_invariant);
  const Weights& weights = ColdWeights(device, out, in);
  auto x = NewBuffer(rows * in * 4), y = NewBuffer(rows * out * 4);
  const Matrix x_view{x->data(), DType::kF32, rows, in, in};
  const Matrix y_view{y->data(), DType::kF32, rows, out, out};
  auto stream = device.NewStream(StreamPriority::kHigh);
  size_t next = 0;
  for (auto _ : state) {
    StreamScope scope(*stream);
    device.ops().Linear(*stream, x_view, *weights[next], y_view, false);
    next = (next + 1) % weights.size();
  }
  OVERFILL_CHECK_OK(stream->Synchronize());
  state.SetBytesProcessed(state.iterations() * weights[0]->bytes());
  state.counters["FLOPS"] = benchmark::Counter(
      2.0 * static_cast<double>(rows * in * out * state.iterations()),
      benchmark::Counter::kIsRate);
}
void BM_Linear(benchmark::State& state) { RunLinear(state, false); }
BENCHMARK(BM_Linear)
    ->ArgNames({"rows", "in", "out"})
    ->ArgsProduct({{1, 4, 16, 64, 512}, {kHidden}, {2 * kIntermediate}})
    ->ArgsProduct({{1, 16, 512}, {kIntermediate}, {kHidden}})
    ->ArgsProduct({{1, 8, 32, 512}, {2048}, {8192}})
    ->UseRealTime();
void BM_LinearInvariant(benchmark::State& state) { RunLinear(state, true); }
BENCHMARK(BM_LinearInvariant)
    ->ArgNames({"rows", "in", "out"})
    ->ArgsProduct({{1, 8, 32, 512}, {2048}, {8192}})
    ->UseRealTime();

// Attention of range(0) sequences over range(1) tokens of KV each, of which the
// last range(2) are rows of the step.
void RunAttention(benchmark::State& state, bool batch_invariant) {
  const auto sequences = static_cast<int32_t>(state.range(0));
  const auto tokens = static_cast<int32_t>(state.range(1));
  const auto chunk = static_cast<int32_t>(state.range(2));
  const int32_t rows = sequences * chunk;
  const auto max_blocks = static_cast<int32_t>(CeilDiv(tokens, kBlockTokens));
  KvView kv{nullptr,      DType::kBF16, sequences * max_blocks, 1, kKvHeads,
            kBlockTokens, kHeadDim};
  const int64_t kv_bytes = kv.num_blocks * kv.block_bytes();
  auto store = NewBuffer(kv_bytes);
  kv.data = store->data();

  std::vector<int32_t> tables(sequences * max_blocks), begins, row_sequence,
      positions;
  std::iota(tables.begin(), tables.end(), 0);
  for (int32_t row = 0; row < rows; ++row) {
    if (row % chunk == 0) begins.push_back(row);
    row_sequence.push_back(row / chunk);
    positions.push_back(tokens - chunk + row % chunk);
  }
  begins.push_back(rows);
  BatchView batch;
  batch.num_rows = rows;
  batch.num_sequences = sequences;
  batch.max_sequence_rows = chunk;
  batch.max_kv_tokens = tokens;
  batch.max_blocks = max_blocks;
  batch.positions = positions.data();
  batch.row_sequence = row_sequence.data();
  batch.row_begin = begins.data();
  batch.block_tables = tables.data();
  const AttentionShape shape{kHeads, kKvHeads, kHeadDim, 1e-5f};
  constexpr int64_t kQkvWidth = (kHeads + 2 * kKvHeads) * kHeadDim;
  constexpr int64_t kOutWidth = kHeads * kHeadDim;
  auto qkv = NewBuffer(rows * kQkvWidth * 4),
       out = NewBuffer(rows * kOutWidth * 4);
  const Matrix q{qkv->data(), DType::kF32, rows, kQkvWidth, kQkvWidth};
  const Matrix o{out->data(), DType::kF32, rows, kOutWidth, kOutWidth};
  Device& device = BenchDevice(batch_invariant);
  auto stream = device.NewStream(StreamPriority::kHigh);
  for (auto _ : state) {
    StreamScope scope(*stream);
    device.ops().PagedAttention(*stream, shape, batch, kv, 0, q, o);
  }
  OVERFILL_CHECK_OK(stream->Synchronize());
  state.SetBytesProcessed(state.iterations() * kv_bytes);
}
void AttentionArgs(benchmark::internal::Benchmark* attention) {
  attention->ArgNames({"sequences", "tokens", "rows_each"})
      ->Args({1, 4096, 1})
      ->Args({16, 4096, 1})
      ->Args({1, 4096, 512})
      ->UseRealTime();
}
void BM_Attention(benchmark::State& state) { RunAttention(state, false); }
BENCHMARK(BM_Attention)->Apply(AttentionArgs);
void BM_AttentionInvariant(benchmark::State& state) {
  RunAttention(state, true);
}
BENCHMARK(BM_AttentionInvariant)->Apply(AttentionArgs);

// What one thread can read: the sum of more memory than a cache holds.
void BM_ReadBandwidth(benchmark::State& state) {
  std::vector<uint64_t> memory(kColdBytes / 8, 1);
  for (auto _ : state) {
    uint64_t sum = 0;
    for (const uint64_t word : memory) sum += word;
    benchmark::DoNotOptimize(sum);
  }
  state.SetBytesProcessed(state.iterations() * kColdBytes);
}
BENCHMARK(BM_ReadBandwidth)->ThreadRange(1, 2)->UseRealTime();

}  // namespace
}  // namespace overfill
