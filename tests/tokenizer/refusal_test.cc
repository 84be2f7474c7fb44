// tokenizer.json files that must be refused, and by which name.
#include <string>

#include "engine/tokenizer/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/tokenizer/test_util.h"

namespace overfill {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Change {
  const char* pointer;  // where in the file
  Json value;           // what is put there; null removes it
  const char* message;  // must be part of the error
};

void ExpectRefused(Family family, const Change& change) {
  Json json = FamilyJson(family);
  json[Json::json_pointer(change.pointer)] = change.value;
  EXPECT_THAT(LoadError(json),
              AllOf(StartsWith("tokenizer.json: "), HasSubstr(change.message)))
      << change.pointer << " = " << change.value.dump();
}

TEST(RefusalTest, Model) {
  const Change changes[] = {
      {"/model", nullptr, "model: must be an object"},
      {"/model/type", "WordPiece", "model: type \"WordPiece\""},
      {"/model/type", "Unigram", "model: type \"Unigram\""},
      {"/model/dropout", 0.1, "model: dropout"},
      {"/model/dropout", "x", "dropout must be"},
      {"/model/continuing_subword_prefix", "##",
       "model: continuing_subword_prefix"},
      {"/model/end_of_word_suffix", "</w>", "model: end_of_word_suffix"},
      {"/model/unk_token", "nothing", "model: unk_token \"nothing\""},
      {"/model/byte_fallback", true, "byte_fallback"},
      {"/model/vocab", nullptr, "model: vocab"},
      {"/model/vocab", Json::object(), "model: vocab"},
      {"/model/vocab", {"a", "b"}, "model: vocab"},
      {"/model/vocab/extra", 0, "id 0 belongs to both"},
      {"/model/vocab/extra", -1, "the id of \"extra\""},
      {"/model/vocab/extra", 1.5, "the id of \"extra\""},
      {"/model/vocab/extra", 1 << 24, "the id of \"extra\""},
      {"/model/vocab/extra", 18446744073709551615u, "the id of \"extra\""},
      {"/model/vocab/extra", (1 << 24) - 1, "ids go up to 16777215"},
      {"/model/merges", nullptr, "model: merges"},
      {"/model/merges/0", "one", "merges[0] must be"},
      {"/model/merges/0", "a b c", "merges[0] must be"},
      {"/model/merges/0", {"a", "b", "c"}, "merges[0] must be"},
      {"/model/merges/0", {"a", 1}, "merges[0] must be"},
      {"/model/merges/1", "a zzz", "merges[1]: \"zzz\" is not in"},
      {"/model/merges/1", "q q", "merges[1]: \"qq\" is not in"},
      {"/model/merges/1", "a ", "merges[1]: \"\" is not in"},
  };
  for (const Change& change : changes) ExpectRefused(Family::kLlama3, change);
}

TEST(RefusalTest, RepeatedMerge) {
  Json json = FamilyJson(Family::kGpt2);
  json["model"]["merges"][7] = json["model"]["merges"][3];
  EXPECT_THAT(LoadError(json), HasSubstr("are merged twice"));
}

TEST(RefusalTest, LostText) {
  Json json = FamilyJson(Family::kGpt2);
  // A byte that no merge uses.
  json["model"]["vocab"].erase("\u0100");
  EXPECT_THAT(LoadError(json), HasSubstr("the token of a byte"));
  json = FamilyJson(Family::kLlama2);
  json["model"]["vocab"].erase("<0x80>");
  EXPECT_THAT(LoadError(json), HasSubstr("\"<0x80>\""));
  json = FamilyJson(Family::kMetaspace);
  json["model"]["unk_token"] = nullptr;
  EXPECT_THAT(LoadError(json), HasSubstr("would be lost"));
}

TEST(RefusalTest, AddedTokens) {
  const Change changes[] = {
      {"/added_tokens", "x", "added_tokens: must be a list"},
      {"/added_tokens/0", 1, "added_tokens: every element"},
      {"/added_tokens/0/content", nullptr, "added_tokens: a token has no"},
      {"/added_tokens/0/content", "", "added_tokens: a token has no"},
      {"/added_tokens/0/content", std::string(2000, 'x'), "longer than 1024"},
      {"/added_tokens/0/id", nullptr, "has no id"},
      {"/added_tokens/0/id", 5, "but that is the id of"},
      {"/added_tokens/0/id", 1 << 24, "must be an integer"},
      {"/added_tokens/0/content", "a", "its id in the vocabulary is"},
      {"/added_tokens/0/lstrip", "yes", "lstrip must be"},
  };
  for (const Change& change : changes) ExpectRefused(Family::kLlama3, change);
  Json json = FamilyJson(Family::kLlama3);
  json["added_tokens"].push_back(json["added_tokens"][0]);
  EXPECT_THAT(LoadError(json), HasSubstr("is listed twice"));
}

TEST(RefusalTest, ComponentsThatAreNotSupported) {
  for (const std::string type :
       {"NFKC", "NFD", "Lowercase", "Strip", "Precompiled", "Nmt"}) {
    Json json = FamilyJson(Family::kQwen3);
    json["normalizer"] = {{"type", type}};
    EXPECT_THAT(LoadError(json), HasSubstr("normalizer: \"" + type + "\""));
  }
  const Change changes[] = {
      {"/normalizer", "NFC", "normalizer: must be an object"},
      {"/normalizer", Json::object(), "normalizer: has no type"},
      {"/pre_tokenizer",
       {{"type", "Whitespace"}},
       "pre_tokenizer: \"Whitespace\""},
      {"/pre_tokenizer",
       {{"type", "BertPreTokenizer"}},
       "pre_tokenizer: \"BertPreTokenizer\""},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "(a+)+$",
       "the expression \"(a+)+$\""},
      {"/pre_tokenizer/pretokenizers/0/pattern",
       {{"String", " "}},
       "only a pattern of kind Regex"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "MergedWithNext",
       "behavior \"MergedWithNext\""},
      {"/pre_tokenizer/pretokenizers/0/invert", true, "inverted"},
      {"/pre_tokenizer/pretokenizers/-",
       {{"type", "ByteLevel"}},
       "behind ByteLevel"},
      {"/post_processor",
       {{"type", "BertProcessing"}},
       "post_processor: \"BertProcessing\""},
      {"/decoder", nullptr, "decoder: "},
      {"/decoder", {{"type", "WordPiece"}}, "decoder: \"WordPiece\""},
      {"/decoder", {{"type", "Fuse"}}, "decoder: must be ByteLevel"},
      {"/truncation", {{"max_length", 512}}, "truncation: "},
      {"/padding", {{"strategy", {{"Fixed", 8}}}}, "padding: "},
      {"/padding",
       {{"strategy", "BatchLongest"}, {"pad_to_multiple_of", 8}},
       "padding: "},
      {"/version", "2.0", "version: \"2.0\""},
  };
  for (const Change& change : changes) ExpectRefused(Family::kQwen3, change);
}

TEST(RefusalTest, PostProcessorTemplates) {
  const char* const single = "/post_processor/processors/1/single";
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const Json other = {{"Sequence", {{"id", "B"}, {"type_id", 0}}}};
  const Json stranger = {{"SpecialToken", {{"id", "<x>"}, {"type_id", 0}}}};
  const Change changes[] = {
      {single, Json::array(), "leaves the text out"},
      {single, {text, text}, "once"},
      {single, Json::array({other}), "once"},
      {single, {stranger, text}, "special_tokens has no \"<x>\""},
      {"/post_processor/processors/1/special_tokens/<|begin_of_text|>/ids/0",
       99999, "is not a token"},
  };
  for (const Change& change : changes) ExpectRefused(Family::kLlama3, change);
}

TEST(RefusalTest, CharacterLevelComponents) {
  const Change changes[] = {
      {"/decoder", {{"type", "ByteLevel"}}, "decoder: is ByteLevel, but"},
      {"/decoder/decoders/3/stop", 1, "the end of a text"},
      {"/decoder/decoders/3/content", "ab", "content must be one character"},
      {"/decoder/decoders/0/pattern", {{"Regex", "."}}, "kind Regex"},
      {"/decoder/decoders/1", {{"type", "Fuse"}}, "lacks the ByteFallback"},
      {"/decoder/decoders/2",
       {{"type", "Strip"}, {"content", " "}},
       "\"Strip\" at this place"},
      {"/normalizer/normalizers/1/pattern", {{"Regex", " "}}, "kind Regex"},
      {"/normalizer/normalizers/1/pattern",
       {{"String", ""}},
       "pattern must not be empty"},
      {"/normalizer/normalizers/1/content", std::string(40, 'x'),
       "times as long"},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "ab"}},
       "replacement must be one character"},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "x"}},
       "prepend_scheme \"x\""},
      {"/pre_tokenizer",
       {{"type", "ByteLevel"}},
       "ByteLevel with the model's byte_fallback"},
  };
  for (const Change& change : changes) ExpectRefused(Family::kLlama2, change);
}

TEST(RefusalTest, Config) {
  const Json json = FamilyJson(Family::kLlama3);
  EXPECT_THAT(LoadError(json, {{"eos_token", "<none>"}}),
              AllOf(HasSubstr("tokenizer_config.json"),
                    HasSubstr("eos_token \"<none>\" is not a token")));
  EXPECT_THAT(LoadError(json, {{"bos_token", 3}}),
              HasSubstr("bos_token must be a token"));
  const auto with_table = [&](const char* id, const char* content) {
    return Json{{"added_tokens_decoder", {{id, {{"content", content}}}}}};
  };
  const auto id = std::to_string(json["added_tokens"][1]["id"].get<int>());
  EXPECT_EQ(LoadError(json, with_table(id.c_str(), "<|end_of_text|>")), "");
  EXPECT_THAT(LoadError(json, with_table(id.c_str(), "<other>")),
              HasSubstr("added_tokens_decoder: says that id"));
  EXPECT_THAT(LoadError(json, with_table("99999", "<new>")),
              HasSubstr("it is no token"));
}

TEST(RefusalTest, PaddingThatChangesNothingIsAccepted) {
  Json json = FamilyJson(Family::kQwen3);
  json["padding"] = {{"strategy", "BatchLongest"},
                     {"direction", "Left"},
                     {"pad_to_multiple_of", nullptr},
                     {"pad_id", 0}};
  EXPECT_EQ(LoadError(json), "");
}

TEST(RefusalTest, ControlCharactersDoNotReachTheMessage) {
  Json json = FamilyJson(Family::kQwen3);
  json["normalizer"] = {{"type", "x\ny\u001B[31m"}};
  const std::string error = LoadError(json);
  EXPECT_THAT(error, HasSubstr("x\\ny\\x1b[31m"));
}

}  // namespace
}  // namespace overfill
