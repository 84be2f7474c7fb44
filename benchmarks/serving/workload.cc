#include "benchmarks/serving/workload.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

// Streams of the run's seed.
constexpr uint64_t kGapStream = 0;
constexpr uint64_t kRequestStream = 1;
constexpr uint64_t kPrefixStream = 2;

constexpr double kMaxTraceSeconds = 1e9;

absl::StatusOr<TraceLine> ParseTraceLine(absl::string_view text,
                                         const std::string& origin) {
  ASSIGN_OR_RETURN(const Json line, ParseJsonObject(text, origin));
  ASSIGN_OR_RETURN(const auto at, JsonNumber(line, "at_seconds", origin));
  ASSIGN_OR_RETURN(const auto prompt,
                   JsonInt(line, "prompt_tokens", 1,
                           LengthDistribution::kMaxTokens, origin));
  ASSIGN_OR_RETURN(const auto output,
                   JsonInt(line, "output_tokens", 1,
                           LengthDistribution::kMaxTokens, origin));
  if (!at || !prompt || !output) {
    return absl::InvalidArgumentError(absl::StrCat(
        origin, ": at_seconds, prompt_tokens and output_tokens are needed"));
  }
  if (!(*at >= 0 && *at <= kMaxTraceSeconds)) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": at_seconds is out of range"));
  }
  return TraceLine{*at, static_cast<int32_t>(*prompt),
                   static_cast<int32_t>(*output)};
}

void AppendTokens(uint64_t seed, int64_t count, int32_t vocab_size,
                  std::vector<int32_t>& tokens) {
  Random random(seed);
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(DrawInt(random, 0, vocab_size - 1)));
  }
}

}  // namespace

absl::StatusOr<std::vector<TraceLine>> ParseTrace(absl::string_view text,
                                                  absl::string_view origin) {
  std::vector<TraceLine> lines;
  int64_t number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    const std::string where = absl::StrCat(origin, ":", number);
    ASSIGN_OR_RETURN(const TraceLine parsed, ParseTraceLine(line, where));
    if (!lines.empty() && parsed.at_seconds < lines.back().at_seconds) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": at_seconds is before the line above"));
    }
    lines.push_back(parsed);
  }
  if (lines.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": no line"));
  }
  return lines;
}

const char* ReaderKindName(ReaderKind kind) {
  switch (kind) {
    case ReaderKind::kNormal:
      return "normal";
    case ReaderKind::kSlow:
      return "slow";
    case ReaderKind::kDead:
      return "dead";
  }
  return "";
}

absl::StatusOr<Workload> Workload::Make(WorkloadOptions options) {
  const double shares[] = {options.cancel_fraction, options.slow_fraction,
                           options.dead_fraction, options.deadline_fraction};
  double sum = 0;
  for (const double share : shares) {
    if (!(share >= 0)) {
      return absl::InvalidArgumentError("a fraction is below 0");
    }
    sum += share;
  }
  // Ten tenths add up to more than 1 in binary.
  if (!(sum <= 1 + 1e-9)) {
    return absl::InvalidArgumentError("the fractions are more than 1 together");
  }
  if ((options.prompt.from_trace() || options.output.from_trace()) &&
      options.trace.empty()) {
    return absl::InvalidArgumentError("lengths from a trace need a trace");
  }
  return Workload(std::move(options));
}

Workload::Workload(WorkloadOptions options)
    : options_(std::move(options)),
      arrivals_(options_.rate, options_.burstiness),
      gaps_(DeriveSeed(options_.seed, kGapStream)) {}

PlannedRequest Workload::Next() {
  PlannedRequest request;
  request.index = next_index_++;
  Random random(DeriveSeed(DeriveSeed(options_.seed, kRequestStream),
                           static_cast<uint64_t>(request.index)));
  TraceLine line = {};
  if (!options_.trace.empty()) {
    line = options_.trace[request.index];
    request.at_seconds = line.at_seconds;
  } else {
    now_seconds_ += arrivals_.NextGapSeconds(gaps_);
    request.at_seconds = now_seconds_;
  }
  request.num_prompt_tokens = options_.prompt.from_trace()
                                  ? line.num_prompt_tokens
                                  : options_.prompt.Draw(random);
  request.max_tokens = options_.output.from_trace()
                           ? line.num_output_tokens
                           : options_.output.Draw(random);
  request.prompt_seed = random();
  request.sampling_seed = random();
  if (options_.prefix_tokens > 0) {
    request.prefix =
        static_cast<int32_t>(DrawInt(random, 0, options_.num_prefixes - 1));
  }
  request.priority = static_cast<int32_t>(
      DrawInt(random, options_.min_priority, options_.max_priority));
  request.path = options_.paths[DrawInt(
      random, 0, static_cast<int64_t>(options_.paths.size()) - 1)];
  request.timeout_seconds = options_.timeout_seconds;
  DrawFate(random, request);
  return request;
}

void Workload::DrawFate(Random& random, PlannedRequest& request) const {
  double point = DrawUnit(random);
  const auto falls_in = [&point](double share) {
    const bool inside = point < share;
    point -= share;
    return inside;
  };
  if (falls_in(options_.cancel_fraction)) {
    request.cancel_after_tokens =
        static_cast<int32_t>(DrawInt(random, 1, request.max_tokens));
    if (options_.cancel_within_seconds > 0) {
      request.cancel_after_seconds =
          DrawUnit(random) * options_.cancel_within_seconds;
    }
  } else if (falls_in(options_.slow_fraction)) {
    request.reader = ReaderKind::kSlow;
  } else if (falls_in(options_.dead_fraction)) {
    request.reader = ReaderKind::kDead;
  } else if (falls_in(options_.deadline_fraction)) {
    request.tiny_deadline = true;
    request.timeout_seconds =
        std::max(1e-3, DrawUnit(random) * options_.tiny_deadline_seconds);
  }
}

std::vector<int32_t> Workload::PromptTokens(const PlannedRequest& request,
                                            int32_t vocab_size) const {
  std::vector<int32_t> tokens;
  tokens.reserve(request.num_prompt_tokens);
  if (request.prefix >= 0) {
    AppendTokens(DeriveSeed(DeriveSeed(options_.seed, kPrefixStream),
                            static_cast<uint64_t>(request.prefix)),
                 std::min(options_.prefix_tokens, request.num_prompt_tokens),
                 vocab_size, tokens);
  }
  AppendTokens(request.prompt_seed,
               request.num_prompt_tokens - static_cast<int64_t>(tokens.size()),
               vocab_size, tokens);
  return tokens;
}

}  // namespace overfill
