#include "server/process_metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "prometheus/client_metric.h"
#include "prometheus/metric_family.h"
#include "prometheus/metric_type.h"

namespace overfill {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;

// The fields of /proc/self/stat that follow the program's name, by proc(5)'s
// numbers, which begin with 1; the name is the second.
class ProcStat {
 public:
  static std::optional<ProcStat> Read() {
    std::ifstream file("/proc/self/stat");
    std::string line;
    if (!std::getline(file, line)) return std::nullopt;
    // A name may hold spaces and brackets.
    const size_t name_end = line.rfind(')');
    if (name_end == std::string::npos) return std::nullopt;
    ProcStat stat;
    std::istringstream rest(line.substr(name_end + 1));
    for (std::string field; rest >> field;) stat.fields_.push_back(field);
    return stat;
  }
  double Number(size_t number) const {
    constexpr size_t kFirst = 3;
    if (number - kFirst >= fields_.size()) return 0;
    return std::strtod(fields_[number - kFirst].c_str(), nullptr);
  }

 private:
  std::vector<std::string> fields_;
};

constexpr size_t kNumThreads = 20;
constexpr size_t kStartTicks = 22;  // since the machine's start
constexpr size_t kVirtualBytes = 23;
constexpr size_t kResidentPages = 24;

std::optional<double> BootTimeSeconds() {
  std::ifstream file("/proc/stat");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("btime ", 0) == 0) {
      return std::strtod(line.c_str() + 6, nullptr);
    }
  }
  return std::nullopt;
}

std::optional<double> CountOpenFiles() {
  DIR* const folder = opendir("/proc/self/fd");
  if (folder == nullptr) return std::nullopt;
  int count = -3;  // ".", ".." and the folder's own
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) +
           static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

class ProcessMetrics : public prometheus::Collectable {
 public:
  // Read once: what the kernel says of its own start moves with its clock, and
  // a start that moves is a restart to whoever watches.
  ProcessMetrics() : boot_seconds_(BootTimeSeconds()) {}

  std::vector<MetricFamily> Collect() const override {
    std::vector<MetricFamily> families;
    const auto gauge = [&families](const char* name, const char* help,
                                   double value) {
      ClientMetric metric;
      metric.gauge.value = value;
      families.push_back(
          {name, help, prometheus::MetricType::Gauge, {std::move(metric)}});
    };
    ClientMetric cpu;
    cpu.counter.value = CpuSeconds();
    families.push_back({"process_cpu_seconds_total",
                        "User and system time.",
                        prometheus::MetricType::Counter,
                        {std::move(cpu)}});
    if (const auto stat = ProcStat::Read()) {
      if (boot_seconds_) {
        gauge("process_start_time_seconds", "Start, since the epoch.",
              *boot_seconds_ + stat->Number(kStartTicks) /
                                   static_cast<double>(sysconf(_SC_CLK_TCK)));
      }
      gauge("process_resident_memory_bytes", "Memory that is in use.",
            stat->Number(kResidentPages) *
                static_cast<double>(sysconf(_SC_PAGESIZE)));
      gauge("process_virtual_memory_bytes", "Memory that is mapped.",
            stat->Number(kVirtualBytes));
      gauge("process_threads", "Threads.", stat->Number(kNumThreads));
    }
    if (const auto open = CountOpenFiles()) {
      gauge("process_open_fds", "Open file descriptors.", *open);
    }
    rlimit limit = {};
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
      gauge("process_max_fds", "Most that may be open.",
            static_cast<double>(limit.rlim_cur));
    }
    return families;
  }

 private:
  const std::optional<double> boot_seconds_;
};

}  // namespace

std::shared_ptr<prometheus::Collectable> MakeProcessMetrics() {
  return std::make_shared<ProcessMetrics>();
}

}  // namespace overfill
