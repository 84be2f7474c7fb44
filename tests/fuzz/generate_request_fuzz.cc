// Arbitrary bytes as each message of the API: what passes the converter obeys
// every limit, and what does not is a small INVALID_ARGUMENT.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "base/check.h"
#include "engine/tokenizer/unicode.h"
#include "kernels/ops.h"
#include "server/convert.h"
#include "server/errors.h"
#include "server/grpc_server.h"
#include "tests/server/test_converter.h"

namespace overfill {
namespace {

const Converter& FuzzConverter() {
  static const Converter* const converter = [] {
    RouteLibraryLogs();
    return TestConverter().release();
  }();
  return *converter;
}

bool IsToken(int32_t id) {
  return id >= 0 && id < TestConvertOptions().vocab_size &&
         TestTokenizer().IsToken(id);
}

void CheckSampling(const SamplingParams& p) {
  OVERFILL_CHECK(std::isfinite(p.temperature) && p.temperature >= 0);
  OVERFILL_CHECK(p.top_p > 0 && p.top_p <= 1);
  OVERFILL_CHECK(p.top_k >= 0);
  OVERFILL_CHECK(p.min_p >= 0 && p.min_p <= 1);
  OVERFILL_CHECK(p.repetition_penalty >= kMinRepetitionPenalty &&
                 p.repetition_penalty <= kMaxRepetitionPenalty);
  OVERFILL_CHECK(std::abs(p.presence_penalty) <= kMaxPenalty);
  OVERFILL_CHECK(std::abs(p.frequency_penalty) <= kMaxPenalty);
  OVERFILL_CHECK(p.num_logprobs >= -1 && p.num_logprobs <= kMaxTopLogprobs);
  OVERFILL_CHECK(p.logit_bias.size() <= kMaxLogitBiases);
  for (const auto& [id, bias] : p.logit_bias) {
    OVERFILL_CHECK(IsToken(id) && std::abs(bias) <= kMaxLogitBias);
  }
}

void CheckRequest(const Request& request) {
  OVERFILL_CHECK(!request.prompt_ids.empty());
  for (const int32_t id : request.prompt_ids) OVERFILL_CHECK(IsToken(id));
  const StopRules& rules = request.stop_rules;
  OVERFILL_CHECK(rules.max_tokens >= 1);
  OVERFILL_CHECK(request.prompt_ids.size() +
                     static_cast<size_t>(rules.max_tokens) <=
                 kTestContext);
  OVERFILL_CHECK(request.sampling.min_tokens >= 0 &&
                 request.sampling.min_tokens <= rules.max_tokens);
  OVERFILL_CHECK(rules.stop.size() <= kMaxStops);
  for (const std::string& stop : rules.stop) {
    OVERFILL_CHECK(!stop.empty() && stop.size() <= kMaxStopBytes);
    OVERFILL_CHECK(IsValidUtf8(stop));
  }
  OVERFILL_CHECK(rules.stop_token_ids.size() <= kMaxStopTokenIds);
  for (const int32_t id : rules.stop_token_ids) OVERFILL_CHECK(IsToken(id));
  OVERFILL_CHECK(!request.request_id.empty() &&
                 request.request_id.size() <= kMaxRequestIdBytes);
  OVERFILL_CHECK(std::abs(request.priority) <= kMaxPriority);
  CheckSampling(request.sampling);
}

void CheckRefusal(const absl::Status& status) {
  const grpc::Status answer = ToGrpcStatus(status);
  OVERFILL_CHECK(answer.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  OVERFILL_CHECK(!FieldsOf(answer).empty());
  // It must fit into a header.
  OVERFILL_CHECK(answer.error_details().size() < 4096);
  OVERFILL_CHECK(IsValidUtf8(answer.error_message()));
}

template <typename Message, typename Use>
void Parse(absl::string_view bytes, Use use) {
  Message message;
  const absl::Status status = ParseMessage(bytes, &message);
  if (status.ok()) {
    use(message);
  } else {
    CheckRefusal(status);
  }
}

}  // namespace
}  // namespace overfill

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace overfill;  // NOLINT: the entry point has no namespace
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const Converter& converter = FuzzConverter();
  Parse<v1::GenerateRequest>(bytes, [&](const v1::GenerateRequest& proto) {
    const auto request = converter.ToRequest(proto, SteadyTime());
    if (request.ok()) {
      CheckRequest(*request);
    } else {
      CheckRefusal(request.status());
    }
  });
  Parse<v1::TokenizeRequest>(bytes, [&](const v1::TokenizeRequest& proto) {
    const auto ids = converter.Tokenize(proto);
    OVERFILL_CHECK_OK(ids.status());
    for (const int32_t id : ids->ids()) OVERFILL_CHECK(IsToken(id));
  });
  Parse<v1::DetokenizeRequest>(bytes, [&](const v1::DetokenizeRequest& proto) {
    const auto text = converter.Detokenize(proto);
    if (text.ok()) {
      OVERFILL_CHECK(IsValidUtf8(text->text()));
    } else {
      CheckRefusal(text.status());
    }
  });
  return 0;
}
