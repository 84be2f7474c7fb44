// Stands in for kernels/cuda in a build without CUDA.
#include "kernels/backends.h"

namespace overfill {

absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(
    int /*ordinal*/, const DeviceOptions& /*options*/) {
  return absl::UnavailableError(
      "this program was built without CUDA; use --device=cpu, or build with "
      "-DOVERFILL_CUDA=ON");
}

}  // namespace overfill
