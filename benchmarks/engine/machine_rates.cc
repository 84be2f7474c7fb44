#include "benchmarks/engine/machine_rates.h"

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include "base/check.h"

namespace overfill {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kLine = 64;
constexpr int64_t kHugePage = 2 << 20;

// Adds up the words of [data, data + bytes); `bytes` is a multiple of 4 KiB.
using ReadKernel = uint64_t (*)(const char* data, int64_t bytes);

// kStreams parts of the memory at once; prefetching kAhead bytes, if not 0.
template <int kStreams, int kAhead>
__attribute__((target("avx2"))) uint64_t ReadAvx2(const char* data,
                                                  int64_t bytes) {
  const int64_t part = bytes / kStreams;
  __m256i sums[kStreams][2] = {};
  for (int64_t i = 0; i < part; i += kLine) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const char* at = data + s * part + i;
      if (kAhead > 0) _mm_prefetch(at + kAhead, _MM_HINT_T0);
      for (int half = 0; half < 2; ++half) {
        sums[s][half] = _mm256_add_epi64(
            sums[s][half], _mm256_load_si256(reinterpret_cast<const __m256i*>(
                               at + half * 32)));
      }
    }
  }
  __m256i sum = _mm256_setzero_si256();
  for (const auto& stream : sums) {
    sum = _mm256_add_epi64(sum, _mm256_add_epi64(stream[0], stream[1]));
  }
  return static_cast<uint64_t>(_mm256_extract_epi64(sum, 0)) +
         static_cast<uint64_t>(_mm256_extract_epi64(sum, 3));
}

template <int kStreams, int kAhead>
__attribute__((target("avx512f"))) uint64_t ReadAvx512(const char* data,
                                                       int64_t bytes) {
  const int64_t part = bytes / kStreams;
  __m512i sums[kStreams];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < part; i += kLine) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const char* at = data + s * part + i;
      if (kAhead > 0) _mm_prefetch(at + kAhead, _MM_HINT_T0);
      sums[s] = _mm512_add_epi64(sums[s], _mm512_load_si512(at));
    }
  }
  alignas(64) uint64_t words[8];
  uint64_t total = 0;
  for (const __m512i& sum : sums) {
    _mm512_store_si512(words, sum);
    total += words[0] + words[7];
  }
  return total;
}

struct NamedKernel {
  const char* name;
  ReadKernel read;
  bool needs_avx512;
};

constexpr NamedKernel kKernels[] = {
    {"avx2", ReadAvx2<1, 0>, false},
    {"avx2, 4 streams", ReadAvx2<4, 0>, false},
    {"avx2, prefetched", ReadAvx2<1, 2048>, false},
    {"avx512", ReadAvx512<1, 0>, true},
    {"avx512, 2 streams", ReadAvx512<2, 0>, true},
    {"avx512, 4 streams", ReadAvx512<4, 0>, true},
    {"avx512, 8 streams", ReadAvx512<8, 0>, true},
    {"avx512, prefetched", ReadAvx512<1, 2048>, true},
    {"avx512, prefetched far", ReadAvx512<1, 8192>, true},
    {"avx512, 4 streams, prefetched", ReadAvx512<4, 2048>, true},
};

struct FreeMemory {
  void operator()(void* data) const { std::free(data); }
};

// Filled with what is not zero, so that each page has memory of its own.
char* Memory(int64_t bytes) {
  static std::unique_ptr<void, FreeMemory> memory;
  static int64_t size = 0;
  if (size < bytes) {
    memory.reset(std::aligned_alloc(kHugePage, bytes));
    OVERFILL_CHECK(memory != nullptr) << bytes << " bytes";
    // As the weights are.
    madvise(memory.get(), bytes, MADV_HUGEPAGE);
    std::memset(memory.get(), 1, bytes);
    size = bytes;
  }
  return static_cast<char*>(memory.get());
}

// Seconds that all threads together take for the whole memory.
double TimeRead(ReadKernel read, int num_threads, const char* memory,
                int64_t bytes) {
  const int64_t part = bytes / num_threads / kHugePage * kHugePage;
  std::atomic<int> num_ready{0};
  std::atomic<bool> go{false};
  std::atomic<uint64_t> sum{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&, i] {
      num_ready.fetch_add(1);
      while (!go.load()) _mm_pause();
      sum.fetch_add(read(memory + i * part, part));
    });
  }
  while (num_ready.load() < num_threads) std::this_thread::yield();
  const auto begin = Clock::now();
  go.store(true);
  for (std::thread& thread : threads) thread.join();
  const std::chrono::duration<double> seconds = Clock::now() - begin;
  OVERFILL_CHECK(sum.load() != 0);
  return seconds.count() * static_cast<double>(bytes) /
         static_cast<double>(part * num_threads);
}

}  // namespace

std::vector<ReadRate> MeasureReadRates(int num_threads, int64_t bytes) {
  bytes = std::max(bytes / kHugePage, int64_t{num_threads}) * kHugePage;
  const char* memory = Memory(bytes);
  const bool has_avx512 = __builtin_cpu_supports("avx512f") != 0;
  std::vector<ReadRate> rates;
  for (const NamedKernel& kernel : kKernels) {
    if (kernel.needs_avx512 && !has_avx512) continue;
    const double seconds = TimeRead(kernel.read, num_threads, memory, bytes);
    rates.push_back({kernel.name, static_cast<double>(bytes) / seconds});
  }
  return rates;
}

}  // namespace overfill
