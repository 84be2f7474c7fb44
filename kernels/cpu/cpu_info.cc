#include "kernels/cpu/cpu_info.h"

#include <cpuid.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/mutex.h"
#include "dnnl.hpp"
#include "hwy/targets.h"

namespace overfill {
namespace {

std::optional<std::string> ReadSmallFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The process's folders in the cgroup tree of `controller` (v1) or of v2, from
// its own up to the root. In a container the path that /proc states may not
// exist below the mount; its existing ancestors still bind.
std::vector<std::string> CgroupFolders(const std::string& root,
                                       absl::string_view controller) {
  const auto text = ReadSmallFile(root + "/proc/self/cgroup");
  if (!text) return {};
  std::vector<std::string> folders;
  for (absl::string_view line :
       absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> fields =
        absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    std::string mount = root + "/sys/fs/cgroup";
    if (fields[0] != "0" || !fields[1].empty()) {  // v1
      const std::vector<absl::string_view> names =
          absl::StrSplit(fields[1], ',');
      if (std::find(names.begin(), names.end(), controller) == names.end()) {
        continue;
      }
      absl::StrAppend(&mount, "/", fields[1]);
      // Where the joint mount has a link per controller only.
      if (!std::ifstream(mount + "/cgroup.procs")) {
        mount = absl::StrCat(root, "/sys/fs/cgroup/", controller);
      }
    }
    std::string path(absl::StripSuffix(fields[2], "/"));
    for (;;) {
      folders.push_back(mount + path);
      const size_t slash = path.rfind('/');
      if (slash == std::string::npos) break;
      path.resize(slash);
    }
  }
  return folders;
}

std::optional<int64_t> ReadInteger(const std::string& path) {
  const auto text = ReadSmallFile(path);
  int64_t value;
  if (!text || !absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &value)) {
    return std::nullopt;
  }
  return value;
}

struct Quota {
  int64_t quota_us = -1;  // not positive: none
  int64_t period_us = 0;
};

Quota ReadQuota(const std::string& folder) {
  Quota result;
  if (const auto text = ReadSmallFile(folder + "/cpu.max")) {
    const std::vector<absl::string_view> fields = absl::StrSplit(
        absl::StripAsciiWhitespace(*text), absl::ByAnyChar(" \t"));
    if (fields.size() == 2 && absl::SimpleAtoi(fields[0], &result.quota_us) &&
        absl::SimpleAtoi(fields[1], &result.period_us)) {
      return result;
    }
    return {};
  }
  result.quota_us = ReadInteger(folder + "/cpu.cfs_quota_us").value_or(-1);
  result.period_us = ReadInteger(folder + "/cpu.cfs_period_us").value_or(0);
  return result;
}

int64_t MemAvailableBytes(const std::string& root) {
  const auto text = ReadSmallFile(root + "/proc/meminfo");
  if (!text) return std::numeric_limits<int64_t>::max();
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    if (!absl::ConsumePrefix(&line, "MemAvailable:")) continue;
    line = absl::StripSuffix(absl::StripAsciiWhitespace(line), " kB");
    int64_t kib;
    if (absl::SimpleAtoi(absl::StripAsciiWhitespace(line), &kib) && kib >= 0) {
      return kib * 1024;
    }
  }
  return std::numeric_limits<int64_t>::max();
}

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2") &&
         (hwy::SupportedTargets() & HWY_AVX2) != 0;
}

bool HasAvx512() { return (hwy::SupportedTargets() & HWY_AVX3) != 0; }

// Never higher: on processors with AMX, oneDNN 2.6 has bf16 products for which
// it reads tiles that it did not configure, an illegal instruction that ends
// the program. Which ones depends on the shape, so on a prompt's length.
dnnl::cpu_isa OneDnnIsa(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx2:
      return dnnl::cpu_isa::avx2;
    case CpuIsa::kAvx512:
      return dnnl::cpu_isa::avx512_core;
    case CpuIsa::kAvx512Bf16:
    case CpuIsa::kAmxBf16:
      return dnnl::cpu_isa::avx512_core_bf16;
  }
  return dnnl::cpu_isa::avx2;
}

bool HasAvx512Bf16() {
  return HasAvx512Vnni() && __builtin_cpu_supports("avx512bf16");
}

// Linux gives the state of tiles to a process that asks for it, once; where it
// refuses, the first tile instruction would end the program.
bool HasAmx() {
  unsigned a, b, c, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kAll = kBf16 | kTile | kInt8;
  if ((d & kAll) != kAll) return false;
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return HasAvx512Bf16() &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// In the order of CpuIsa; auto has no name of its own.
constexpr absl::string_view kCaps[] = {"avx2", "avx512", "avx512_bf16", "auto"};

CpuIsa BestIsa(CpuIsa cap) {
  if (cap >= CpuIsa::kAmxBf16 && HasAmx()) return CpuIsa::kAmxBf16;
  if (cap >= CpuIsa::kAvx512Bf16 && HasAvx512Bf16()) {
    return CpuIsa::kAvx512Bf16;
  }
  if (cap >= CpuIsa::kAvx512 && HasAvx512()) return CpuIsa::kAvx512;
  return CpuIsa::kAvx2;
}

}  // namespace

const char* CpuIsaName(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx2:
      return "AVX2";
    case CpuIsa::kAvx512:
      return "AVX-512";
    case CpuIsa::kAvx512Bf16:
      return "AVX-512 BF16";
    case CpuIsa::kAmxBf16:
      return "AMX BF16";
  }
  return "";
}

bool HasAvx512Vnni() {
  return HasAvx512() && __builtin_cpu_supports("avx512vnni");
}

absl::StatusOr<CpuIsa> ChooseCpuIsa(absl::string_view cap) {
  const auto* found = std::find(std::begin(kCaps), std::end(kCaps), cap);
  if (found == std::end(kCaps)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cpu_isa \"", cap, "\" is none of auto, avx2, avx512, avx512_bf16"));
  }
  static Mutex mutex;
  static std::string chosen_cap;  // empty until the first call
  static CpuIsa chosen = CpuIsa::kAvx2;
  MutexLock lock(&mutex);
  if (!chosen_cap.empty()) {
    if (cap == chosen_cap) return chosen;
    return absl::FailedPreconditionError(
        absl::StrCat("cpu_isa is ", chosen_cap,
                     " in this process already; it cannot become ", cap));
  }
  if (!HasAvx2()) {
    return absl::FailedPreconditionError(
        "this processor has no AVX2 and FMA, which the CPU backend needs");
  }
  chosen = BestIsa(static_cast<CpuIsa>(found - std::begin(kCaps)));
  chosen_cap = std::string(cap);
  if (chosen == CpuIsa::kAvx2) hwy::DisableTargets(HWY_AVX3 | HWY_AVX3_DL);
  dnnl::set_max_cpu_isa(OneDnnIsa(chosen));
  return chosen;
}

int AvailableThreads(const std::string& root) {
  int num_threads = static_cast<int>(std::thread::hardware_concurrency());
  // Larger than cpu_set_t's 1024 processors, in case the machine is.
  constexpr int kMaxProcessors = 8192;
  cpu_set_t* mask = CPU_ALLOC(kMaxProcessors);
  const size_t mask_bytes = CPU_ALLOC_SIZE(kMaxProcessors);
  if (mask != nullptr && sched_getaffinity(0, mask_bytes, mask) == 0) {
    num_threads = CPU_COUNT_S(mask_bytes, mask);
  }
  CPU_FREE(mask);
  for (const std::string& folder : CgroupFolders(root, "cpu")) {
    const Quota quota = ReadQuota(folder);
    if (quota.quota_us <= 0 || quota.period_us <= 0) continue;
    const int64_t threads = (quota.quota_us - 1) / quota.period_us + 1;
    num_threads = static_cast<int>(std::min<int64_t>(num_threads, threads));
  }
  return std::max(num_threads, 1);
}

int64_t AvailableMemoryBytes(const std::string& root) {
  int64_t bytes = MemAvailableBytes(root);
  for (const std::string& folder : CgroupFolders(root, "memory")) {
    for (const char* file : {"/memory.max", "/memory.limit_in_bytes"}) {
      const auto limit = ReadInteger(folder + file);
      if (limit && *limit > 0) bytes = std::min(bytes, *limit);
    }
  }
  return bytes;
}

std::string CpuModelName() {
  if (const auto text = ReadSmallFile("/proc/cpuinfo")) {
    for (absl::string_view line : absl::StrSplit(*text, '\n')) {
      if (!absl::ConsumePrefix(&line, "model name")) continue;
      const size_t colon = line.find(':');
      if (colon == absl::string_view::npos) break;
      return std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
    }
  }
  return "x86-64";
}

}  // namespace overfill
