// What the op tests share: one fixture over all backends, seeded inputs, and
// device memory as typed arrays.
#ifndef OVERFILL_TESTS_KERNELS_BACKEND_TEST_H_
#define OVERFILL_TESTS_KERNELS_BACKEND_TEST_H_

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "tests/kernels/reference.h"
#include "tests/test_seed.h"

namespace overfill {

// The unit roundoffs of f32 and bf16.
inline constexpr double kRoundoffF32 = 0x1p-24;
inline constexpr double kRoundoffBF16 = 0x1p-8;

// The options of all tests; OVERFILL_CPU_ISA caps the instruction set.
inline DeviceOptions TestDeviceOptions() {
  DeviceOptions options;
  if (const char* isa = std::getenv("OVERFILL_CPU_ISA")) options.cpu_isa = isa;
  return options;
}

// `count` T in device memory; filled and read through a stream.
template <typename T>
class DeviceArray {
 public:
  DeviceArray(Device& device, Stream& stream, int64_t count)
      : stream_(&stream), count_(count) {
    auto buffer = device.Allocate(count * static_cast<int64_t>(sizeof(T)));
    OVERFILL_CHECK_OK(buffer.status());
    buffer_ = *std::move(buffer);
  }
  DeviceArray(Device& device, Stream& stream, std::span<const T> values)
      : DeviceArray(device, stream, static_cast<int64_t>(values.size())) {
    Write(values);
  }
  DeviceArray(Device& device, Stream& stream, const std::vector<T>& values)
      : DeviceArray(device, stream, std::span<const T>(values)) {}

  T* data() const { return static_cast<T*>(buffer_->data()); }
  int64_t size() const { return count_; }
  void Write(std::span<const T> values) {
    stream_->CopyToDevice(buffer_->data(), values.data(),
                          static_cast<int64_t>(values.size_bytes()));
    OVERFILL_CHECK_OK(stream_->Synchronize());
  }
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    stream_->CopyToHost(values.data(), buffer_->data(),
                        count_ * static_cast<int64_t>(sizeof(T)));
    OVERFILL_CHECK_OK(stream_->Synchronize());
    return values;
  }

 private:
  Stream* stream_;
  int64_t count_;
  std::unique_ptr<Buffer> buffer_;
};

// A matrix in device memory with rows apart by more than their width, all of
// it poisoned where no value was given.
struct DeviceMatrix {
  DeviceArray<float> memory;
  Matrix view;

  static constexpr float kPoison = 1.5e30f;

  // The values, rows dense.
  std::vector<float> Read() const {
    const std::vector<float> all = memory.Read();
    std::vector<float> out;
    for (int64_t r = 0; r < view.rows; ++r) {
      out.insert(out.end(), all.begin() + r * view.stride,
                 all.begin() + r * view.stride + view.cols);
    }
    return out;
  }
  // Whether everything outside the values is as it was.
  bool PaddingIntact() const {
    const std::vector<float> all = memory.Read();
    for (int64_t i = 0; i < static_cast<int64_t>(all.size()); ++i) {
      if (i % view.stride >= view.cols && all[i] != kPoison) return false;
    }
    return true;
  }
};

// One backend by its device spec, with or without batch invariance. Where there
// is none of it, the tests skip.
class BackendTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    TestSeed();
    auto device = SharedDevice(GetParam());
    if (absl::IsUnavailable(device.status())) {
      GTEST_SKIP() << device.status().message();
    }
    ASSERT_TRUE(device.ok()) << device.status().ToString();
    device_ = *device;
    stream_ = device_->NewStream(StreamPriority::kHigh);
    // Every test has its own numbers, whichever others run.
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    std::seed_seq seq{static_cast<uint32_t>(TestSeed()),
                      static_cast<uint32_t>(TestSeed() >> 32),
                      static_cast<uint32_t>(
                          std::hash<std::string>()(std::string(test->name())))};
    random_.seed(seq);
  }

  void TearDown() override {
    if (stream_ == nullptr) return;
    const absl::Status status = stream_->Synchronize();
    EXPECT_TRUE(status.ok()) << status.ToString();
  }

  Ops& ops() { return device_->ops(); }

  int64_t Uniform(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  float Normal(float scale = 1.0f) {
    return std::normal_distribution<float>(0.0f, scale)(random_);
  }
  // Values that bf16 holds exactly when `exact_bf16`.
  std::vector<float> Normals(int64_t count, bool exact_bf16 = false,
                             float scale = 1.0f) {
    std::vector<float> values(count);
    for (float& value : values) {
      value = Normal(scale);
      if (exact_bf16) value = FloatFromBFloat16(BFloat16FromFloat(value));
    }
    return values;
  }

  template <typename T>
  DeviceArray<T> Upload(const std::vector<T>& values) {
    return DeviceArray<T>(*device_, *stream_, values);
  }

  // `values` [rows, cols] in a matrix with a stride above cols; no values: all
  // poison, for an output.
  DeviceMatrix MakeMatrix(int64_t rows, int64_t cols,
                          const std::vector<float>& values = {}) {
    const int64_t stride = cols + Uniform(0, 3) * 4;
    std::vector<float> memory(rows * stride, DeviceMatrix::kPoison);
    for (int64_t r = 0; r < rows && !values.empty(); ++r) {
      std::copy_n(values.begin() + r * cols, cols, memory.begin() + r * stride);
    }
    DeviceArray<float> array = Upload(memory);
    Matrix view{array.data(), DType::kF32, rows, cols, stride};
    return {std::move(array), view};
  }

  Device* device_ = nullptr;
  std::unique_ptr<Stream> stream_;
  std::mt19937_64 random_;

 private:
  static absl::StatusOr<Device*> SharedDevice(const std::string& backend) {
    static auto* devices =
        new std::vector<std::pair<std::string, std::unique_ptr<Device>>>;
    for (const auto& [name, device] : *devices) {
      if (name == backend) return device.get();
    }
    DeviceOptions options = TestDeviceOptions();
    const std::string spec = backend.substr(0, backend.find('_'));
    options.batch_invariant = spec != backend;
    auto made = MakeDevice(spec, options);
    if (!made.ok()) return made.status();
    std::cout << "device " << (*made)->info().description << std::endl;
    devices->emplace_back(backend, *std::move(made));
    return devices->back().second.get();
  }
};

// A host tensor of `dtype` that owns its bytes.
struct OwnedTensor {
  std::vector<std::byte> bytes;
  HostTensor view;
  std::vector<double> values;  // as the tensor holds them

  OwnedTensor(std::vector<int64_t> shape, DType dtype,
              std::span<const float> numbers);
};

inline reference::Matrix ToReference(int64_t rows, int64_t cols,
                                     const std::vector<float>& values) {
  reference::Matrix out(rows, cols);
  out.data.assign(values.begin(), values.end());
  return out;
}

#define OVERFILL_INSTANTIATE_BACKENDS(suite)                   \
  INSTANTIATE_TEST_SUITE_P(                                    \
      Backends, suite,                                         \
      ::testing::Values("cpu", "cpu_batch_invariant", "cuda"), \
      [](const ::testing::TestParamInfo<std::string>& info) {  \
        return info.param;                                     \
      })

}  // namespace overfill

#endif  // OVERFILL_TESTS_KERNELS_BACKEND_TEST_H_
