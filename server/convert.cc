#include "server/convert.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "engine/tokenizer/unicode.h"
#include "google/protobuf/message.h"
#include "kernels/ops.h"
#include "server/errors.h"

namespace overfill {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Unicode normalization makes a text at most three times shorter.
constexpr int64_t kMaxShrink = 4;

uint64_t SystemRandom() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

std::string Range(double min, double max) {
  return absl::StrFormat("must be in [%g, %g]", min, max);
}

// The path of a string field that is not valid UTF-8; empty when all are.
std::string FindBadString(const Message& message, const std::string& prefix) {
  const auto* reflection = message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const std::string path = absl::StrCat(prefix, field->name());
    std::string scratch;
    if (field->is_map()) continue;  // numbers only in this API
    const int count =
        field->is_repeated() ? reflection->FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const std::string item =
          field->is_repeated() ? absl::StrCat(path, "[", i, "]") : path;
      if (field->type() == FieldDescriptor::TYPE_STRING) {
        const std::string& text =
            field->is_repeated()
                ? reflection->GetRepeatedStringReference(message, field, i,
                                                         &scratch)
                : reflection->GetStringReference(message, field, &scratch);
        if (!IsValidUtf8(text)) return item;
      } else if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
        const Message& child =
            field->is_repeated()
                ? reflection->GetRepeatedMessage(message, field, i)
                : reflection->GetMessage(message, field);
        std::string found = FindBadString(child, item + ".");
        if (!found.empty()) return found;
      }
    }
  }
  return "";
}

void CheckNumber(const char* field, float value, float min, float max,
                 Violations& violations) {
  // A comparison with NaN is false.
  if (value >= min && value <= max) return;
  violations.Add(field, Range(min, max));
}

void CheckSampling(const SamplingParams& p, Violations& v) {
  if (!std::isfinite(p.temperature) || p.temperature < 0) {
    v.Add("sampling.temperature", "must be a finite number, at least 0");
  }
  if (!(p.top_p > 0 && p.top_p <= 1)) {
    v.Add("sampling.top_p", "must be in (0, 1]");
  }
  if (p.top_k < 0) v.Add("sampling.top_k", "must be at least 0");
  CheckNumber("sampling.min_p", p.min_p, 0, 1, v);
  CheckNumber("sampling.repetition_penalty", p.repetition_penalty,
              kMinRepetitionPenalty, kMaxRepetitionPenalty, v);
  CheckNumber("sampling.presence_penalty", p.presence_penalty, -kMaxPenalty,
              kMaxPenalty, v);
  CheckNumber("sampling.frequency_penalty", p.frequency_penalty, -kMaxPenalty,
              kMaxPenalty, v);
}

void CheckRequestId(const std::string& id, Violations& v) {
  if (id.size() > kMaxRequestIdBytes) {
    v.Add("request_id",
          absl::StrCat("must be at most ", kMaxRequestIdBytes, " bytes"));
    return;
  }
  for (const char c : id) {
    if (c < 0x20 || c > 0x7E) {
      v.Add("request_id", "must be printable ASCII");
      return;
    }
  }
}

void CheckStops(const v1::Limits& limits, Violations& v) {
  if (limits.stop_size() > kMaxStops) {
    v.Add("limits.stop", absl::StrCat("must be at most ", kMaxStops));
    return;
  }
  for (int i = 0; i < limits.stop_size(); ++i) {
    const size_t size = limits.stop(i).size();
    if (size >= 1 && size <= kMaxStopBytes) continue;
    v.Add(absl::StrCat("limits.stop[", i, "]"),
          absl::StrCat("must be of 1 to ", kMaxStopBytes, " bytes"));
  }
}

std::optional<DecodePath> ToPath(v1::DecodePath path) {
  switch (path) {
    case v1::DECODE_PATH_UNSPECIFIED:
    case v1::DECODE_PATH_TWO_STAGE:
      return DecodePath::kTwoStage;
    case v1::DECODE_PATH_FULL:
      return DecodePath::kFull;
    case v1::DECODE_PATH_PRUNED:
      return DecodePath::kPruned;
    default:  // enums of the wire are open
      return std::nullopt;
  }
}

// All that needs no look at the prompt or the vocabulary.
void CheckPlainFields(const v1::GenerateRequest& proto, int32_t max_n,
                      Violations& v) {
  CheckRequestId(proto.request_id(), v);
  if (proto.n() > static_cast<uint32_t>(max_n)) v.Add("n", Range(0, max_n));
  if (!ToPath(proto.path())) v.Add("path", "unknown value");
  if (proto.priority() < -kMaxPriority || proto.priority() > kMaxPriority) {
    v.Add("priority", Range(-kMaxPriority, kMaxPriority));
  }
  const v1::Limits& limits = proto.limits();
  CheckStops(limits, v);
  if (limits.has_max_tokens() && limits.max_tokens() < 1) {
    v.Add("limits.max_tokens", "must be at least 1");
  }
  if (limits.min_tokens() < 0) {
    v.Add("limits.min_tokens", "must be at least 0");
  } else if (limits.has_max_tokens() && limits.max_tokens() >= 1 &&
             limits.min_tokens() > limits.max_tokens()) {
    v.Add("limits.min_tokens", "must be at most max_tokens");
  }
  if (proto.output().has_logprobs() &&
      (proto.output().logprobs() < 0 ||
       proto.output().logprobs() > kMaxTopLogprobs)) {
    v.Add("output.logprobs", Range(0, kMaxTopLogprobs));
  }
}

}  // namespace

absl::Status ParseMessage(absl::string_view bytes, Message* message) {
  if (message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::OkStatus();
  }
  // The parser keeps what it has read when it meets a bad string.
  const std::string field = FindBadString(*message, "");
  if (!field.empty()) return FieldError(field, "must be valid UTF-8");
  return FieldError("request", "not a message of this method");
}

absl::StatusOr<std::unique_ptr<Converter>> Converter::Create(
    ConvertOptions options) {
  if (!options.random) options.random = SystemRandom;
  std::unique_ptr<Converter> converter(new Converter(std::move(options)));
  Violations violations;
  CheckSampling(converter->Sampling(v1::Sampling()), violations);
  if (!violations.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "generation_config.json: ", violations.ToStatus().message()));
  }
  return converter;
}

bool Converter::IsToken(int32_t id) const {
  return id >= 0 && id < options_.vocab_size && options_.tokenizer->IsToken(id);
}

absl::Status Converter::CheckIds(
    const google::protobuf::RepeatedField<int32_t>& ids,
    absl::string_view field) const {
  Violations violations;
  for (int i = 0; i < ids.size() && violations.wants_more(); ++i) {
    if (IsToken(ids[i])) continue;
    violations.Add(absl::StrCat(field, "[", i, "]"),
                   "not an id of the vocabulary");
  }
  return violations.ToStatus();
}

absl::StatusOr<std::vector<int32_t>> Converter::Encode(
    absl::string_view text, bool add_special_tokens, bool parse_special) const {
  if (static_cast<int64_t>(text.size()) > options_.max_text_bytes) {
    return FieldError("text", absl::StrCat("must be at most ",
                                           options_.max_text_bytes, " bytes"));
  }
  auto ids = options_.tokenizer->Encode(
      text, {.add_special_tokens = add_special_tokens,
             .parse_special = parse_special});
  if (!ids.ok()) return FieldError("text", "must be valid UTF-8");
  return *std::move(ids);
}

absl::StatusOr<std::vector<int32_t>> Converter::PromptIds(
    const v1::GenerateRequest& proto) const {
  const int32_t limit = options_.max_sequence_tokens;
  const std::string too_long =
      absl::StrCat("longer than the context of ", limit,
                   " tokens, which also holds the answer");
  switch (proto.prompt_case()) {
    case v1::GenerateRequest::kText: {
      if (proto.text().empty()) return FieldError("text", "must not be empty");
      const int64_t most_bytes =
          int64_t{limit} * options_.tokenizer->max_token_bytes() * kMaxShrink;
      if (static_cast<int64_t>(proto.text().size()) > most_bytes) {
        return FieldError("text", too_long);
      }
      ASSIGN_OR_RETURN(
          std::vector<int32_t> ids,
          Encode(proto.text(),
                 !proto.has_add_special_tokens() || proto.add_special_tokens(),
                 proto.parse_special()));
      if (ids.empty()) return FieldError("text", "is no token");
      for (const int32_t id : ids) {
        if (!IsToken(id)) {
          return FieldError("text", "has a token that the model does not know");
        }
      }
      if (ids.size() >= static_cast<size_t>(limit)) {
        return FieldError("text", too_long);
      }
      return ids;
    }
    case v1::GenerateRequest::kTokens: {
      const auto& ids = proto.tokens().ids();
      if (ids.empty()) return FieldError("tokens.ids", "must not be empty");
      if (ids.size() >= limit) return FieldError("tokens.ids", too_long);
      RETURN_IF_ERROR(CheckIds(ids, "tokens.ids"));
      return std::vector<int32_t>(ids.begin(), ids.end());
    }
    default:
      return FieldError("prompt", "must be text or tokens");
  }
}

SamplingParams Converter::Sampling(const v1::Sampling& proto) const {
  const GenerationConfig& config = options_.generation;
  SamplingParams p;
  p.temperature = proto.has_temperature() ? proto.temperature()
                  : config.do_sample == false
                      ? 0
                      : config.temperature.value_or(p.temperature);
  p.top_p = proto.has_top_p() ? proto.top_p() : config.top_p.value_or(p.top_p);
  p.top_k = proto.has_top_k() ? proto.top_k() : config.top_k.value_or(p.top_k);
  p.min_p = proto.has_min_p() ? proto.min_p() : config.min_p.value_or(p.min_p);
  p.repetition_penalty =
      proto.has_repetition_penalty()
          ? proto.repetition_penalty()
          : config.repetition_penalty.value_or(p.repetition_penalty);
  p.presence_penalty = proto.presence_penalty();
  p.frequency_penalty = proto.frequency_penalty();
  return p;
}

absl::StatusOr<Request> Converter::ToRequest(const v1::GenerateRequest& proto,
                                             SteadyTime arrival) const {
  Violations violations;
  CheckPlainFields(proto, options_.max_n, violations);
  Request request;
  request.sampling = Sampling(proto.sampling());
  CheckSampling(request.sampling, violations);
  RETURN_IF_ERROR(violations.ToStatus());
  RETURN_IF_ERROR(SetBias(proto.sampling(), request.sampling));
  ASSIGN_OR_RETURN(request.prompt_ids, PromptIds(proto));
  RETURN_IF_ERROR(SetLimits(proto, request));
  request.request_id = proto.request_id();
  if (request.request_id.empty()) {
    request.request_id =
        absl::StrFormat("%016x%016x", options_.random(), options_.random());
  }
  request.sampling.seed =
      proto.sampling().has_seed() ? proto.sampling().seed() : options_.random();
  if (proto.output().has_logprobs()) {
    request.sampling.num_logprobs = proto.output().logprobs();
  }
  request.path = *ToPath(proto.path());
  request.n = std::max<int32_t>(1, static_cast<int32_t>(proto.n()));
  request.priority = proto.priority();
  request.arrival = arrival;
  return request;
}

absl::Status Converter::SetBias(const v1::Sampling& proto,
                                SamplingParams& params) const {
  const auto& biases = proto.logit_bias();
  if (biases.size() > kMaxLogitBiases) {
    return FieldError("sampling.logit_bias",
                      absl::StrCat("must be at most ", kMaxLogitBiases));
  }
  Violations violations;
  for (const auto& [id, bias] : biases) {
    const std::string field = absl::StrCat("sampling.logit_bias[", id, "]");
    if (!IsToken(id)) {
      violations.Add(field, "not an id of the vocabulary");
    } else if (!(bias >= -kMaxLogitBias && bias <= kMaxLogitBias)) {
      violations.Add(field, Range(-kMaxLogitBias, kMaxLogitBias));
    }
    params.logit_bias.emplace_back(id, bias);
  }
  return violations.ToStatus();
}

// REQUIRES: CheckPlainFields found nothing, and the prompt leaves room for one
// token.
absl::Status Converter::SetLimits(const v1::GenerateRequest& proto,
                                  Request& request) const {
  const v1::Limits& limits = proto.limits();
  if (limits.stop_token_ids_size() > kMaxStopTokenIds) {
    return FieldError("limits.stop_token_ids",
                      absl::StrCat("must be at most ", kMaxStopTokenIds));
  }
  RETURN_IF_ERROR(CheckIds(limits.stop_token_ids(), "limits.stop_token_ids"));
  const int32_t num_prompt = static_cast<int32_t>(request.prompt_ids.size());
  const int32_t room = options_.max_sequence_tokens - num_prompt;
  if (limits.has_max_tokens() && limits.max_tokens() > room) {
    return FieldError("limits.max_tokens",
                      absl::StrCat("with the prompt of ", num_prompt,
                                   " tokens more than the context of ",
                                   options_.max_sequence_tokens, " tokens"));
  }
  StopRules& rules = request.stop_rules;
  rules.max_tokens = limits.has_max_tokens() ? limits.max_tokens() : room;
  if (limits.min_tokens() > rules.max_tokens) {
    return FieldError("limits.min_tokens", "more than the context has left");
  }
  rules.stop.assign(limits.stop().begin(), limits.stop().end());
  rules.stop_token_ids.assign(limits.stop_token_ids().begin(),
                              limits.stop_token_ids().end());
  if (!limits.ignore_eos()) rules.eos_ids = options_.eos_ids;
  rules.include_stop = limits.include_stop();

  request.sampling.min_tokens = limits.min_tokens();
  if (limits.min_tokens() > 0) {
    auto& banned = request.sampling.min_tokens_banned_ids;
    banned = rules.eos_ids;
    banned.insert(banned.end(), rules.stop_token_ids.begin(),
                  rules.stop_token_ids.end());
    std::sort(banned.begin(), banned.end());
    banned.erase(std::unique(banned.begin(), banned.end()), banned.end());
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::TokenizeResponse> Converter::Tokenize(
    const v1::TokenizeRequest& proto) const {
  ASSIGN_OR_RETURN(
      const std::vector<int32_t> ids,
      Encode(proto.text(),
             !proto.has_add_special_tokens() || proto.add_special_tokens(),
             proto.parse_special()));
  v1::TokenizeResponse response;
  response.mutable_ids()->Add(ids.begin(), ids.end());
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> Converter::Detokenize(
    const v1::DetokenizeRequest& proto) const {
  RETURN_IF_ERROR(CheckIds(proto.ids(), "ids"));
  // The text is bounded by what a client may send as one.
  int64_t num_bytes = 0;
  for (const int32_t id : proto.ids()) {
    num_bytes += options_.tokenizer->TokenBytes(id).size();
  }
  if (num_bytes > options_.max_text_bytes) {
    return FieldError("ids", absl::StrCat("their text must be at most ",
                                          options_.max_text_bytes, " bytes"));
  }
  v1::DetokenizeResponse response;
  response.set_text(options_.tokenizer->Decode(
      {proto.ids().data(), static_cast<size_t>(proto.ids_size())},
      proto.skip_special_tokens()));
  return response;
}

v1::GenerateResponse ToResponse(const Delta& delta) {
  v1::GenerateResponse response;
  v1::Delta* proto = response.mutable_delta();
  proto->set_index(delta.index);
  proto->set_text(delta.text);
  proto->mutable_token_ids()->Add(delta.token_ids.begin(),
                                  delta.token_ids.end());
  for (const TokenLogprobs& token : delta.logprobs) {
    v1::TokenLogprobs* logprobs = proto->add_logprobs();
    logprobs->set_logprob(token.logprob);
    for (const auto& [id, logprob] : token.top) {
      v1::TopLogprob* top = logprobs->add_top();
      top->set_token_id(id);
      top->set_logprob(logprob);
    }
  }
  return response;
}

v1::GenerateResponse ToResponse(const Completion& completion) {
  v1::GenerateResponse response;
  *response.mutable_completion() = MakeCompletion(completion);
  return response;
}

}  // namespace overfill
