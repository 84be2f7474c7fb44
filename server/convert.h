// The one validator: turns what a client sent into a Request, after checking
// every field. Nothing invalid passes.
#ifndef OVERFILL_SERVER_CONVERT_H_
#define OVERFILL_SERVER_CONVERT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/model_config.h"
#include "engine/tokenizer/tokenizer.h"
#include "google/protobuf/message.h"
#include "overfill/v1/inference.pb.h"
#include "scheduler/request.h"

namespace overfill {

// Limits of the API; docs/api.md states them.
inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr int kMaxLogitBiases = 1024;
inline constexpr float kMaxLogitBias = 100;
inline constexpr int kMaxStops = 64;
inline constexpr size_t kMaxStopBytes = 1024;
inline constexpr int kMaxStopTokenIds = 64;
inline constexpr int kMaxPriority = 100;
inline constexpr float kMaxPenalty = 2;
inline constexpr float kMinRepetitionPenalty = 0.01f;
inline constexpr float kMaxRepetitionPenalty = 100;

// Parses a message from the wire. INVALID_ARGUMENT names the string field that
// is not valid UTF-8, or says that the bytes are no such message.
absl::Status ParseMessage(absl::string_view bytes,
                          google::protobuf::Message* message);

struct ConvertOptions {
  const Tokenizer* tokenizer = nullptr;  // outlives the converter
  // Ids a request may name: below this, and with a token.
  int32_t vocab_size = 0;
  std::vector<int32_t> eos_ids;
  GenerationConfig generation;
  int32_t max_sequence_tokens = 0;
  int32_t max_n = 1;  // answers of one request
  // Longer texts are refused before they are tokenized.
  int64_t max_text_bytes = 0;
  // Draws seeds and the names of requests without one. Thread-safe; null: the
  // system's source of randomness.
  std::function<uint64_t()> random = nullptr;
};

// Immutable, thread-safe. Errors are INVALID_ARGUMENT with a
// google.rpc.BadRequest; they never hold what the client sent.
class Converter {
 public:
  // INVALID_ARGUMENT when the model's own defaults are out of range.
  static absl::StatusOr<std::unique_ptr<Converter>> Create(
      ConvertOptions options);

  // Deadline and tenant are the caller's to set.
  absl::StatusOr<Request> ToRequest(const v1::GenerateRequest& proto,
                                    SteadyTime arrival) const;
  absl::StatusOr<v1::TokenizeResponse> Tokenize(
      const v1::TokenizeRequest& proto) const;
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(
      const v1::DetokenizeRequest& proto) const;

 private:
  explicit Converter(ConvertOptions options) : options_(std::move(options)) {}

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              bool add_special_tokens,
                                              bool parse_special) const;
  absl::StatusOr<std::vector<int32_t>> PromptIds(
      const v1::GenerateRequest& proto) const;
  absl::Status CheckIds(const google::protobuf::RepeatedField<int32_t>& ids,
                        absl::string_view field) const;
  bool IsToken(int32_t id) const;
  // Adds the default of what is unset.
  SamplingParams Sampling(const v1::Sampling& proto) const;
  absl::Status SetBias(const v1::Sampling& proto, SamplingParams& params) const;
  // Into request.stop_rules and the min_tokens of request.sampling.
  absl::Status SetLimits(const v1::GenerateRequest& proto,
                         Request& request) const;

  const ConvertOptions options_;
};

// A delta or a sample's completion, as the client gets them.
v1::GenerateResponse ToResponse(const Delta& delta);
v1::GenerateResponse ToResponse(const Completion& completion);

}  // namespace overfill

#endif  // OVERFILL_SERVER_CONVERT_H_
