#include "kernels/cpu/cpu_device.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/checked_math.h"
#include "base/status_macros.h"
#include "kernels/backends.h"
#include "kernels/cpu/cpu_ops.h"

namespace overfill {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kHugePageBytes = int64_t{2} << 20;

// Large buffers are mapped: the kernel zeroes their pages when they are first
// touched, and huge pages keep a walk through weights out of the page tables.
class MappedBuffer : public Buffer {
 public:
  MappedBuffer(std::shared_ptr<MemoryAccount> account, void* data,
               int64_t bytes, int64_t mapped_bytes)
      : Buffer(data, bytes),
        account_(std::move(account)),
        mapped_bytes_(mapped_bytes) {}
  ~MappedBuffer() override {
    munmap(data(), mapped_bytes_);
    account_->Return(bytes());
  }

 private:
  const std::shared_ptr<MemoryAccount> account_;
  const int64_t mapped_bytes_;
};

class HeapBuffer : public Buffer {
 public:
  HeapBuffer(std::shared_ptr<MemoryAccount> account, void* data, int64_t bytes)
      : Buffer(data, bytes), account_(std::move(account)) {}
  ~HeapBuffer() override {
    std::free(data());
    account_->Return(bytes());
  }

 private:
  const std::shared_ptr<MemoryAccount> account_;
};

}  // namespace

bool MemoryAccount::Take(int64_t bytes) {
  int64_t used = used_bytes_.load();
  do {
    if (bytes > limit_bytes_ - used) return false;
  } while (!used_bytes_.compare_exchange_weak(used, used + bytes));
  return true;
}

absl::StatusOr<std::unique_ptr<Buffer>> AllocateCpuBuffer(
    std::shared_ptr<MemoryAccount> account, int64_t bytes) {
  OVERFILL_CHECK_GE(bytes, 0);
  const auto exhausted = [&] {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for ", bytes, " bytes on the CPU: ", account->used_bytes(),
        " of ", account->limit_bytes(), " bytes are in use"));
  };
  if (!account->Take(bytes)) return exhausted();
  if (bytes < kHugePageBytes) {
    const int64_t padded = RoundUp(bytes == 0 ? 1 : bytes, kAlignment);
    void* data = std::aligned_alloc(kAlignment, padded);
    if (data == nullptr) {
      account->Return(bytes);
      return exhausted();
    }
    std::memset(data, 0, padded);
    return std::make_unique<HeapBuffer>(std::move(account), data, bytes);
  }
  const int64_t mapped_bytes = RoundUp(bytes, kHugePageBytes);
  void* data = mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    account->Return(bytes);
    return exhausted();
  }
  madvise(data, mapped_bytes, MADV_HUGEPAGE);
  return std::make_unique<MappedBuffer>(std::move(account), data, bytes,
                                        mapped_bytes);
}

void CpuStream::Free::operator()(void* data) const { std::free(data); }

CpuStream::~CpuStream() { OVERFILL_CHECK(!begun_) << "stream not ended"; }

void CpuStream::Begin() {
  OVERFILL_CHECK(!begun_) << "stream already begun";
  team_.Acquire(priority_);
  begun_ = true;
}

void CpuStream::End() {
  OVERFILL_CHECK(begun_) << "stream not begun";
  begun_ = false;
  team_.Release();
}

void CpuStream::Yield() {
  if (begun_ && priority_ == StreamPriority::kLow) team_.Yield();
  if (is_abandoned_ != nullptr && is_abandoned_->load()) {
    Fail(absl::CancelledError("nobody waits for this step any more"));
  }
}

absl::Status CpuStream::Synchronize() {
  return std::exchange(status_, absl::OkStatus());
}

void CpuStream::CopyToDevice(void* device, const void* host, int64_t bytes) {
  if (ok() && bytes > 0) std::memcpy(device, host, bytes);
}

void CpuStream::CopyToHost(void* host, const void* device, int64_t bytes) {
  if (ok() && bytes > 0) std::memcpy(host, device, bytes);
}

void CpuStream::Fail(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

void* CpuStream::ScratchBytes(ScratchUse use, int64_t bytes) {
  ScratchBuffer& buffer = scratch_[static_cast<size_t>(use)];
  if (bytes > buffer.bytes) {
    // By half more than needed: a growing batch settles after a few steps.
    const int64_t wanted = RoundUp(bytes + bytes / 2, kAlignment);
    buffer.data.reset(std::aligned_alloc(kAlignment, wanted));
    OVERFILL_CHECK(buffer.data != nullptr)
        << "no memory for " << wanted << " bytes of scratch";
    buffer.bytes = wanted;
  }
  return buffer.data.get();
}

CpuDevice::CpuDevice(CpuIsa isa, int num_threads, int64_t memory_bytes,
                     bool batch_invariant)
    : account_(std::make_shared<MemoryAccount>(memory_bytes)),
      team_(num_threads),
      ops_(std::make_unique<CpuOps>(isa, batch_invariant, account_)) {
  info_.name = "cpu";
  info_.description =
      absl::StrCat(CpuModelName(), ", ", num_threads,
                   num_threads == 1 ? " thread, " : " threads, ",
                   CpuIsaName(isa), batch_invariant ? ", batch invariant" : "");
  info_.memory_bytes = memory_bytes;
  info_.num_threads = num_threads;
}

absl::StatusOr<std::unique_ptr<Buffer>> CpuDevice::Allocate(int64_t bytes) {
  return AllocateCpuBuffer(account_, bytes);
}

std::unique_ptr<Stream> CpuDevice::NewStream(StreamPriority priority) {
  return std::make_unique<CpuStream>(&team_, priority);
}

absl::StatusOr<std::unique_ptr<Device>> MakeCpuDevice(
    const DeviceOptions& options) {
  ASSIGN_OR_RETURN(const CpuIsa isa, ChooseCpuIsa(options.cpu_isa));
  constexpr int kMaxThreads = 4096;
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_threads ", options.num_threads, " is not in 0..", kMaxThreads));
  }
  const int num_threads =
      options.num_threads > 0 ? options.num_threads : AvailableThreads();
  return std::make_unique<CpuDevice>(isa, num_threads, AvailableMemoryBytes(),
                                     options.batch_invariant);
}

}  // namespace overfill
