// Preloaded into overfill-server by metrics_cost.py: turns the recording of
// metrics off and on while the server runs, and counts what is recorded. It
// stands before prometheus-cpp's own functions, which are in a shared library.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "prometheus/counter.h"
#include "prometheus/histogram.h"

namespace {

enum Mode : uint32_t { kRecord = 0, kSkip = 1, kCount = 2 };

// Shared with metrics_cost.py, which knows its layout.
struct Page {
  std::atomic<uint32_t> mode;
  std::atomic<uint64_t> num_observed;
  std::atomic<uint64_t> num_incremented;
};

Page* OpenPage() {
  static Page alone;
  const char* const path = std::getenv("OVERFILL_METRICS_SWITCH");
  if (path == nullptr) return &alone;
  const int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) std::abort();
  void* const memory =
      mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<Page*>(memory);
}

Page& page() {
  static Page* const shared = OpenPage();
  return *shared;
}

constexpr char kObserve[] = "_ZN10prometheus9Histogram7ObserveEd";
constexpr char kIncrement[] = "_ZN10prometheus7Counter9IncrementEv";
constexpr char kIncrementBy[] = "_ZN10prometheus7Counter9IncrementEd";

// The library's function of that name.
template <typename Function>
Function* Real(const char* name) {
  void* const found = dlsym(RTLD_NEXT, name);
  if (found == nullptr) std::abort();
  return reinterpret_cast<Function*>(found);
}

void RealObserve(void* histogram, double value) {
  static auto* const real = Real<void(void*, double)>(kObserve);
  real(histogram, value);
}

void RealIncrement(void* counter) {
  static auto* const real = Real<void(void*)>(kIncrement);
  real(counter);
}

// Whether to call the library.
bool Passes(std::atomic<uint64_t>& count) {
  const uint32_t mode = page().mode.load(std::memory_order_relaxed);
  if (mode == kCount) count.fetch_add(1, std::memory_order_relaxed);
  return mode != kSkip;
}

double SecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
      .count();
}

}  // namespace

extern "C" {

// What the linker finds in place of the library's.
void OverfillObserve(void* histogram, double value) __asm__(
    "_ZN10prometheus9Histogram7ObserveEd");
void OverfillIncrement(void* counter) __asm__(
    "_ZN10prometheus7Counter9IncrementEv");
void OverfillIncrementBy(void* counter, double value) __asm__(
    "_ZN10prometheus7Counter9IncrementEd");

void OverfillObserve(void* histogram, double value) {
  if (Passes(page().num_observed)) RealObserve(histogram, value);
}

void OverfillIncrement(void* counter) {
  if (Passes(page().num_incremented)) RealIncrement(counter);
}

void OverfillIncrementBy(void* counter, double value) {
  static auto* const real = Real<void(void*, double)>(kIncrementBy);
  if (Passes(page().num_incremented)) real(counter, value);
}

// Seconds of one observation, in a histogram of so many buckets, and of one
// increment; of `count` each.
double overfill_observe_seconds(int32_t num_buckets, int64_t count) {
  std::vector<double> bounds;
  for (int32_t i = 0; i < num_buckets; ++i) bounds.push_back(i);
  prometheus::Histogram histogram(bounds);
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < count; ++i) {
    RealObserve(&histogram, static_cast<double>(i % num_buckets));
  }
  return SecondsSince(begin) / static_cast<double>(count);
}

double overfill_increment_seconds(int64_t count) {
  prometheus::Counter counter;
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < count; ++i) RealIncrement(&counter);
  return SecondsSince(begin) / static_cast<double>(count);
}

}  // extern "C"
