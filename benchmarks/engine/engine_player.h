// The engine as a player of the CPU benchmark: models of random weights on one
// device, without a scheduler and without a server.
#ifndef OVERFILL_BENCHMARKS_ENGINE_ENGINE_PLAYER_H_
#define OVERFILL_BENCHMARKS_ENGINE_ENGINE_PLAYER_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/json.h"
#include "engine/kv_store.h"
#include "engine/model_runner.h"
#include "engine/weights.h"
#include "kernels/device.h"

namespace overfill {

// A directory with a config.json, and what its noise is kept in.
struct PlayedModel {
  std::string name;
  std::string directory;
  DType weights = DType::kBF16;
};

struct EnginePlayerOptions {
  DeviceOptions device;
  std::vector<PlayedModel> models;
  int32_t max_batch = 32;
  int32_t max_tokens = 2048;   // of a sequence
  int32_t chunk_tokens = 512;  // prompt rows of a step
};

// All models share one KV store: they have the same layers and KV heads, so
// that each can go on where another one stopped. One thread at a time.
class EnginePlayer {
 public:
  static absl::StatusOr<std::unique_ptr<EnginePlayer>> Create(
      const EnginePlayerOptions& options);
  ~EnginePlayer();

  // Answers a command, an object with "op":
  //   prefill  model, tokens: "seconds" of a prompt and its next token
  //   decode   model, batch, context, steps: "seconds" of each step
  //   request  model, decode_model, prompt, answer: "seconds" and
  //            "first_token_seconds"; the first model reads, the other writes
  //   read     bytes: "rates", bytes/s of each read kernel
  //   product  rows, in, out: "seconds" of one product of bf16, warm
  //   info     "device", and of each model the "bytes" that a step reads
  absl::StatusOr<Json> Play(const Json& command);

 private:
  struct Model;
  using Clock = std::chrono::steady_clock;

  explicit EnginePlayer(const EnginePlayerOptions& options);
  absl::Status LoadModels();
  absl::Status MakeStore();
  absl::StatusOr<Model*> Find(const Json& command, const char* key);

  absl::StatusOr<Json> Prefill(const Json& command);
  absl::StatusOr<Json> Decode(const Json& command);
  absl::StatusOr<Json> Request(const Json& command);
  absl::StatusOr<Json> Read(const Json& command);
  absl::StatusOr<Json> Product(const Json& command);
  Json Info() const;

  // One sequence's tokens in chunks; returns the token drawn after them.
  absl::StatusOr<int32_t> Feed(Model& model, std::span<const int32_t> tokens);
  // A token for each sequence at `position`; they become those drawn.
  absl::Status Step(Model& model, int32_t position,
                    std::vector<int32_t>& tokens);
  std::span<const int32_t> BlocksOf(int32_t sequence, int32_t num_tokens) const;

  const EnginePlayerOptions options_;
  std::unique_ptr<Device> device_;
  std::map<std::string, std::unique_ptr<Model>> models_;
  std::unique_ptr<KvStore> store_;
  std::vector<int32_t> blocks_;  // 0, 1, 2, ...
  std::map<std::pair<int64_t, int64_t>, std::unique_ptr<LinearWeight>>
      products_;
};

}  // namespace overfill

#endif  // OVERFILL_BENCHMARKS_ENGINE_ENGINE_PLAYER_H_
