// overfill-bench: micro benchmarks of the ops, and the load generator.
#include <cstdio>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/engine/engine.h"
#include "benchmarks/serving/serve.h"

namespace overfill {
namespace {

constexpr int kExitBadFlags = 2;

constexpr char kUsage[] =
    "overfill-bench ops [flags]    micro benchmarks of the ops (Google "
    "Benchmark's flags)\n"
    "overfill-bench engine [flags] the engine alone, commanded over stdin\n"
    "overfill-bench serve [flags]  loads a server; serve --help lists its "
    "flags\n";

int RunOps(std::vector<char*> argv) {
  int argc = static_cast<int>(argv.size());
  benchmark::Initialize(&argc, argv.data());
  if (benchmark::ReportUnrecognizedArguments(argc, argv.data())) {
    return kExitBadFlags;
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

int Main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "serve") {
    return RunServe(std::vector<std::string>(argv + 2, argv + argc));
  }
  if (command == "engine") {
    return RunEngine(std::vector<std::string>(argv + 2, argv + argc));
  }
  if (command == "ops") {
    std::vector<char*> rest(argv, argv + argc);
    rest.erase(rest.begin() + 1);
    return RunOps(std::move(rest));
  }
  if (command == "--help" || command == "-h") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  std::fputs(kUsage, stderr);
  return kExitBadFlags;
}

}  // namespace
}  // namespace overfill

int main(int argc, char** argv) { return overfill::Main(argc, argv); }
