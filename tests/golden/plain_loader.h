// Reads the checkpoints that checkpoints.py writes: trusted files, no padding
// of its own, no progress, one thread.
#ifndef OVERFILL_TESTS_GOLDEN_PLAIN_LOADER_H_
#define OVERFILL_TESTS_GOLDEN_PLAIN_LOADER_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/file.h"
#include "engine/weights.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace overfill {

// Tensors by name, in mapped files that live as long as this object.
struct PlainTensors {
  std::vector<MappedFile> files;
  std::map<std::string, HostTensor> by_name;
};

// A single file, or a directory with model.safetensors or an index.
absl::StatusOr<PlainTensors> ReadPlainTensors(const std::string& path);

absl::StatusOr<std::unique_ptr<ModelWeights>> LoadPlainCheckpoint(
    Device& device, const std::string& directory, DType dtype);

}  // namespace overfill

#endif  // OVERFILL_TESTS_GOLDEN_PLAIN_LOADER_H_
