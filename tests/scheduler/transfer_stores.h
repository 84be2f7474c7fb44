// Stores for transfers, whose contents can be told apart.
#ifndef OVERFILL_TESTS_SCHEDULER_TRANSFER_STORES_H_
#define OVERFILL_TESTS_SCHEDULER_TRANSFER_STORES_H_

#include <cstdint>
#include <memory>

#include "engine/step.h"
#include "tests/support/faulty_transport.h"

namespace overfill {

inline constexpr int32_t kJobBlockTokens = 4;
inline constexpr int32_t kNumJobBlocks = 24;  // of each store

// A source and a destination, and a mover from one to the other.
class Stores {
 public:
  virtual ~Stores() = default;
  virtual KvMover* mover() = 0;
  virtual FaultHooks Hooks() = 0;
  // Fills a source block with what no other content gives.
  virtual void Fill(int32_t block, uint64_t content) = 0;
  // Whether the first tokens of a destination block are of that content.
  virtual bool Holds(int32_t block, int32_t num_tokens, uint64_t content) = 0;
};

// Of one number for each token.
std::unique_ptr<Stores> MakeFakeStores();
// Of a device's memory.
std::unique_ptr<Stores> MakeDeviceStores();
// The bytes of `inner`, which outlives it, are touched with a lock only: for a
// bug that has two threads at one block.
std::unique_ptr<Stores> MakeLockedStores(Stores* inner);

}  // namespace overfill

#endif  // OVERFILL_TESTS_SCHEDULER_TRANSFER_STORES_H_
