// What each backend folder gives to MakeDevice.
#ifndef OVERFILL_KERNELS_BACKENDS_H_
#define OVERFILL_KERNELS_BACKENDS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace overfill {

// kernels/cpu. FAILED_PRECONDITION where the processor has no AVX2, or where
// the process already runs under another DeviceOptions::cpu_isa.
absl::StatusOr<std::unique_ptr<Device>> MakeCpuDevice(
    const DeviceOptions& options);

// kernels/cuda, or kernels/no_cuda, which always answers UNAVAILABLE.
absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(
    int ordinal, const DeviceOptions& options);

}  // namespace overfill

#endif  // OVERFILL_KERNELS_BACKENDS_H_
