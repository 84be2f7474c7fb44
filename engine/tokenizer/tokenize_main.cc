// overfill-tokenize: the server's tokenizer for programs of other languages,
// so that training sees the ids that serving sees. Answers requests on stdin,
// one JSON value per line each way.
//
//   overfill-tokenize MODEL_DIR
//   {"text": T, "add_special_tokens": B, "parse_special": B}   ->  [ids]
//   {"texts": [T], "add_special_tokens": B, "parse_special": B}  ->  [[ids]]
//   {"ids": [ids], "skip_special_tokens": B}                   ->  "text"
//   {"info": true}  ->  {"vocab_size", "bos_id", "eos_id", "digest"}
// A request that cannot be answered gets {"error": "..."}; the next line is
// read as usual. Flags default to false. Ends with its input.
#include <cstdint>
#include <iostream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "engine/tokenizer/detokenizer.h"
#include "engine/tokenizer/tokenizer.h"

namespace overfill {
namespace {

constexpr int kExitBadInput = 2;

absl::StatusOr<bool> Flag(const Json& request, const char* key) {
  ASSIGN_OR_RETURN(const auto value, JsonBool(request, key, "request"));
  return value.value_or(false);
}

absl::StatusOr<Json> EncodeText(const Tokenizer& tokenizer, const Json& text,
                                const Tokenizer::EncodeOptions& options) {
  if (!text.is_string()) {
    return absl::InvalidArgumentError("request: a text is not a string");
  }
  ASSIGN_OR_RETURN(
      const std::vector<int32_t> ids,
      tokenizer.Encode(text.get_ref<const std::string&>(), options));
  return Json(ids);
}

absl::StatusOr<Json> Encode(const Tokenizer& tokenizer, const Json& request) {
  Tokenizer::EncodeOptions options;
  ASSIGN_OR_RETURN(options.add_special_tokens,
                   Flag(request, "add_special_tokens"));
  ASSIGN_OR_RETURN(options.parse_special, Flag(request, "parse_special"));
  if (const Json* text = FindJson(request, "text")) {
    return EncodeText(tokenizer, *text, options);
  }
  const Json& texts = request["texts"];
  if (!texts.is_array()) {
    return absl::InvalidArgumentError("request: texts is not an array");
  }
  Json answer = Json::array();
  for (const Json& text : texts) {
    ASSIGN_OR_RETURN(Json ids, EncodeText(tokenizer, text, options));
    answer.push_back(std::move(ids));
  }
  return answer;
}

// Decodes as a whole and token by token, as streams do; the two must agree.
absl::StatusOr<Json> Decode(const Tokenizer& tokenizer, const Json& request) {
  ASSIGN_OR_RETURN(const bool skip, Flag(request, "skip_special_tokens"));
  const Json& list = request["ids"];
  if (!list.is_array()) {
    return absl::InvalidArgumentError("request: ids is not an array");
  }
  std::vector<int32_t> ids;
  for (const Json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX) {
      return absl::InvalidArgumentError("request: an id is no token id");
    }
    ids.push_back(static_cast<int32_t>(id.get<uint64_t>()));
  }
  const std::string whole = tokenizer.Decode(ids, skip);
  Detokenizer detokenizer(&tokenizer, skip);
  std::string joined;
  for (const int32_t id : ids) joined += detokenizer.Append(id);
  joined += detokenizer.Flush();
  if (joined != whole) {
    return absl::InternalError(absl::StrCat("deltas differ: ", joined));
  }
  return Json(whole);
}

Json Info(const Tokenizer& tokenizer) {
  const auto id_or_null = [](std::optional<int32_t> id) {
    return id ? Json(*id) : Json();
  };
  return Json{{"vocab_size", tokenizer.vocab_size()},
              {"bos_id", id_or_null(tokenizer.bos_id())},
              {"eos_id", id_or_null(tokenizer.eos_id())},
              {"digest", HexString(tokenizer.digest())}};
}

absl::StatusOr<Json> Answer(const Tokenizer& tokenizer,
                            const std::string& line) {
  ASSIGN_OR_RETURN(const Json request, ParseJsonObject(line, "request"));
  if (FindJson(request, "text") || FindJson(request, "texts")) {
    return Encode(tokenizer, request);
  }
  if (FindJson(request, "ids")) return Decode(tokenizer, request);
  if (FindJson(request, "info")) return Info(tokenizer);
  return absl::InvalidArgumentError("request: none of text, texts, ids, info");
}

int Run(const std::string& model_dir) {
  const auto tokenizer = Tokenizer::Load(model_dir);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status().message() << "\n";
    return kExitBadInput;
  }
  for (std::string line; std::getline(std::cin, line);) {
    absl::StatusOr<Json> answer = Answer(**tokenizer, line);
    if (!answer.ok()) {
      answer = Json{{"error", std::string(answer.status().message())}};
    }
    // An error may quote bytes of the request that are not UTF-8.
    std::cout << answer->dump(-1, ' ', false, Json::error_handler_t::replace)
              << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace overfill

// All that nlohmann-json throws on was checked before.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: overfill-tokenize MODEL_DIR\n";
    return overfill::kExitBadInput;
  }
  return overfill::Run(argv[1]);
}
