// What this process may use of the machine.
#ifndef OVERFILL_KERNELS_CPU_CPU_INFO_H_
#define OVERFILL_KERNELS_CPU_CPU_INFO_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace overfill {

// Instruction sets that the kernels tell apart, each including those before.
// AVX-512 means F, CD, BW, DQ and VL; AMX, its BF16 and INT8, that the kernel
// lets us use tiles.
enum class CpuIsa { kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };
const char* CpuIsaName(CpuIsa isa);

// The best set that the processor has and `cap` allows. `cap` is "auto" (no
// limit), "avx512_bf16" (without tiles), "avx512" (without the BF16
// instructions) or "avx2"; INVALID_ARGUMENT for another. FAILED_PRECONDITION
// where the processor has no AVX2.
//
// The choice holds for the process, since Highway and oneDNN keep theirs there:
// a later call with another cap is FAILED_PRECONDITION. Thread-safe.
absl::StatusOr<CpuIsa> ChooseCpuIsa(absl::string_view cap);

// AVX-512 VNNI, which kAvx512Bf16 and more always have.
bool HasAvx512Vnni();

// The threads that can run at once: the affinity mask, bounded by the CPU quota
// of the process's cgroup (v1 or v2) and of all its ancestors, rounded up. At
// least 1. `root` stands before /proc and /sys, for tests.
int AvailableThreads(const std::string& root = "");

// The bytes that the process may hold: what the machine has available now,
// bounded by the memory limit of the process's cgroup and of its ancestors.
int64_t AvailableMemoryBytes(const std::string& root = "");

// The processor's name from /proc/cpuinfo, or "x86-64".
std::string CpuModelName();

}  // namespace overfill

#endif  // OVERFILL_KERNELS_CPU_CPU_INFO_H_
