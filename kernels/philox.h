// Counter-based noise for sampling: Philox-4x32-10 (Salmon et al., "Parallel
// Random Numbers: As Easy as 1, 2, 3", SC 2011). Every backend must draw these
// same bits: a token's noise is a function of its key and id alone.
#ifndef OVERFILL_KERNELS_PHILOX_H_
#define OVERFILL_KERNELS_PHILOX_H_

#include <array>
#include <cstdint>

namespace overfill {

inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
inline constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
inline constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
inline constexpr int kPhiloxRounds = 10;

constexpr std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                             uint32_t key0, uint32_t key1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = uint64_t{kPhiloxMultiplier0} * counter[0];
    const uint64_t product1 = uint64_t{kPhiloxMultiplier1} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0,
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1,
               static_cast<uint32_t>(product0)};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return counter;
}

// The random words of the tokens 4 block .. 4 block + 3: the block with counter
// (block, token_index, sample_index, 0) under the key `seed`. A token's noise
// is -log(-log(u)) with u = (word + 1/2) / 2^32.
constexpr std::array<uint32_t, 4> SampleNoiseBlock(uint64_t seed,
                                                   uint32_t sample_index,
                                                   uint32_t token_index,
                                                   uint32_t block) {
  return Philox4x32({block, token_index, sample_index, 0},
                    static_cast<uint32_t>(seed),
                    static_cast<uint32_t>(seed >> 32));
}

}  // namespace overfill

#endif  // OVERFILL_KERNELS_PHILOX_H_
