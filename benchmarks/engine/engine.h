// `overfill-bench engine`: the engine alone, commanded over stdin.
#ifndef OVERFILL_BENCHMARKS_ENGINE_ENGINE_H_
#define OVERFILL_BENCHMARKS_ENGINE_ENGINE_H_

#include <string>
#include <vector>

namespace overfill {

// Loads the models, prints a line {"ready": true}, and then answers each line
// of stdin, a command of EnginePlayer in JSON, with a line of JSON, in which
// "error" says what was wrong with it. Returns the exit code.
int RunEngine(const std::vector<std::string>& args);

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_ENGINE_ENGINE_H_
