#include "client/options.h"

#include <cstdint>
#include <functional>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/flags.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

// Hands a parsed number to `set`.
template <typename Number>
FlagSet::Setter NumberSetter(std::function<void(Number)> set) {
  return [set = std::move(set)](absl::string_view text) {
    Number number;
    bool valid;
    if constexpr (std::is_same_v<Number, float>) {
      valid = absl::SimpleAtof(text, &number);
    } else {
      valid = absl::SimpleAtoi(text, &number);
    }
    if (!valid) return absl::InvalidArgumentError("must be a number");
    set(number);
    return absl::OkStatus();
  };
}

FlagSet::Setter PathSetter(v1::GenerateRequest& request) {
  return [&request](absl::string_view text) {
    v1::DecodePath path;
    const std::string name =
        absl::StrCat("DECODE_PATH_", absl::AsciiStrToUpper(text));
    if (!v1::DecodePath_Parse(name, &path)) {
      return absl::InvalidArgumentError("must be two_stage, full or pruned");
    }
    request.set_path(path);
    return absl::OkStatus();
  };
}

void AddSamplingFlags(FlagSet& flags, v1::GenerateRequest& request) {
  v1::Sampling* s = request.mutable_sampling();
  flags.Add("temperature", "F", "0 is greedy; default: the model's",
            NumberSetter<float>([s](float f) { s->set_temperature(f); }));
  flags.Add("top_p", "F", "share of the probability to choose from",
            NumberSetter<float>([s](float f) { s->set_top_p(f); }));
  flags.Add("top_k", "N", "number of tokens to choose from; 0: all",
            NumberSetter<int32_t>([s](int32_t n) { s->set_top_k(n); }));
  flags.Add("min_p", "F", "least probability, of the best token's",
            NumberSetter<float>([s](float f) { s->set_min_p(f); }));
  flags.Add("seed", "N", "draws the same answer again",
            NumberSetter<uint64_t>([s](uint64_t n) { s->set_seed(n); }));
}

void AddFlags(FlagSet& flags, ClientOptions& options) {
  v1::GenerateRequest& request = options.request;
  AddConnectionFlags(flags, &options.connection);
  v1::Limits* limits = request.mutable_limits();
  flags.Add("max_tokens", "N",
            "longest answer; default: what the context has left",
            NumberSetter<int32_t>(
                [limits](int32_t n) { limits->set_max_tokens(n); }));
  AddSamplingFlags(flags, request);
  flags.Add(
      "n", "N", "answers to draw from the prompt (1)",
      NumberSetter<uint32_t>([&request](uint32_t n) { request.set_n(n); }));
  flags.Add("path", "two_stage|full|pruned", "which model does which stage",
            PathSetter(request));
  flags.Add("stop", "TEXT", "ends the answer; may be given many times",
            [limits](absl::string_view text) {
              limits->add_stop(std::string(text));
              return absl::OkStatus();
            });
  flags.Add("ignore_eos", "", "goes on behind the model's end of an answer",
            [limits](absl::string_view text) -> absl::Status {
              if (text != "true" && text != "false") {
                return absl::InvalidArgumentError("must be true or false");
              }
              limits->set_ignore_eos(text == "true");
              return absl::OkStatus();
            });
  flags.Add("logprobs", "N", "with --json: logprobs of the best N tokens",
            NumberSetter<int32_t>([&request](int32_t n) {
              request.mutable_output()->set_logprobs(n);
            }));
  flags.AddDuration("timeout", "deadline of the call; 0s: none",
                    &options.timeout);
  flags.AddBool("json", "one JSON object per event instead of text",
                &options.json);
  flags.AddBool("stats", "timings on standard error, after the answer",
                &options.stats);
}

}  // namespace

const char* ClientVersion() { return OVERFILL_VERSION; }

std::string ClientHelp() {
  ClientOptions defaults;
  FlagSet flags;
  AddFlags(flags, defaults);
  return absl::StrCat(
      "overfill-client [flags] PROMPT\n\n"
      "Streams an answer. A PROMPT of - is read from standard input. Ctrl-C "
      "cancels.\n\n",
      flags.Help(),
      "  --help\n      this text\n  --version\n      the version\n");
}

absl::StatusOr<ClientOptions> ParseClientOptions(
    const std::vector<std::string>& args) {
  ClientOptions options;
  for (const std::string& arg : args) {
    if (arg == "--") break;
    if (arg == "--help" || arg == "-h") {
      options.action = ClientOptions::Action::kHelp;
      return options;
    }
    if (arg == "--version") {
      options.action = ClientOptions::Action::kVersion;
      return options;
    }
  }
  FlagSet flags;
  AddFlags(flags, options);
  std::vector<std::string> prompt;
  RETURN_IF_ERROR(flags.Parse(args, &prompt, nullptr));
  if (prompt.size() != 1) {
    return absl::InvalidArgumentError(
        prompt.empty() ? "PROMPT: needed; see --help"
                       : "PROMPT: one, in quotes; see --help");
  }
  options.prompt = std::move(prompt.front());
  return options;
}

}  // namespace overfill
