#include "kernels/device.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/backends.h"

namespace overfill {

absl::StatusOr<std::unique_ptr<Device>> MakeDevice(
    absl::string_view spec, const DeviceOptions& options) {
  if (spec == "cpu") return MakeCpuDevice(options);
  if (spec == "cuda") return MakeCudaDevice(/*ordinal=*/0, options);
  absl::string_view number = spec;
  int ordinal = 0;
  if (absl::ConsumePrefix(&number, "cuda:") &&
      number.find_first_not_of("0123456789") == absl::string_view::npos &&
      absl::SimpleAtoi(number, &ordinal)) {
    return MakeCudaDevice(ordinal, options);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device \"", spec, "\" is none of cpu, cuda, cuda:N"));
}

}  // namespace overfill
