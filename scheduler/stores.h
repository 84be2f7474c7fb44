// The KV stores that blocks live in, by number.
#ifndef OVERFILL_SCHEDULER_STORES_H_
#define OVERFILL_SCHEDULER_STORES_H_

#include <cstdint>

namespace overfill {

inline constexpr int32_t kPrefillStore = 0;  // or the one that both pools share
inline constexpr int32_t kDecodeStore = 1;   // the decode pool's own
// Host memory that preempted sequences of those two wait in.
inline constexpr int32_t kPrefillSwapStore = 2;
inline constexpr int32_t kDecodeSwapStore = 3;
inline constexpr int32_t kNumStores = 4;

constexpr bool IsSwapStore(int32_t store) { return store >= kPrefillSwapStore; }
// Of a store that models read and write.
constexpr int32_t SwapStoreOf(int32_t store) {
  return store + kPrefillSwapStore;
}

}  // namespace overfill

#endif  // OVERFILL_SCHEDULER_STORES_H_
