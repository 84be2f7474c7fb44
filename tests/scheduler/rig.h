// A scheduler with models of arithmetic, its clients, and what must hold when
// a test is over.
#ifndef OVERFILL_TESTS_SCHEDULER_RIG_H_
#define OVERFILL_TESTS_SCHEDULER_RIG_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "engine/tokenizer/tokenizer.h"
#include "scheduler/kv_transport.h"
#include "scheduler/scheduler.h"
#include "tests/scheduler/fake_model.h"
#include "tests/support/faulty_transport.h"
#include "tests/test_seed.h"

namespace overfill {

inline constexpr uint64_t kFullSalt = 11;
inline constexpr uint64_t kPrunedSalt = 22;

// Long random tests do one in so many of their rounds in builds that check
// more, and are slow: the sanitizers'.
#ifdef NDEBUG
inline constexpr int kTestSlowness = 1;
#else
inline constexpr int kTestSlowness = 8;
#endif

// A byte-level tokenizer; made once.
const Tokenizer& TestTokenizer();
// The single-byte token.
int32_t ByteToken(char byte);

// One client's stream, as it came.
class Client {
 public:
  explicit Client(int64_t max_pending_bytes = 1 << 20, bool reads = true);

  const std::shared_ptr<EventQueue>& events() const { return events_; }
  // Waits for the terminal event; fails the test after a minute.
  const Terminal& Wait();
  // Waits until that many tokens have come.
  void AwaitTokens(size_t count);
  bool HasEnded() const;
  size_t num_tokens() const;
  // For one that does not read by itself.
  void Read() { Drain(); }

  // To be read after Wait.
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<TokenLogprobs> logprobs;
  std::vector<std::string> deltas;                  // the texts
  std::map<int32_t, std::vector<int32_t>> samples;  // tokens by index
  std::vector<Completion> completions;
  int num_events_after_end = 0;
  uint64_t uid = 0;
  Request request;

 private:
  void Drain();

  std::shared_ptr<EventQueue> events_;
  mutable Mutex mu_;
  CondVar changed_;
  size_t num_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  bool has_ended_ ABSL_GUARDED_BY(mu_) = false;
  Terminal terminal_;
};

class CountingObserver : public SchedulerObserver {
 public:
  void OnStep(PoolId pool, double seconds, int32_t num_prompt_rows,
              int32_t num_decode_rows, int32_t num_sequences) override;
  void OnFirstToken(DecodePath path, double ttft, double queue) override;
  void OnToken(DecodePath path, double inter_token) override;
  void OnMigration(double seconds, int64_t bytes, bool copied) override;
  void OnTerminal(DecodePath path, const Terminal& terminal,
                  double e2e) override;
  void OnReject(absl::string_view reason) override;
  void OnPrefixLookup(int32_t queried_tokens, int32_t hit_tokens) override;
  void OnPreemption() override;
  void OnTransferRetry() override;

  struct Counts {
    std::array<int64_t, 2> steps{};
    std::array<int64_t, 2> prompt_rows{};
    std::array<int64_t, 2> decode_rows{};
    int32_t most_prompt_rows = 0;
    int64_t first_tokens = 0;
    int64_t tokens = 0;
    int64_t handoffs = 0;
    int64_t copies = 0;
    int64_t copied_bytes = 0;
    int64_t terminals = 0;
    int64_t completion_tokens = 0;
    int64_t preemptions = 0;
    int64_t retries = 0;
    int64_t queried_tokens = 0;
    int64_t hit_tokens = 0;
    std::map<std::string, int> rejects;
  };
  Counts counts() const;

 private:
  mutable Mutex mu_;
  Counts counts_ ABSL_GUARDED_BY(mu_);
};

struct RigOptions {
  SchedulerOptions scheduler = {.block_tokens = 4,
                                .max_sequence_tokens = 256,
                                .prefill_chunk_tokens = 16,
                                .max_decode_batch = 8,
                                .max_queued_requests = 4096};
  int32_t max_rows = 64;
  bool is_shared = true;
  int32_t prefill_blocks = 64;
  int32_t decode_blocks = 64;            // where not shared
  std::array<int32_t, 2> swap_blocks{};  // 0: requests reserve in full
  // Around the transport, as SchedulerBackend's.
  std::function<std::unique_ptr<KvTransport>(std::unique_ptr<KvTransport>)>
      decorate_transport = nullptr;
  uint64_t full_salt = kFullSalt;
  uint64_t pruned_salt = kPrunedSalt;
};

class Rig {
 public:
  explicit Rig(const RigOptions& options = {});
  // Ends the test as Finish does, where it has not been called.
  ~Rig();

  // A request of `prompt_tokens` random tokens, with an id of its own.
  Request MakeRequest(DecodePath path, int32_t prompt_tokens,
                      int32_t max_tokens);
  // Submits, and expects that it is taken.
  Client& Submit(Request request);
  Client& Submit(Request request, std::unique_ptr<Client> client);
  Client& Submit(DecodePath path, int32_t prompt_tokens, int32_t max_tokens) {
    return Submit(MakeRequest(path, prompt_tokens, max_tokens));
  }
  // The status of one that is refused; OK when it is not.
  absl::Status TrySubmit(Request request) {
    return TrySubmit(std::move(request), std::make_unique<Client>());
  }
  absl::Status TrySubmit(Request request, std::unique_ptr<Client> client);

  std::vector<int32_t> Expected(const Request& request,
                                int32_t index = 0) const;
  // Whether the client's answer is complete and the reference's.
  bool IsRight(Client& client);
  void ExpectRight(Client& client);
  void ExpectStatus(Client& client, absl::StatusCode code);

  // Waits until nobody holds a block of any store, for at most `timeout`.
  bool BlocksComeHome(std::chrono::milliseconds timeout);
  BlockCounts Blocks(int store) const {
    return scheduler->Stats().stores[store];
  }

  // Waits for idle; then nothing is live, the blocks are home, each request
  // had one terminal event, nothing was asked of the models that must not be.
  void Finish();
  // Puts a transport that fails around the scheduler's, in front of
  // options.decorate_transport; flips and stalls reach the stores' cells. To be
  // called before the scheduler is made.
  void PlantFaults(FaultyTransport::Options faults);
  // By the scheduler's numbers.
  FakeStore& StoreAt(int32_t store);
  // Lets all that waits at a gate, or comes to one, go on.
  void OpenGates();

  // Ends the scheduler with whatever is live.
  void Destroy() { scheduler.reset(); }

  const RigOptions options;
  FakeStore prefill_store;
  FakeStore decode_store;  // unused where shared
  FakeModel full;
  FakeModel pruned;
  std::array<FakeStore, 2> swap_stores;
  FakeMover mover;
  std::array<FakeMover, 2> swap_out;  // by store
  std::array<FakeMover, 2> swap_in;
  std::array<FakeMover, 2> fork;
  CountingObserver observer;
  std::vector<std::unique_ptr<Client>> clients;  // those that were taken
  std::mt19937_64 random{5};
  FaultyTransport* faulty = nullptr;  // of PlantFaults; lives as `scheduler`
  std::unique_ptr<Scheduler> scheduler;

  // The scheduler is made on the first use of Submit or by this, so that a
  // test can set hooks before.
  void Begin();

 private:
  FaultHooks HooksIntoStores();

  std::optional<FaultyTransport::Options> faults_;
  int next_id_ = 0;
  bool is_finished_ = false;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_SCHEDULER_RIG_H_
