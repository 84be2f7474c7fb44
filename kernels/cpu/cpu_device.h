// The CPU as a Device. Work is done when the call that issues it returns.
#ifndef OVERFILL_KERNELS_CPU_CPU_DEVICE_H_
#define OVERFILL_KERNELS_CPU_CPU_DEVICE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "kernels/cpu/cpu_info.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace overfill {

// Counts what a device handed out. Shared with its buffers, which may be
// destroyed after it. Thread-safe.
class MemoryAccount {
 public:
  explicit MemoryAccount(int64_t limit_bytes) : limit_bytes_(limit_bytes) {}
  bool Take(int64_t bytes);
  void Return(int64_t bytes) { used_bytes_.fetch_sub(bytes); }
  int64_t limit_bytes() const { return limit_bytes_; }
  int64_t used_bytes() const { return used_bytes_.load(); }

 private:
  const int64_t limit_bytes_;
  std::atomic<int64_t> used_bytes_{0};
};

// Zeroed memory of the account; RESOURCE_EXHAUSTED above its limit.
absl::StatusOr<std::unique_ptr<Buffer>> AllocateCpuBuffer(
    std::shared_ptr<MemoryAccount> account, int64_t bytes);

// What a scratch buffer of a stream is for: each use has its own, so that one
// op's pieces do not overlap.
enum class ScratchUse {
  kActivations,  // a product's input, converted
  kAttentionTiles,
  kAttentionWork,
  kAttentionPartials,
  kProjectionInput,
  kProjectionOutput,
  kSampling,
  kProduct,  // oneDNN's work space
  kCount,
};

class CpuStream : public Stream {
 public:
  CpuStream(ThreadTeam* team, StreamPriority priority)
      : team_(*team), priority_(priority) {}
  ~CpuStream() override;

  void Begin() override;
  void End() override;
  void Yield() override;
  void StopWhen(const std::atomic<bool>* is_abandoned) override {
    is_abandoned_ = is_abandoned;
  }
  absl::Status Synchronize() override;
  void CopyToDevice(void* device, const void* host, int64_t bytes) override;
  void CopyToHost(void* host, const void* device, int64_t bytes) override;

  // For the ops.
  int num_threads() const { return team_.num_threads(); }
  bool ok() const { return status_.ok(); }
  // Keeps the first failure; later ops do nothing until Synchronize.
  void Fail(absl::Status status);
  // As ThreadTeam's. Outside Begin and End, owns the team for this one loop.
  template <typename Fn>
  void ParallelFor(int64_t num_items, int64_t grain, const Fn& fn) {
    if (!begun_) team_.Acquire(priority_);
    team_.ParallelFor(num_items, grain, fn);
    if (!begun_) team_.Release();
  }
  template <typename Fn>
  void ParallelRanges(int64_t num_items, const Fn& fn) {
    if (!begun_) team_.Acquire(priority_);
    team_.ParallelRanges(num_items, fn);
    if (!begun_) team_.Release();
  }
  // Uninitialized memory for `count` T, 64-byte aligned, valid until the next
  // call with this use. Grows and never shrinks, so that a steady load
  // allocates nothing.
  template <typename T>
  T* Scratch(ScratchUse use, int64_t count) {
    return static_cast<T*>(
        ScratchBytes(use, count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  struct Free {
    void operator()(void* data) const;
  };
  struct ScratchBuffer {
    std::unique_ptr<void, Free> data;
    int64_t bytes = 0;
  };

  void* ScratchBytes(ScratchUse use, int64_t bytes);

  ThreadTeam& team_;
  const StreamPriority priority_;
  bool begun_ = false;
  const std::atomic<bool>* is_abandoned_ = nullptr;
  absl::Status status_;
  std::array<ScratchBuffer, static_cast<size_t>(ScratchUse::kCount)> scratch_;
};

class CpuDevice : public Device {
 public:
  CpuDevice(CpuIsa isa, int num_threads, int64_t memory_bytes,
            bool batch_invariant);

  const DeviceInfo& info() const override { return info_; }
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) override;
  std::unique_ptr<Stream> NewStream(StreamPriority priority) override;
  Ops& ops() override { return *ops_; }
  DType ActivationType(DType /*weights*/) const override { return DType::kF32; }

 private:
  DeviceInfo info_;
  std::shared_ptr<MemoryAccount> account_;
  ThreadTeam team_;
  std::unique_ptr<Ops> ops_;
};

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_CPU_DEVICE_H_
