// A converter over a small tokenizer, and a reader of error details.
#ifndef OVERFILL_TESTS_SERVER_TEST_CONVERTER_H_
#define OVERFILL_TESTS_SERVER_TEST_CONVERTER_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/check.h"
#include "engine/tokenizer/tokenizer.h"
#include "overfill/rpc/error_details.pb.h"
#include "overfill/rpc/status.pb.h"
#include "server/convert.h"
#include "server/errors.h"
#include "tests/tokenizer/tokenizer_files.h"

namespace overfill {

inline const Tokenizer& TestTokenizer() {
  static const Tokenizer* const tokenizer = [] {
    auto made = Tokenizer::FromJson(
        MakeTokenizerJson(Family::kLlama3, 1).dump(),
        MakeTokenizerConfig(Family::kLlama3).dump(), "test");
    OVERFILL_CHECK_OK(made.status());
    return made->release();
  }();
  return *tokenizer;
}

inline constexpr int32_t kTestContext = 100;

// Ids 0 and 1 end an answer. Rows of the vocabulary go on behind the last
// token.
inline ConvertOptions TestConvertOptions() {
  ConvertOptions options;
  options.tokenizer = &TestTokenizer();
  options.vocab_size = TestTokenizer().vocab_size() + 20;
  options.eos_ids = {0, 1};
  options.max_sequence_tokens = kTestContext;
  options.max_n = 4;
  options.max_text_bytes = 1 << 20;
  options.random = [] { return uint64_t{77}; };
  return options;
}

inline std::unique_ptr<Converter> TestConverter(
    ConvertOptions options = TestConvertOptions()) {
  auto converter = Converter::Create(std::move(options));
  OVERFILL_CHECK_OK(converter.status());
  return *std::move(converter);
}

// The detail of type `T` in a gRPC status; a default one where there is none.
template <typename T>
T DetailOf(const grpc::Status& status) {
  google::rpc::Status proto;
  OVERFILL_CHECK(proto.ParseFromString(status.error_details()));
  OVERFILL_CHECK_EQ(proto.code(), static_cast<int>(status.error_code()));
  T detail;
  for (const auto& any : proto.details()) {
    if (any.UnpackTo(&detail)) return detail;
  }
  return T();
}

// The fields that the status names.
inline std::vector<std::string> FieldsOf(const grpc::Status& status) {
  std::vector<std::string> fields;
  const auto details = DetailOf<google::rpc::BadRequest>(status);
  for (const auto& violation : details.field_violations()) {
    fields.push_back(violation.field());
  }
  return fields;
}

}  // namespace overfill

#endif  // OVERFILL_TESTS_SERVER_TEST_CONVERTER_H_
