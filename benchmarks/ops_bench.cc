// The ops that a step's time is made of, at the shapes of a pruned 1B model,
// on the CPU. Rates are bytes of weights or KV read, so that they compare with
// the machine's read bandwidth, which is measured beside them. Google
// Benchmark's flags apply; OVERFILL_CPU_ISA caps the instruction set.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
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

Device& BenchDevice() {
  static Device* const device = [] {
    DeviceOptions options;
    if (const char* isa = std::getenv("OVERFILL_CPU_ISA")) {
      options.cpu_isa = isa;
    }
    auto made = MakeDevice("cpu", options);
    OVERFILL_CHECK_OK(made.status());
    return made->release();
  }();
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

std::unique_ptr<LinearWeight> NewWeight(int64_t out, int64_t in) {
  const std::vector<float> values = Noise(out * in);
  const HostTensor tensor{reinterpret_cast<const std::byte*>(values.data()),
                          DType::kF32,
                          {out, in}};
  auto weight = BenchDevice().ops().MakeLinear({&tensor, 1}, {}, DType::kBF16);
  OVERFILL_CHECK_OK(weight.status());
  return *std::move(weight);
}

// One bf16 product of range(0) rows, range(1) -> range(2).
void BM_Linear(benchmark::State& state) {
  const int64_t rows = state.range(0), in = state.range(1),
                out = state.range(2);
  std::vector<std::unique_ptr<LinearWeight>> weights;
  for (int64_t bytes = 0; bytes < kColdBytes; bytes += 2 * in * out) {
    weights.push_back(NewWeight(out, in));
  }
  auto x = NewBuffer(rows * in * 4), y = NewBuffer(rows * out * 4);
  const Matrix x_view{x->data(), DType::kF32, rows, in, in};
  const Matrix y_view{y->data(), DType::kF32, rows, out, out};
  auto stream = BenchDevice().NewStream(StreamPriority::kHigh);
  size_t next = 0;
  for (auto _ : state) {
    StreamScope scope(*stream);
    BenchDevice().ops().Linear(*stream, x_view, *weights[next], y_view, false);
    next = (next + 1) % weights.size();
  }
  OVERFILL_CHECK_OK(stream->Synchronize());
  state.SetBytesProcessed(state.iterations() * weights[0]->bytes());
  state.counters["FLOPS"] = benchmark::Counter(
      2.0 * static_cast<double>(rows * in * out * state.iterations()),
      benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Linear)
    ->ArgNames({"rows", "in", "out"})
    ->ArgsProduct({{1, 4, 16, 64, 512}, {kHidden}, {2 * kIntermediate}})
    ->ArgsProduct({{1, 16, 512}, {kIntermediate}, {kHidden}})
    ->UseRealTime();

// Attention of range(0) decode rows over range(1) tokens of KV each.
void BM_DecodeAttention(benchmark::State& state) {
  const auto rows = static_cast<int32_t>(state.range(0));
  const auto tokens = static_cast<int32_t>(state.range(1));
  const auto max_blocks = static_cast<int32_t>(CeilDiv(tokens, kBlockTokens));
  KvView kv{nullptr,  DType::kBF16, rows * max_blocks, 1,
            kKvHeads, kBlockTokens, kHeadDim};
  const int64_t kv_bytes = kv.num_blocks * kv.block_bytes();
  auto store = NewBuffer(kv_bytes);
  kv.data = store->data();

  std::vector<int32_t> tables(rows * max_blocks), begins(rows + 1);
  std::iota(tables.begin(), tables.end(), 0);
  std::iota(begins.begin(), begins.end(), 0);
  const std::vector<int32_t> positions(rows, tokens - 1);
  const BatchView batch{rows,
                        rows,
                        1,
                        tokens,
                        max_blocks,
                        begins.data(),
                        positions.data(),
                        begins.data(),
                        begins.data(),
                        tables.data()};
  const AttentionShape shape{kHeads, kKvHeads, kHeadDim, 1e-5f};
  constexpr int64_t kQkvWidth = (kHeads + 2 * kKvHeads) * kHeadDim;
  constexpr int64_t kOutWidth = kHeads * kHeadDim;
  auto qkv = NewBuffer(rows * kQkvWidth * 4),
       out = NewBuffer(rows * kOutWidth * 4);
  const Matrix q{qkv->data(), DType::kF32, rows, kQkvWidth, kQkvWidth};
  const Matrix o{out->data(), DType::kF32, rows, kOutWidth, kOutWidth};
  auto stream = BenchDevice().NewStream(StreamPriority::kHigh);
  for (auto _ : state) {
    StreamScope scope(*stream);
    BenchDevice().ops().PagedAttention(*stream, shape, batch, kv, 0, q, o);
  }
  OVERFILL_CHECK_OK(stream->Synchronize());
  state.SetBytesProcessed(state.iterations() * kv_bytes);
}
BENCHMARK(BM_DecodeAttention)
    ->ArgNames({"rows", "tokens"})
    ->Args({1, 4096})
    ->Args({16, 4096})
    ->UseRealTime();

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
