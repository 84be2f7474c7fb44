// SHA-256 (FIPS 180-4) by OpenSSL.
#ifndef OVERFILL_BASE_SHA256_H_
#define OVERFILL_BASE_SHA256_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace overfill {

using Sha256Digest = std::array<uint8_t, 32>;

// Not thread-safe. Update may be called any number of times, Finish once.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Update(absl::string_view bytes);
  // A length-prefixed update: fields cannot run into each other.
  void UpdateField(absl::string_view bytes);
  Sha256Digest Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string HexString(const Sha256Digest& digest);

}  // namespace overfill

#endif  // OVERFILL_BASE_SHA256_H_
