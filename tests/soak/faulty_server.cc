// overfill-server whose transfers of KV fail, at rates that a soak test sets.
// It takes every flag of overfill-server, and
//
//   --fault_rate=F  the share of transfers with a fault, 0 to 1; 0.1
//   --fault_seed=N  decides which, and how; 1
//
// and says what it did in the log when it stops.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/log.h"
#include "server/server_main.h"
#include "tests/support/faulty_transport.h"

namespace overfill {
namespace {

constexpr int kExitBadFlags = 2;

struct FaultFlags {
  double rate = 0.1;
  uint64_t seed = 1;
};

// Of those that have a fault. The ones that end by the lease alone are rarer:
// each holds its blocks as long.
FaultRates RatesOf(double rate) {
  return {.delay = rate * 0.25,
          .drop = rate * 0.05,
          .duplicate = rate * 0.15,
          .reorder = rate * 0.15,
          .truncate = rate * 0.1,
          .flip = rate * 0.1,
          .stall = rate * 0.05,
          .fail = rate * 0.15,
          .late_fence = 0.25};
}

class ReportingTransport final : public FaultyTransport {
 public:
  using FaultyTransport::FaultyTransport;
  ~ReportingTransport() override {
    const FaultCounts n = counts();
    LogInfo(absl::StrCat("faults: of ", n.transfers, " transfers ", n.delayed,
                         " delayed, ", n.dropped, " dropped, ", n.duplicated,
                         " duplicated, ", n.reordered, " reordered, ",
                         n.truncated, " truncated, ", n.flipped, " flipped, ",
                         n.stalled, " stalled, ", n.failed, " failed; ",
                         n.late_fences, " fences late"));
  }
};

// Takes our flags out of `args`; false for a bad value.
bool TakeFlags(std::vector<char*>& args, FaultFlags& flags) {
  bool is_valid = true;
  std::erase_if(args, [&](const char* arg) {
    absl::string_view text = arg;
    if (absl::ConsumePrefix(&text, "--fault_rate=")) {
      is_valid &= absl::SimpleAtod(text, &flags.rate) && flags.rate >= 0 &&
                  flags.rate <= 1;
      return true;
    }
    if (absl::ConsumePrefix(&text, "--fault_seed=")) {
      is_valid &= absl::SimpleAtoi(text, &flags.seed);
      return true;
    }
    return false;
  });
  return is_valid;
}

int Main(std::vector<char*> args) {
  FaultFlags flags;
  if (!TakeFlags(args, flags)) {
    std::fprintf(stderr,
                 "overfill-server-faulty: --fault_rate must be in [0, 1], "
                 "--fault_seed a number\n");
    return kExitBadFlags;
  }
  const ServerHooks hooks = {
      .decorate_transport = [&flags](std::unique_ptr<KvTransport> inner) {
        return std::make_unique<ReportingTransport>(
            std::move(inner),
            FaultyTransport::Options{.seed = flags.seed,
                                     .rates = RatesOf(flags.rate)});
      }};
  return RunServer(static_cast<int>(args.size()), args.data(), hooks);
}

}  // namespace
}  // namespace overfill

int main(int argc, char** argv) {
  return overfill::Main(std::vector<char*>(argv, argv + argc));
}
