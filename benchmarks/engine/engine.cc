#include "benchmarks/engine/engine.h"

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/flags.h"
#include "base/json.h"
#include "benchmarks/engine/engine_player.h"

namespace overfill {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitBadFlags = 2;
constexpr size_t kMaxCommandBytes = 64 << 10;

int Fail(int code, absl::string_view line) {
  std::fprintf(stderr, "overfill-bench: %s\n", std::string(line).c_str());
  return code;
}

void Say(const Json& line) {
  std::cout << line.dump() << std::endl;  // flushed
}

// NAME=DIR or NAME=DIR,TYPE.
absl::Status ParseModel(absl::string_view text, EnginePlayerOptions& options) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits('=', 1));
  const std::pair<absl::string_view, absl::string_view> source =
      absl::StrSplit(parts.second, absl::MaxSplits(',', 1));
  PlayedModel model;
  model.name = std::string(parts.first);
  model.directory = std::string(source.first);
  if (model.name.empty() || model.directory.empty()) {
    return absl::InvalidArgumentError("must be NAME=DIR or NAME=DIR,TYPE");
  }
  bool is_known = source.second.empty();
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kInt8}) {
    if (source.second != DTypeName(dtype)) continue;
    model.weights = dtype;
    is_known = true;
  }
  if (!is_known) {
    return absl::InvalidArgumentError("TYPE must be bf16, f32 or int8");
  }
  options.models.push_back(std::move(model));
  return absl::OkStatus();
}

Json Answer(EnginePlayer& player, const std::string& line) {
  if (line.size() > kMaxCommandBytes) return {{"error", "line too long"}};
  const auto command = ParseJsonObject(line, "command");
  if (!command.ok()) {
    return {{"error", std::string(command.status().message())}};
  }
  auto answer = player.Play(*command);
  if (!answer.ok()) {
    return {{"error", std::string(answer.status().message())}};
  }
  return *std::move(answer);
}

}  // namespace

int RunEngine(const std::vector<std::string>& args) {
  EnginePlayerOptions options;
  int32_t threads = 0;
  FlagSet flags;
  flags.Add("model", "NAME=DIR[,TYPE]",
            "random weights in the shapes of DIR's config.json; TYPE is bf16, "
            "f32 or int8; may be repeated",
            [&](absl::string_view text) { return ParseModel(text, options); });
  flags.AddInt32("threads", "of the device; 0: all", 0, 1024, &threads);
  flags.AddString("cpu_isa", "ISA", "highest instruction set",
                  &options.device.cpu_isa);
  flags.AddBool("batch_invariant", "logits that depend on nothing else",
                &options.device.batch_invariant);
  flags.AddInt32("max_batch", "sequences of a step", 1, 4096,
                 &options.max_batch);
  flags.AddInt32("max_tokens", "of a sequence", 2, 1 << 20,
                 &options.max_tokens);
  flags.AddInt32("chunk_tokens", "prompt rows of a step", 1, 1 << 16,
                 &options.chunk_tokens);
  if (const absl::Status status = flags.Parse(
          args, nullptr, [](const char*) -> const char* { return nullptr; });
      !status.ok()) {
    return Fail(kExitBadFlags, status.message());
  }
  options.device.num_threads = threads;
  const auto player = EnginePlayer::Create(options);
  if (!player.ok()) return Fail(kExitFailed, player.status().message());
  Say({{"ready", true}});
  for (std::string line; std::getline(std::cin, line);) {
    Say(Answer(**player, line));
  }
  return 0;
}

}  // namespace overfill
