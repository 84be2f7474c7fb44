#include "tests/tokenizer/tokenizer_files.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "engine/tokenizer/byte_level.h"
#include "engine/tokenizer/pretokenizer.h"
#include "engine/tokenizer/unicode.h"

namespace overfill {
namespace {

constexpr char kSpaceMark[] = "\u2581";
constexpr int kNumMerges = 400;

constexpr char kLlama3Regex[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?)"
    R"([^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwenRegex[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?)"
    R"([^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kTekkenRegex[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?)"
    R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?)"
    R"([^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kO200kRegex[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

using Random = std::mt19937_64;

template <typename Container>
const auto& Pick(const Container& from, Random& random) {
  return from[random() % std::size(from)];
}

// Each script's words are made of its own few syllables, so that training has
// something to merge.
std::string MakeWord(Random& random) {
  static const std::vector<std::string> kScripts[] = {
      {"the", "and", "ing", "er", "on", "re", "at", "en", "ti", "or", "is"},
      {"The", "You", "HTTP", "a", "I", "St", "Mac", "un", "able", "ness"},
      {"é", "è", "ça", "ñ", "ü", "ß", "å", "ō", "ł", "ž", "e\u0301", "n\u0303"},
      {"при", "вет", "мо", "ло", "ко", "Ж", "ъ", "ё", "ски", "ий"},
      {"κα", "λη", "μέ", "ρα", "Ω", "ς", "ἀ"},
      {"שלום", "ה", "ו", "של", "ת"},
      {"ال", "سلا", "م", "و", "في", "ة", "\u064E", "\u0651"},
      {"नम", "स्", "ते", "है", "का", "ी"},
      {"สวัส", "ดี", "ครับ", "ที่", "ไม่"},
      {"안녕", "하세요", "은", "이다", "한국"},
      {"日本", "語", "中文", "的", "我", "们", "。", "ひら", "がな", "カタ"},
      {"😀", "🎉", "👩\u200D👩\u200D👧", "❤\uFE0F", "👍🏽", "🇫🇷", "e\u0301"},
      {"0", "1", "42", "007", "3.14", "1,000", "2024", "½", "٣", "Ⅷ"},
      {"for(", "int ", "x=", "();", "{}", "->", "//", "/*", "==", "\"", "</"},
      {"don't", "I'll", "WE'RE", "it's", "they've", "'", "''", "o'clock"},
      {"!", "?", "...", "-", "—", "$", "%", "#", "@", "_", "\u00A0", "\u3000"},
  };
  // English is frequent, as it is in real vocabularies.
  const auto& syllables =
      random() % 3 == 0 ? kScripts[0] : Pick(kScripts, random);
  std::string word;
  for (size_t i = random() % 4 + 1; i > 0; --i) word += Pick(syllables, random);
  return word;
}

// A vocabulary under construction: tokens, and the merges that made them.
struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<std::pair<std::string, std::string>> merges;
  std::map<std::string, int> ids;

  void Add(const std::string& token) {
    if (ids.emplace(token, tokens.size()).second) tokens.push_back(token);
  }
};

// The most frequent pairs become merges, ties in order of their spelling.
void Train(const std::map<std::vector<std::string>, int>& word_counts,
           Vocabulary* vocabulary) {
  std::vector<std::pair<std::vector<std::string>, int>> words(
      word_counts.begin(), word_counts.end());
  for (int i = 0; i < kNumMerges; ++i) {
    std::map<std::pair<std::string, std::string>, int> pairs;
    for (const auto& [word, count] : words) {
      for (size_t j = 0; j + 1 < word.size(); ++j) {
        pairs[{word[j], word[j + 1]}] += count;
      }
    }
    if (pairs.empty()) return;
    const auto best = std::max_element(
        pairs.begin(), pairs.end(),
        [](const auto& a, const auto& b) { return a.second < b.second; });
    const auto pair = best->first;
    const std::string joined = pair.first + pair.second;
    vocabulary->merges.push_back(pair);
    vocabulary->Add(joined);
    for (auto& [word, count] : words) {
      for (size_t j = 0; j + 1 < word.size(); ++j) {
        if (word[j] != pair.first || word[j + 1] != pair.second) continue;
        word[j] = joined;
        word.erase(word.begin() + j + 1);
      }
    }
  }
}

std::vector<std::string> Characters(absl::string_view text) {
  std::vector<std::string> result;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    NextChar(text, &pos);
    result.emplace_back(text.substr(begin, pos - begin));
  }
  return result;
}

std::string ByteSpelling(uint8_t byte) {
  std::string result;
  AppendUtf8(ByteLevelChar(byte), &result);
  return result;
}

SplitPattern PatternOf(Family family) {
  switch (family) {
    case Family::kLlama3:
      return SplitPattern::kLlama3;
    case Family::kQwen2:
    case Family::kQwen3:
      return SplitPattern::kQwen2;
    case Family::kTekken:
      return SplitPattern::kTekken;
    case Family::kO200k:
      return SplitPattern::kO200k;
    default:
      return SplitPattern::kGpt2;
  }
}

void TrainByteLevel(Family family, absl::string_view text,
                    Vocabulary* vocabulary) {
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary->Add(ByteSpelling(static_cast<uint8_t>(byte)));
  }
  std::map<std::vector<std::string>, int> words;
  for (size_t pos = 0; pos < text.size();) {
    const size_t end = WordEnd(PatternOf(family), text, pos);
    std::vector<std::string> word;
    for (; pos < end; ++pos) {
      word.push_back(ByteSpelling(static_cast<uint8_t>(text[pos])));
    }
    ++words[word];
  }
  Train(words, vocabulary);
}

void TrainCharLevel(Family family, absl::string_view text,
                    Vocabulary* vocabulary) {
  for (const char* token : {"<unk>", "<s>", "</s>"}) vocabulary->Add(token);
  for (int byte = 0; byte < 256 && family != Family::kMetaspace; ++byte) {
    vocabulary->Add(absl::StrFormat("<0x%02X>", byte));
  }
  std::map<std::vector<std::string>, int> words;
  std::vector<std::string> word;
  const std::string marked = absl::StrReplaceAll(text, {{" ", kSpaceMark}});
  for (const std::string& c : Characters(marked)) {
    // Rare scripts stay out of the alphabet, so that bytes are needed.
    const bool is_rare = c.size() == 4 || (c >= "ぁ" && c <= "鿿");
    if (c == kSpaceMark || is_rare) {
      ++words[word];
      word.clear();
    }
    if (is_rare) continue;
    vocabulary->Add(c);
    word.push_back(c);
  }
  // What real vocabularies of this kind have: runs of spaces, and pieces that
  // could be merged to the text of a special token.
  ++words[word];
  Train(words, vocabulary);
  using Pair = std::pair<std::string, std::string>;
  for (const Pair& pair : {Pair("<", "s"), Pair("<s", ">"), Pair("/", "s"),
                           Pair("<", "/"), Pair("</", "s"), Pair("</s", ">")}) {
    const auto& merges = vocabulary->merges;
    if (std::count(merges.begin(), merges.end(), pair) > 0) continue;
    vocabulary->Add(pair.first);
    vocabulary->Add(pair.second);
    vocabulary->Add(pair.first + pair.second);
    vocabulary->merges.push_back(pair);
  }
  std::string spaces = kSpaceMark;
  for (int i = 0; i < 3; ++i) {
    vocabulary->merges.emplace_back(spaces, spaces);
    spaces += spaces;
    vocabulary->Add(spaces);
  }
}

Json Added(int id, const std::string& content, bool special) {
  return {{"id", id},          {"content", content}, {"single_word", false},
          {"lstrip", false},   {"rstrip", false},    {"normalized", false},
          {"special", special}};
}

Json ByteLevelJson(bool add_prefix_space, bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

Json SplitJson(const char* regex, bool inverted) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", inverted ? "Removed" : "Isolated"},
          {"invert", inverted}};
}

Json SequenceJson(const char* key, std::vector<Json> steps) {
  return {{"type", "Sequence"}, {key, std::move(steps)}};
}

Json TemplateJson(const std::vector<std::string>& before,
                  const std::vector<std::string>& after, const Json& ids) {
  Json single = Json::array();
  Json tokens = Json::object();
  const auto add = [&](const std::string& token) {
    single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    tokens[token] = {
        {"id", token}, {"ids", {ids.at(token)}}, {"tokens", {token}}};
  };
  for (const std::string& token : before) add(token);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  for (const std::string& token : after) add(token);
  Json pair = single;
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", tokens}};
}

Json PreTokenizerJson(Family family) {
  const auto metaspace = [](const char* scheme, bool split) {
    return Json{{"type", "Metaspace"},
                {"replacement", kSpaceMark},
                {"prepend_scheme", scheme},
                {"split", split}};
  };
  const Json bytes = ByteLevelJson(false, false);
  switch (family) {
    case Family::kGpt2:
      return ByteLevelJson(false, true);
    case Family::kOddByteLevel:
      return ByteLevelJson(true, true);
    case Family::kLlama3:
      return SequenceJson("pretokenizers",
                          {SplitJson(kLlama3Regex, false), bytes});
    case Family::kQwen2:
    case Family::kQwen3:
      return SequenceJson("pretokenizers",
                          {SplitJson(kQwenRegex, false), bytes});
    case Family::kTekken:
      return SequenceJson("pretokenizers",
                          {SplitJson(kTekkenRegex, false), bytes});
    case Family::kO200k:
      return SequenceJson("pretokenizers",
                          {SplitJson(kO200kRegex, true), bytes});
    case Family::kSmolLm:
      return SequenceJson("pretokenizers",
                          {{{"type", "Digits"}, {"individual_digits", true}},
                           ByteLevelJson(false, true)});
    case Family::kMistral:
      return metaspace("first", false);
    case Family::kMetaspace:
      return metaspace("always", true);
    case Family::kLlama2:
    case Family::kOddCharLevel:
      return nullptr;
  }
  return nullptr;
}

Json NormalizerJson(Family family) {
  switch (family) {
    case Family::kQwen2:
    case Family::kQwen3:
      return {{"type", "NFC"}};
    case Family::kLlama2:
    case Family::kOddCharLevel:
      return SequenceJson("normalizers",
                          {{{"type", "Prepend"}, {"prepend", kSpaceMark}},
                           {{"type", "Replace"},
                            {"pattern", {{"String", " "}}},
                            {"content", kSpaceMark}}});
    default:
      return nullptr;
  }
}

Json DecoderJson(Family family) {
  if (IsByteLevel(family)) return ByteLevelJson(true, true);
  std::vector<Json> steps = {{{"type", "Replace"},
                              {"pattern", {{"String", kSpaceMark}}},
                              {"content", " "}}};
  if (family != Family::kMetaspace) {
    steps.push_back({{"type", "ByteFallback"}});
  }
  steps.push_back({{"type", "Fuse"}});
  steps.push_back(
      {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return SequenceJson("decoders", std::move(steps));
}

struct AddedSpec {
  const char* content;
  bool special;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false;
};

std::vector<AddedSpec> AddedSpecs(Family family) {
  switch (family) {
    case Family::kLlama3:
      return {
          {"<|begin_of_text|>", true}, {"<|end_of_text|>", true},
          {"<|eot_id|>", true},        {"<|start_header_id|>", true},
          {"<|end_header_id|>", true}, {"<|reserved_special_token_0|>", true}};
    case Family::kQwen2:
    case Family::kQwen3:
      return {{"<|endoftext|>", true}, {"<|im_start|>", true},
              {"<|im_end|>", true},    {"<tool_call>", false},
              {"</tool_call>", false}, {"<think>", false},
              {"</think>", false}};
    case Family::kOddByteLevel:
    case Family::kOddCharLevel:
      return {{"<left>", true, false, true},
              {"<right>", true, false, false, true},
              {"<both>", false, false, true, true},
              {"word", false, true},
              {"Norm", false, false, false, false, true},
              {"<mask>", true, true, true, true},
              {"((", false},
              {"((word", false},
              {"<|x|>", true}};
    case Family::kGpt2:
    case Family::kSmolLm:
    case Family::kTekken:
    case Family::kO200k:
      return {{"<|endoftext|>", true}};
    default:
      return {{"<unk>", true},
              {"<s>", true},
              {"</s>", true},
              {"[INST]", true},
              {"[TOOL]", false}};
  }
}

Json AddedTokensJson(Family family, const Vocabulary& vocabulary) {
  Json result = Json::array();
  auto next_id = static_cast<int>(vocabulary.tokens.size());
  for (const AddedSpec& added : AddedSpecs(family)) {
    const auto known = vocabulary.ids.find(added.content);
    const int id = known == vocabulary.ids.end() ? next_id++ : known->second;
    Json json = Added(id, added.content, added.special);
    json["single_word"] = added.single_word;
    json["lstrip"] = added.lstrip;
    json["rstrip"] = added.rstrip;
    json["normalized"] = added.normalized;
    result.push_back(json);
  }
  return result;
}

Json PostProcessorJson(Family family, const Json& ids) {
  switch (family) {
    case Family::kLlama3:
      return SequenceJson("processors",
                          {ByteLevelJson(true, true),
                           TemplateJson({"<|begin_of_text|>"}, {}, ids)});
    case Family::kOddByteLevel:
      return TemplateJson({"<left>", "<|x|>"}, {"<right>"}, ids);
    case Family::kLlama2:
    case Family::kMistral:
    case Family::kMetaspace:
      return TemplateJson({"<s>"}, {}, ids);
    case Family::kTekken:
    case Family::kOddCharLevel:
      return nullptr;
    default:
      return ByteLevelJson(false, false);
  }
}

// Newer files spell merges as pairs.
bool MergesArePairs(Family family) {
  return family == Family::kQwen3 || family == Family::kMistral ||
         family == Family::kTekken;
}

}  // namespace

const char* FamilyName(Family family) {
  switch (family) {
    case Family::kGpt2:
      return "gpt2";
    case Family::kLlama3:
      return "llama3";
    case Family::kQwen2:
      return "qwen2";
    case Family::kQwen3:
      return "qwen3";
    case Family::kSmolLm:
      return "smollm";
    case Family::kTekken:
      return "tekken";
    case Family::kO200k:
      return "o200k";
    case Family::kLlama2:
      return "llama2";
    case Family::kMistral:
      return "mistral";
    case Family::kMetaspace:
      return "metaspace";
    case Family::kOddByteLevel:
      return "odd_byte_level";
    case Family::kOddCharLevel:
      return "odd_char_level";
  }
  return "";
}

bool IsByteLevel(Family family) {
  return family != Family::kLlama2 && family != Family::kMistral &&
         family != Family::kMetaspace && family != Family::kOddCharLevel;
}

std::string MakeText(uint64_t seed, size_t num_words) {
  static const char* const kGaps[] = {" ", " ",  " ",  " ",  " ",      " ",
                                      "",  "  ", "\n", "\t", "\n\n  ", "\r\n"};
  Random random(seed);
  std::string text;
  for (size_t i = 0; i < num_words; ++i) {
    text += MakeWord(random);
    text += Pick(kGaps, random);
  }
  return text;
}

Json MakeTokenizerJson(Family family, uint64_t seed) {
  const std::string text = MakeText(seed, 2000);
  Vocabulary vocabulary;
  if (IsByteLevel(family)) {
    TrainByteLevel(family, text, &vocabulary);
  } else {
    TrainCharLevel(family, text, &vocabulary);
  }
  Json vocab = Json::object();
  for (const auto& [token, id] : vocabulary.ids) vocab[token] = id;
  Json merges = Json::array();
  for (const auto& [left, right] : vocabulary.merges) {
    if (MergesArePairs(family)) {
      merges.push_back({left, right});
    } else {
      merges.push_back(absl::StrCat(left, " ", right));
    }
  }
  const Json added = AddedTokensJson(family, vocabulary);
  Json special_ids = Json::object();
  for (const Json& token : added) {
    special_ids[token["content"].get<std::string>()] = token["id"];
  }
  const bool has_unk = !IsByteLevel(family);
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", NormalizerJson(family)},
          {"pre_tokenizer", PreTokenizerJson(family)},
          {"post_processor", PostProcessorJson(family, special_ids)},
          {"decoder", DecoderJson(family)},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", has_unk ? Json("<unk>") : Json(nullptr)},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", has_unk},
            {"byte_fallback", has_unk && family != Family::kMetaspace},
            {"ignore_merges", family == Family::kLlama3},
            {"vocab", vocab},
            {"merges", merges}}}};
}

Json MakeTokenizerConfig(Family family) {
  switch (family) {
    case Family::kLlama3:
      return {{"bos_token", "<|begin_of_text|>"}, {"eos_token", "<|eot_id|>"}};
    case Family::kQwen2:
    case Family::kQwen3:
      return {{"bos_token", nullptr}, {"eos_token", "<|im_end|>"}};
    case Family::kOddByteLevel:
      return Json::object();
    case Family::kOddCharLevel:
      return {{"eos_token", {{"content", "</s>"}, {"lstrip", false}}}};
    default:
      break;
  }
  if (IsByteLevel(family)) return {{"eos_token", "<|endoftext|>"}};
  return {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
}

}  // namespace overfill
