#include "base/sha256.h"

#include <openssl/evp.h>

#include "absl/strings/escaping.h"
#include "base/check.h"

namespace overfill {

struct Sha256::State {
  EVP_MD_CTX* ctx = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(ctx); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  OVERFILL_CHECK(state_->ctx != nullptr);
  OVERFILL_CHECK_EQ(EVP_DigestInit_ex(state_->ctx, EVP_sha256(), nullptr), 1);
}

Sha256::~Sha256() = default;

void Sha256::Update(absl::string_view bytes) {
  OVERFILL_CHECK_EQ(EVP_DigestUpdate(state_->ctx, bytes.data(), bytes.size()),
                    1);
}

void Sha256::UpdateField(absl::string_view bytes) {
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) {
    length[i] = static_cast<uint8_t>(uint64_t{bytes.size()} >> (8 * i));
  }
  Update(absl::string_view(reinterpret_cast<const char*>(length), 8));
  Update(bytes);
}

Sha256Digest Sha256::Finish() {
  Sha256Digest digest;
  unsigned int size = 0;
  OVERFILL_CHECK_EQ(EVP_DigestFinal_ex(state_->ctx, digest.data(), &size), 1);
  OVERFILL_CHECK_EQ(size, digest.size());
  return digest;
}

std::string HexString(const Sha256Digest& digest) {
  return absl::BytesToHexString(absl::string_view(
      reinterpret_cast<const char*>(digest.data()), digest.size()));
}

}  // namespace overfill
