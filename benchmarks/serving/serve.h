// `overfill-bench serve`: the load generator.
#ifndef OVERFILL_BENCHMARKS_SERVING_SERVE_H_
#define OVERFILL_BENCHMARKS_SERVING_SERVE_H_

#include <string>
#include <vector>

namespace overfill {

// The exit code; see its help.
int RunServe(const std::vector<std::string>& args);

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_SERVING_SERVE_H_
