#include "tests/scheduler/rig.h"

#include <cstdlib>
#include <iostream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "engine/tokenizer/detokenizer.h"
#include "gtest/gtest.h"
#include "tests/tokenizer/tokenizer_files.h"

namespace overfill {
namespace {

constexpr std::chrono::seconds kPatience(60);

}  // namespace

const Tokenizer& TestTokenizer() {
  static const Tokenizer* const tokenizer = [] {
    auto made = Tokenizer::FromJson(
        MakeTokenizerJson(Family::kGpt2, /*seed=*/1).dump(),
        MakeTokenizerConfig(Family::kGpt2).dump(), "test tokenizer");
    OVERFILL_CHECK(made.ok()) << made.status().ToString();
    return made->release();
  }();
  return *tokenizer;
}

int32_t ByteToken(char byte) {
  const Tokenizer& tokenizer = TestTokenizer();
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.TokenBytes(id) == absl::string_view(&byte, 1) &&
        !tokenizer.IsSpecial(id)) {
      return id;
    }
  }
  OVERFILL_CHECK(false) << "no token for a byte";
}

Client::Client(int64_t max_pending_bytes, bool reads) {
  events_ = std::make_shared<EventQueue>(max_pending_bytes, [this, reads] {
    if (reads) Drain();
  });
}

void Client::Drain() {
  MutexLock lock(&mu_);
  while (std::optional<Event> event = events_->Pop()) {
    num_events_after_end += has_ended_;
    if (auto* delta = std::get_if<Delta>(&*event)) {
      text += delta->text;
      deltas.push_back(delta->text);
      tokens.insert(tokens.end(), delta->token_ids.begin(),
                    delta->token_ids.end());
      auto& sample = samples[delta->index];
      sample.insert(sample.end(), delta->token_ids.begin(),
                    delta->token_ids.end());
      logprobs.insert(logprobs.end(), delta->logprobs.begin(),
                      delta->logprobs.end());
    } else if (auto* completion = std::get_if<Completion>(&*event)) {
      completions.push_back(std::move(*completion));
    } else {
      terminal_ = std::get<Terminal>(*event);
      has_ended_ = true;
    }
  }
  num_tokens_ = tokens.size();
  changed_.NotifyAll();
}

const Terminal& Client::Wait() {
  const auto begin = std::chrono::steady_clock::now();
  MutexLock lock(&mu_);
  while (!has_ended_) {
    changed_.WaitFor(&mu_, std::chrono::seconds(1));
    OVERFILL_CHECK(std::chrono::steady_clock::now() - begin < kPatience)
        << "no terminal event for request " << request.request_id;
  }
  return terminal_;
}

void Client::AwaitTokens(size_t count) {
  const auto begin = std::chrono::steady_clock::now();
  MutexLock lock(&mu_);
  while (num_tokens_ < count && !has_ended_) {
    changed_.WaitFor(&mu_, std::chrono::seconds(1));
    OVERFILL_CHECK(std::chrono::steady_clock::now() - begin < kPatience)
        << "no tokens for request " << request.request_id;
  }
}

bool Client::HasEnded() const {
  MutexLock lock(&mu_);
  return has_ended_;
}

size_t Client::num_tokens() const {
  MutexLock lock(&mu_);
  return num_tokens_;
}

void CountingObserver::OnStep(PoolId pool, double seconds,
                              int32_t num_prompt_rows, int32_t num_decode_rows,
                              int32_t num_sequences) {
  EXPECT_GE(seconds, 0);
  EXPECT_GT(num_sequences, 0);
  EXPECT_GE(num_prompt_rows + num_decode_rows, num_sequences);
  MutexLock lock(&mu_);
  const int i = static_cast<int>(pool);
  ++counts_.steps[i];
  counts_.prompt_rows[i] += num_prompt_rows;
  counts_.decode_rows[i] += num_decode_rows;
  counts_.most_prompt_rows =
      std::max(counts_.most_prompt_rows, num_prompt_rows);
}

void CountingObserver::OnFirstToken(DecodePath path, double ttft,
                                    double queue) {
  EXPECT_GE(ttft, queue);
  EXPECT_GE(queue, 0);
  MutexLock lock(&mu_);
  ++counts_.first_tokens;
}

void CountingObserver::OnToken(DecodePath path, double inter_token) {
  EXPECT_GE(inter_token, 0);
  MutexLock lock(&mu_);
  ++counts_.tokens;
}

void CountingObserver::OnMigration(double seconds, int64_t bytes, bool copied) {
  EXPECT_GE(seconds, 0);
  MutexLock lock(&mu_);
  ++(copied ? counts_.copies : counts_.handoffs);
  counts_.copied_bytes += bytes;
}

void CountingObserver::OnTerminal(DecodePath path, const Terminal& terminal,
                                  double e2e) {
  EXPECT_GE(e2e, 0);
  MutexLock lock(&mu_);
  ++counts_.terminals;
  counts_.completion_tokens += terminal.usage.completion_tokens;
}

void CountingObserver::OnPrefixLookup(int32_t queried_tokens,
                                      int32_t hit_tokens) {
  EXPECT_LT(hit_tokens, queried_tokens);
  MutexLock lock(&mu_);
  counts_.queried_tokens += queried_tokens;
  counts_.hit_tokens += hit_tokens;
}

void CountingObserver::OnPreemption() {
  MutexLock lock(&mu_);
  ++counts_.preemptions;
}

void CountingObserver::OnTransferRetry() {
  MutexLock lock(&mu_);
  ++counts_.retries;
}

void CountingObserver::OnReject(absl::string_view reason) {
  MutexLock lock(&mu_);
  ++counts_.rejects[std::string(reason)];
}

CountingObserver::Counts CountingObserver::counts() const {
  MutexLock lock(&mu_);
  return counts_;
}

Rig::Rig(const RigOptions& options_in)
    : options(options_in),
      prefill_store(options.prefill_blocks, options.scheduler.block_tokens),
      decode_store(options.is_shared ? 0 : options.decode_blocks,
                   options.scheduler.block_tokens),
      full(options.full_salt, &prefill_store,
           {options.max_rows, options.scheduler.max_decode_batch,
            options.scheduler.max_sequence_tokens},
           TestTokenizer().vocab_size()),
      pruned(options.pruned_salt,
             options.is_shared ? &prefill_store : &decode_store,
             {options.max_rows, options.scheduler.max_decode_batch,
              options.scheduler.max_sequence_tokens},
             TestTokenizer().vocab_size()),
      swap_stores{
          FakeStore(options.swap_blocks[0], options.scheduler.block_tokens),
          FakeStore(options.swap_blocks[1], options.scheduler.block_tokens)},
      mover(&prefill_store, &decode_store),
      swap_out{FakeMover(&prefill_store, &swap_stores[0]),
               FakeMover(&decode_store, &swap_stores[1])},
      swap_in{FakeMover(&swap_stores[0], &prefill_store),
              FakeMover(&swap_stores[1], &decode_store)},
      fork{FakeMover(&prefill_store, &prefill_store),
           FakeMover(&decode_store, &decode_store)} {}

Rig::~Rig() {
  OpenGates();
  if (!is_finished_ && scheduler) Finish();
}

void Rig::OpenGates() {
  full.OpenGate();
  pruned.OpenGate();
  mover.OpenGate();
  for (int store = 0; store < 2; ++store) {
    swap_out[store].OpenGate();
    swap_in[store].OpenGate();
    fork[store].OpenGate();
  }
}

void Rig::Begin() {
  if (scheduler) return;
  SchedulerBackend backend = {
      .prefill = &full,
      .decode = &pruned,
      .prefill_blocks = options.prefill_blocks,
      .decode_blocks = options.is_shared ? 0 : options.decode_blocks,
      .swap_blocks = options.swap_blocks,
      .mover = options.is_shared ? nullptr : &mover,
      .decode_block_bytes = options.is_shared ? 0 : 100,
      .model_digests = {absl::StrCat("model ", options.full_salt),
                        absl::StrCat("model ", options.pruned_salt)},
      .tokenizer = &TestTokenizer(),
      .decorate_transport = options.decorate_transport,
  };
  if (faults_) {
    backend.decorate_transport = [this](std::unique_ptr<KvTransport> inner) {
      if (options.decorate_transport) {
        inner = options.decorate_transport(std::move(inner));
      }
      auto made = std::make_unique<FaultyTransport>(std::move(inner), *faults_);
      faulty = made.get();
      return made;
    };
  }
  for (int store = 0; store < (options.is_shared ? 1 : 2); ++store) {
    backend.fork[store] = &fork[store];
    if (options.swap_blocks[store] == 0) continue;
    backend.swap_out[store] = &swap_out[store];
    backend.swap_in[store] = &swap_in[store];
  }
  auto made = Scheduler::Create(options.scheduler, backend, &observer);
  OVERFILL_CHECK(made.ok()) << made.status().ToString();
  scheduler = *std::move(made);
}

void Rig::PlantFaults(FaultyTransport::Options faults) {
  OVERFILL_CHECK(scheduler == nullptr) << "the scheduler has its transport";
  faults.hooks = HooksIntoStores();
  faults_ = std::move(faults);
}

FaultHooks Rig::HooksIntoStores() {
  return {.flip =
              [this](int32_t store, int32_t block, int32_t num_tokens,
                     uint64_t random) {
                const auto slot = static_cast<int32_t>(random % num_tokens);
                StoreAt(store).At(block, slot) ^= uint64_t{1} << (random >> 58);
              },
          .received_digest =
              [this](const KvTransfer& transfer) -> std::optional<uint64_t> {
            FakeStore& store = StoreAt(transfer.to_store);
            const auto [begin, end] = transfer.coverage;
            uint64_t digest = begin;
            for (int32_t i = 0; i < end - begin; ++i) {
              digest = FakeDigest(
                  digest, store.At(transfer.destination[i / store.block_tokens],
                                   i % store.block_tokens));
            }
            return digest;
          }};
}

FakeStore& Rig::StoreAt(int32_t store) {
  FakeStore* const stores[] = {&prefill_store, &decode_store, &swap_stores[0],
                               &swap_stores[1]};
  return *stores[store];
}

Request Rig::MakeRequest(DecodePath path, int32_t prompt_tokens,
                         int32_t max_tokens) {
  Request request;
  request.request_id = absl::StrCat("r", next_id_++);
  request.path = path;
  for (int32_t i = 0; i < prompt_tokens; ++i) {
    request.prompt_ids.push_back(
        static_cast<int32_t>(random() % TestTokenizer().vocab_size()));
  }
  request.sampling.seed = random();
  request.stop_rules.max_tokens = max_tokens;
  request.arrival = std::chrono::steady_clock::now();
  return request;
}

Client& Rig::Submit(Request request) {
  return Submit(std::move(request), std::make_unique<Client>());
}

Client& Rig::Submit(Request request, std::unique_ptr<Client> client) {
  Begin();
  client->request = request;
  clients.push_back(std::move(client));
  Client& kept = *clients.back();
  auto uid = scheduler->Submit(std::move(request), kept.events());
  OVERFILL_CHECK(uid.ok()) << uid.status().ToString();
  kept.uid = *uid;
  return kept;
}

absl::Status Rig::TrySubmit(Request request, std::unique_ptr<Client> client) {
  Begin();
  client->request = request;
  auto uid = scheduler->Submit(std::move(request), client->events());
  if (!uid.ok()) {
    EXPECT_FALSE(client->events()->Pop().has_value());
    return uid.status();
  }
  client->uid = *uid;
  clients.push_back(std::move(client));
  return absl::OkStatus();
}

std::vector<int32_t> Rig::Expected(const Request& request,
                                   int32_t index) const {
  const bool full_reads = request.path != DecodePath::kPruned;
  const bool full_writes = request.path == DecodePath::kFull;
  return FakeAnswer(request,
                    full_reads ? options.full_salt : options.pruned_salt,
                    full_writes ? options.full_salt : options.pruned_salt,
                    TestTokenizer().vocab_size(), index);
}

bool Rig::IsRight(Client& client) {
  const Terminal& terminal = client.Wait();
  if (!terminal.status.ok()) return false;
  int32_t num_tokens = 0;
  for (int32_t i = 0; i < client.request.n; ++i) {
    const std::vector<int32_t> expected = Expected(client.request, i);
    if (client.samples[i] != expected) return false;
    num_tokens += static_cast<int32_t>(expected.size());
  }
  return terminal.usage.completion_tokens == num_tokens;
}

void Rig::ExpectRight(Client& client) {
  const Terminal& terminal = client.Wait();
  const Request& request = client.request;
  ASSERT_TRUE(terminal.status.ok()) << terminal.status;
  ASSERT_EQ(client.completions.size(), static_cast<size_t>(request.n));
  int32_t num_tokens = 0;
  for (const Completion& completion : client.completions) {
    const std::vector<int32_t> expected = Expected(request, completion.index);
    EXPECT_EQ(client.samples[completion.index], expected)
        << DecodePathName(request.path) << ", prompt of "
        << request.prompt_ids.size() << ", sample " << completion.index;
    EXPECT_EQ(completion.usage.completion_tokens,
              static_cast<int32_t>(expected.size()));
    EXPECT_EQ(completion.seed, request.sampling.seed);
    num_tokens += static_cast<int32_t>(expected.size());
  }
  EXPECT_EQ(client.samples.size(), static_cast<size_t>(request.n));
  EXPECT_EQ(terminal.usage.completion_tokens, num_tokens);
  EXPECT_EQ(terminal.usage.prompt_tokens,
            static_cast<int32_t>(request.prompt_ids.size()));
  EXPECT_EQ(terminal.seed, request.sampling.seed);
  EXPECT_GE(terminal.timings.ttft_seconds, terminal.timings.queue_seconds);
  if (request.n == 1 && request.stop_rules.stop.empty() &&
      terminal.finish_reason == FinishReason::kLength) {
    Detokenizer detokenizer = Detokenizer::AfterPrompt(
        &TestTokenizer(), /*skip_special_tokens=*/true, request.prompt_ids);
    std::string text;
    for (int32_t id : Expected(request)) text += detokenizer.Append(id);
    EXPECT_EQ(client.text, text + detokenizer.Flush());
  }
}

void Rig::ExpectStatus(Client& client, absl::StatusCode code) {
  const Terminal& terminal = client.Wait();
  EXPECT_EQ(terminal.status.code(), code) << terminal.status;
  EXPECT_EQ(terminal.usage.prompt_tokens,
            static_cast<int32_t>(client.request.prompt_ids.size()));
  // What came before the end is right all the same.
  for (const auto& [index, tokens] : client.samples) {
    const std::vector<int32_t> expected = Expected(client.request, index);
    ASSERT_LE(tokens.size(), expected.size());
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin()));
  }
}

bool Rig::BlocksComeHome(std::chrono::milliseconds timeout) {
  const auto begin = std::chrono::steady_clock::now();
  while (true) {
    bool is_home = true;
    const SchedulerStats stats = scheduler->Stats();
    for (const BlockCounts& store : stats.stores) {
      is_home = is_home && store.owned == 0 && store.quarantined == 0;
    }
    if (is_home) return true;
    if (std::chrono::steady_clock::now() - begin > timeout) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void Rig::Finish() {
  is_finished_ = true;
  Begin();
  ASSERT_TRUE(scheduler->WaitIdle(kPatience));
  EXPECT_TRUE(BlocksComeHome(kPatience));
  EXPECT_TRUE(scheduler->CheckIntegrity().ok()) << scheduler->CheckIntegrity();
  const RequestCounts live = scheduler->Stats().requests;
  EXPECT_EQ(live.queued + live.prefilling + live.migrating + live.decoding +
                live.swapped,
            0);
  EXPECT_EQ(scheduler->Stats().queued_tokens, 0);
  EXPECT_EQ(observer.counts().terminals, static_cast<int64_t>(clients.size()));
  for (const auto& client : clients) {
    client->Read();
    EXPECT_TRUE(client->HasEnded());
    EXPECT_EQ(client->num_events_after_end, 0);
  }
  EXPECT_EQ(full.violation(), "");
  EXPECT_EQ(pruned.violation(), "");
}

}  // namespace overfill
