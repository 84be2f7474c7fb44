// A device: memory, streams of work, and the ops that run on it. kernels/cpu
// and kernels/cuda implement this one interface; nothing above this folder
// knows which one it has.
#ifndef OVERFILL_KERNELS_DEVICE_H_
#define OVERFILL_KERNELS_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/tensor.h"

namespace overfill {

class Ops;

// Device memory with one owner, 64-byte aligned or better, zeroed when
// allocated. Destroying it while work that uses it is in flight is a bug.
class Buffer {
 public:
  virtual ~Buffer() = default;
  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 protected:
  Buffer(void* data, int64_t bytes) : data_(data), bytes_(bytes) {}

 private:
  void* const data_;
  const int64_t bytes_;
};

// Which of two streams with work on one device goes first.
enum class StreamPriority { kLow, kHigh };

// A queue of work on a device: what is issued on one stream runs in order.
// One thread at a time may use a stream. On a CPU the work is done when the
// call returns.
//
// Ops do not return errors: the first failure on a stream sticks, later work
// on it may be skipped, and Synchronize reports it. That keeps a step's code a
// list of what it computes.
class Stream {
 public:
  virtual ~Stream() = default;

  // A step's work is issued between Begin and End. On a CPU, Begin waits for
  // the device's thread team; a kHigh stream gets it before a kLow one.
  virtual void Begin() = 0;
  virtual void End() = 0;
  // Called between two layers of a step: a kLow stream lets a waiting kHigh
  // stream run first, and one whose work nobody waits for any more stops.
  virtual void Yield() = 0;
  // Once this is true, work behind the next Yield may be skipped, and
  // Synchronize then says CANCELLED. Outlives the stream's work; null: never.
  virtual void StopWhen(const std::atomic<bool>* is_abandoned) = 0;

  // Waits until all issued work is done. Returns the first failure since the
  // last call, naming the call that failed, and clears it.
  virtual absl::Status Synchronize() = 0;

  // Copies between host and device memory, in stream order. The host memory
  // stays untouched and alive until the next Synchronize.
  virtual void CopyToDevice(void* device, const void* host, int64_t bytes) = 0;
  virtual void CopyToHost(void* host, const void* device, int64_t bytes) = 0;
};

// Begin and End as a scope.
class StreamScope {
 public:
  explicit StreamScope(Stream& stream) : stream_(stream) { stream_.Begin(); }
  ~StreamScope() { stream_.End(); }
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  Stream& stream_;
};

struct DeviceInfo {
  std::string name;          // "cpu", "cuda:0"
  std::string description;   // "AMD EPYC, 2 threads, AVX-512 BF16"
  int64_t memory_bytes = 0;  // what may be used: cgroup limit, free memory
  int num_threads = 0;       // of the thread team; 0 where there is none
};

// Thread-safe but for the ops, which belong to the stream that they are given.
class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;
  // RESOURCE_EXHAUSTED when there is not that much memory.
  virtual absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) = 0;
  virtual std::unique_ptr<Stream> NewStream(StreamPriority priority) = 0;
  virtual Ops& ops() = 0;
  // The type of activations between ops, for weights of `weights`.
  virtual DType ActivationType(DType weights) const = 0;
};

struct DeviceOptions {
  // CPU: threads of the team; 0 follows the cgroup's cpu.max and the affinity
  // mask.
  int num_threads = 0;
  // CPU: highest instruction set to use: "auto", "avx512_bf16", which leaves
  // AMX out, "avx512", which leaves the BF16 instructions out, or "avx2". The
  // first device's choice holds for the process.
  std::string cpu_isa = "auto";
  // A row's results depend, to the last bit, on its own sequence alone: not on
  // the rows beside it, on the chunks in which its prompt came or on the number
  // of threads. Every sum over a product's depth or over KV then has one order.
  bool batch_invariant = false;
};

// `spec` is "cpu", "cuda" or "cuda:N". INVALID_ARGUMENT for another spec,
// UNAVAILABLE where the backend is not built in or has no device.
absl::StatusOr<std::unique_ptr<Device>> MakeDevice(
    absl::string_view spec, const DeviceOptions& options);

}  // namespace overfill

#endif  // OVERFILL_KERNELS_DEVICE_H_
