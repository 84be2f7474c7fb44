// Runners that stand between a driver and a real StepRunner: one that plants a
// fault, as a bug at the handoff would, and one that takes a digest of the KV
// that was handed over. Neither is known to production code.
#ifndef OVERFILL_TESTS_GOLDEN_FAULTS_H_
#define OVERFILL_TESTS_GOLDEN_FAULTS_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/mutex.h"
#include "engine/kv_store.h"
#include "engine/step.h"

namespace overfill {

enum class Fault {
  kNone,
  kKvZeroed,            // the prompt's KV is lost
  kKvSwapped,           // K is read as V and V as K
  kPositionsOffByOne,   // decode continues one position too early
  kLastBlockDropped,    // the last partial block of the prompt stays behind
  kFirstTokenByDecode,  // the pruned model samples token 0
  kNeighboursBlock,     // a block of another sequence in the table
};

absl::StatusOr<Fault> ParseFault(absl::string_view name);

// Requests are told apart by their sampling seed, which greedy decoding does
// not use. A decode step of token index 1 is the first one after the handoff.

// Wraps the runner of the pool that answers; `store` is the one that it reads.
// A request is hurt at its first decode step (kPositionsOffByOne: at each).
class FaultyDecode : public StepRunner {
 public:
  FaultyDecode(Fault fault, StepRunner* inner, const KvStore* store)
      : fault_(fault), inner_(*inner), store_(*store) {}
  StepLimits limits() const override { return inner_.limits(); }
  absl::StatusOr<StepResult> Run(const StepBatch& batch) override;

 private:
  void HurtKv(std::span<const int32_t> table, int32_t num_tokens);

  const Fault fault_;
  StepRunner& inner_;
  const KvStore& store_;
  // The first block of each request seen, by seed.
  std::map<uint64_t, int32_t> first_blocks_;
};

// Wraps the prefill pool's runner: where token 0 is sampled, the pruned model
// reads the last prompt token again and its choice is taken instead. The pools
// share one store.
class FirstTokenByDecode : public StepRunner {
 public:
  FirstTokenByDecode(StepRunner* prefill, StepRunner* decode)
      : prefill_(*prefill), decode_(*decode) {}
  StepLimits limits() const override { return prefill_.limits(); }
  absl::StatusOr<StepResult> Run(const StepBatch& batch) override;

 private:
  StepRunner& prefill_;
  StepRunner& decode_;
};

// Digests of the prompts' KV by seed. Thread-safe.
class KvDigests {
 public:
  void Add(uint64_t seed, std::string digest);
  std::map<uint64_t, std::string> Take();

 private:
  Mutex mu_;
  std::map<uint64_t, std::string> digests_ ABSL_GUARDED_BY(mu_);
};

// Digests a prompt's KV, token by token and so whatever the blocks, in the
// layers `kv_layers` of the store: after the step that sampled token 0
// (kAfterPrefill), or before the first step of the answer (kBeforeDecode).
class KvProbe : public StepRunner {
 public:
  enum class When { kAfterPrefill, kBeforeDecode };
  KvProbe(When when, StepRunner* inner, const KvStore* store,
          std::vector<int32_t> kv_layers, KvDigests* digests)
      : when_(when),
        inner_(*inner),
        store_(*store),
        kv_layers_(std::move(kv_layers)),
        digests_(*digests) {}
  StepLimits limits() const override { return inner_.limits(); }
  absl::StatusOr<StepResult> Run(const StepBatch& batch) override;

 private:
  std::string Digest(std::span<const int32_t> table, int32_t num_tokens) const;

  const When when_;
  StepRunner& inner_;
  const KvStore& store_;
  const std::vector<int32_t> kv_layers_;
  KvDigests& digests_;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_GOLDEN_FAULTS_H_
