// Answers tokenizer requests on stdin, one JSON object per line, for the
// comparison with other implementations. Not shipped.
//
//   tokenize_lines MODEL_DIR
//   {"text": T, "add_special_tokens": B, "parse_special": B}  ->  [ids]
//   {"ids": [ids], "skip_special_tokens": B}                  ->  "text"
//   {"time_text": T, "repeat": N}  ->  seconds of the fastest Encode
#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>

#include "base/json.h"
#include "engine/tokenizer/detokenizer.h"
#include "engine/tokenizer/tokenizer.h"

namespace overfill {
namespace {

Json EncodeLine(const Tokenizer& tokenizer, const Json& request) {
  Tokenizer::EncodeOptions options;
  options.add_special_tokens = request["add_special_tokens"].get<bool>();
  options.parse_special = request["parse_special"].get<bool>();
  const auto ids =
      tokenizer.Encode(request["text"].get_ref<const std::string&>(), options);
  if (!ids.ok()) return Json(ids.status().ToString());
  return Json(*ids);
}

// Decodes as a whole and token by token; the two must agree.
Json DecodeLine(const Tokenizer& tokenizer, const Json& request) {
  const auto ids = request["ids"].get<std::vector<int32_t>>();
  const bool skip = request["skip_special_tokens"].get<bool>();
  const std::string whole = tokenizer.Decode(ids, skip);
  Detokenizer detokenizer(&tokenizer, skip);
  std::string joined;
  for (const int32_t id : ids) joined += detokenizer.Append(id);
  joined += detokenizer.Flush();
  if (joined != whole) return Json("deltas differ: " + joined);
  return Json(whole);
}

Json TimeLine(const Tokenizer& tokenizer, const Json& request) {
  using Clock = std::chrono::steady_clock;
  const auto& text = request["time_text"].get_ref<const std::string&>();
  double best = 1e9;
  for (int i = request["repeat"].get<int>(); i > 0; --i) {
    const auto start = Clock::now();
    if (!tokenizer.Encode(text, {}).ok()) return Json();
    const std::chrono::duration<double> elapsed = Clock::now() - start;
    best = std::min(best, elapsed.count());
  }
  return Json(best);
}

int Run(const std::string& model_dir) {
  const auto tokenizer = Tokenizer::Load(model_dir);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  for (std::string line; std::getline(std::cin, line);) {
    const auto request = ParseJsonObject(line, "stdin");
    if (!request.ok()) {
      std::cerr << request.status() << "\n";
      return 1;
    }
    Json answer;
    if (request->contains("text")) {
      answer = EncodeLine(**tokenizer, *request);
    } else if (request->contains("ids")) {
      answer = DecodeLine(**tokenizer, *request);
    } else {
      answer = TimeLine(**tokenizer, *request);
    }
    std::cout << answer.dump() << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace overfill

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: tokenize_lines MODEL_DIR\n";
    return 2;
  }
  return overfill::Run(argv[1]);
}
