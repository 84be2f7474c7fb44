// A transport that fails as networks and peers do, at given rates.
#ifndef OVERFILL_TESTS_SUPPORT_FAULTY_TRANSPORT_H_
#define OVERFILL_TESTS_SUPPORT_FAULTY_TRANSPORT_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "base/mutex.h"
#include "kernels/tensor.h"
#include "scheduler/kv_transport.h"
#include "scheduler/request.h"

namespace overfill {

// The probability of each fault. A transfer has at most one: they add up to 1
// at most.
struct FaultRates {
  double delay = 0;      // the commit comes late
  double drop = 0;       // the commit never comes
  double duplicate = 0;  // it comes again, later
  double reorder = 0;    // it comes after a later one
  double truncate = 0;   // the end of the coverage does not arrive
  double flip = 0;       // a bit of what arrived is another
  double stall = 0;      // no end but the fence; writes on until then
  double fail = 0;       // the commit says UNAVAILABLE
  // For itself: the probability that on_fenced comes late.
  double late_fence = 0;
};

// What was done. Once every transfer has its commit, or stalls, the counts
// below the first, late_fences excepted, add up to it.
struct FaultCounts {
  int64_t transfers = 0;
  int64_t unharmed = 0;  // the inner transport's failures among them
  int64_t delayed = 0;
  int64_t dropped = 0;
  int64_t duplicated = 0;
  int64_t reordered = 0;
  int64_t truncated = 0;
  int64_t flipped = 0;
  int64_t stalled = 0;
  int64_t failed = 0;
  int64_t late_fences = 0;
};

enum class TransferFault {
  kNone,
  kDelay,
  kDrop,
  kDuplicate,
  kReorder,
  kTruncate,
  kFlip,
  kStall,
  kFail,
};
// One draw; the same generator state gives the same fault.
TransferFault DrawFault(const FaultRates& rates, std::mt19937_64& random);
inline uint64_t NextRandom(uint64_t random) {
  return random * 0x5851f42d4c957f2d + 0x14057b7ef767814f;
}

// How the faults reach the bytes. Without a hook they are seen in the messages
// alone: a flip is a received_digest that is another, a stall writes nothing.
// Called with a lock held: they must not call the transport.
struct FaultHooks {
  // Flips a bit, chosen by `random`, of the first `num_tokens` slots of a
  // block.
  std::function<void(int32_t store, int32_t block, int32_t num_tokens,
                     uint64_t random)>
      flip;
  // The digest of what is at the transfer's destination now.
  std::function<std::optional<uint64_t>(const KvTransfer& transfer)>
      received_digest;
};

// FaultHooks::flip for a store in memory that the host can write.
void FlipBit(const KvView& kv, int32_t block, int32_t num_tokens,
             uint64_t random);

// The number of a transfer's Send and the seed decide its fault; nothing else
// does. A flip is left out where there are no digests to see it by.
class FaultyTransport : public KvTransport {
 public:
  struct Options {
    uint64_t seed = 1;
    FaultRates rates = {};
    std::chrono::nanoseconds max_delay = std::chrono::milliseconds(20);
    FaultHooks hooks = {};
  };
  FaultyTransport(std::unique_ptr<KvTransport> inner, Options options);
  // What was held back comes at once; what stalls ends UNAVAILABLE; what was
  // dropped stays dropped.
  ~FaultyTransport() override;

  void Start(KvTransportEvents events) override;
  void Send(KvTransfer transfer) override;
  bool Abandon(uint64_t uid, uint32_t epoch) override;
  void Fence(uint64_t uid, uint32_t epoch) override;

  FaultCounts counts() const;

 private:
  using Id = std::pair<uint64_t, uint32_t>;  // uid, epoch
  struct Faulted {
    TransferFault fault;
    uint64_t random;  // chooses what the fault leaves open
    KvTransfer transfer;
  };
  // A message that is held back: a commit, or a fence.
  struct Message {
    SteadyTime due;
    bool goes_after_next_commit = false;
    std::optional<KvCommit> commit;
    Id fenced = {};
  };

  void OnInnerCommit(KvCommit commit);
  void OnInnerFenced(uint64_t uid, uint32_t epoch);
  // What becomes of a commit; false: it is not passed on now.
  bool Change(const Faulted& faulted, KvCommit& commit)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Flip(const Faulted& faulted, KvCommit& commit)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Shortens what is sent; false where it is a single token.
  static bool Truncate(uint64_t random, KvTransfer& transfer);
  void Hold(Message message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Deliver(const Message& message) ABSL_LOCKS_EXCLUDED(mu_);
  std::chrono::nanoseconds DrawDelay() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Writes a little into the destination of each stalled transfer.
  void WriteStalled() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Loop();

  const Options options_;
  KvTransportEvents events_;  // set by Start
  mutable Mutex mu_;
  CondVar changed_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mu_);        // one draw per Send
  std::mt19937_64 delay_random_ ABSL_GUARDED_BY(mu_);  // as messages come
  std::map<Id, Faulted> alive_ ABSL_GUARDED_BY(mu_);   // not fenced, not over
  std::list<Message> held_ ABSL_GUARDED_BY(mu_);
  FaultCounts counts_ ABSL_GUARDED_BY(mu_);
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::unique_ptr<KvTransport> inner_;
  std::thread thread_;  // delivers what was held back, writes what is stalled
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_SUPPORT_FAULTY_TRANSPORT_H_
