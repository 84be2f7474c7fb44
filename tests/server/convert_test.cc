#include "server/convert.h"

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/grpc_server.h"
#include "tests/server/test_converter.h"

namespace overfill {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

v1::GenerateRequest Good() {
  v1::GenerateRequest proto;
  proto.mutable_tokens()->add_ids(5);
  return proto;
}

absl::StatusOr<Request> Convert(const v1::GenerateRequest& proto,
                                ConvertOptions options = TestConvertOptions()) {
  return TestConverter(std::move(options))->ToRequest(proto, SteadyTime());
}

// The fields that `edit` makes wrong; fails when the status is another.
template <typename Edit>
std::vector<std::string> BadFields(Edit edit) {
  v1::GenerateRequest proto = Good();
  edit(proto);
  const auto request = Convert(proto);
  EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument);
  const grpc::Status status = ToGrpcStatus(request.status());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const std::vector<std::string> fields = FieldsOf(status);
  EXPECT_FALSE(fields.empty());
  if (!fields.empty()) {
    EXPECT_THAT(status.error_message(), HasSubstr(fields.front()));
  }
  return fields;
}

#define EXPECT_BAD(field, statement)                                \
  EXPECT_THAT(BadFields([](v1::GenerateRequest& r) { statement; }), \
              ElementsAre(field))

TEST(ConvertTest, GoodRequestPasses) {
  const auto request = Convert(Good());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_THAT(request->prompt_ids, ElementsAre(5));
  EXPECT_EQ(request->path, DecodePath::kTwoStage);
  EXPECT_EQ(request->stop_rules.max_tokens, kTestContext - 1);
  EXPECT_THAT(request->stop_rules.eos_ids, ElementsAre(0, 1));
  EXPECT_EQ(request->sampling.temperature, 1);
  EXPECT_EQ(request->sampling.num_logprobs, -1);
  EXPECT_EQ(request->sampling.seed, 77u);
  EXPECT_EQ(request->request_id, "000000000000004d000000000000004d");
}

TEST(ConvertTest, BadPrompts) {
  EXPECT_BAD("prompt", r.clear_tokens());
  EXPECT_BAD("text", r.set_text(""));
  EXPECT_BAD("tokens.ids", r.mutable_tokens()->clear_ids());
  EXPECT_BAD("tokens.ids[1]", r.mutable_tokens()->add_ids(-1));
  EXPECT_BAD("tokens.ids[1]", r.mutable_tokens()->add_ids(1 << 30));
  EXPECT_BAD("tokens.ids[1]",
             r.mutable_tokens()->add_ids(TestTokenizer().vocab_size()));
  EXPECT_BAD(
      "tokens.ids",
      for (int i = 0; i < kTestContext - 1; ++i) r.mutable_tokens()->add_ids(
          5));
  EXPECT_BAD("text", r.set_text(std::string(4000, 'x')));
  // Longer than any text of so many tokens; refused before it is tokenized.
  EXPECT_BAD("text", r.set_text(std::string(1 << 20, ' ')));
  EXPECT_BAD("text", r.set_text(std::string((1 << 20) + 1, 'a')));
}

TEST(ConvertTest, TextThatIsNoToken) {
  // A tokenizer that drops spaces, as a normalizer may.
  Json json = MakeTokenizerJson(Family::kLlama2, 1);
  json["normalizer"] = {
      {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", ""}};
  const auto tokenizer = Tokenizer::FromJson(json.dump(), "", "test");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ConvertOptions options = TestConvertOptions();
  options.tokenizer = tokenizer->get();
  v1::GenerateRequest proto;
  proto.set_text("   ");
  proto.set_add_special_tokens(false);
  EXPECT_THAT(FieldsOf(ToGrpcStatus(Convert(proto, options).status())),
              ElementsAre("text"));
  proto.set_text(" a ");
  EXPECT_TRUE(Convert(proto, options).ok());
}

TEST(ConvertTest, LongestPromptLeavesOneToken) {
  v1::GenerateRequest proto = Good();
  for (int i = 0; i < kTestContext - 2; ++i) proto.mutable_tokens()->add_ids(5);
  const auto request = Convert(proto);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->stop_rules.max_tokens, 1);
}

TEST(ConvertTest, BadSampling) {
  for (const float bad : {-1.0f, kNan, kInf, -kInf, -1e-30f}) {
    EXPECT_THAT(BadFields([bad](auto& r) {
                  r.mutable_sampling()->set_temperature(bad);
                }),
                ElementsAre("sampling.temperature"));
  }
  for (const float bad : {0.0f, -0.5f, 1.001f, kNan, kInf}) {
    EXPECT_THAT(
        BadFields([bad](auto& r) { r.mutable_sampling()->set_top_p(bad); }),
        ElementsAre("sampling.top_p"));
  }
  for (const float bad : {-0.1f, 1.1f, kNan}) {
    EXPECT_THAT(
        BadFields([bad](auto& r) { r.mutable_sampling()->set_min_p(bad); }),
        ElementsAre("sampling.min_p"));
  }
  EXPECT_BAD("sampling.top_k", r.mutable_sampling()->set_top_k(-1));
  for (const float bad : {0.0f, -1.0f, 1e-20f, 101.0f, kNan, kInf}) {
    EXPECT_THAT(BadFields([bad](auto& r) {
                  r.mutable_sampling()->set_repetition_penalty(bad);
                }),
                ElementsAre("sampling.repetition_penalty"));
  }
  for (const float bad : {2.01f, -2.01f, kNan, kInf}) {
    EXPECT_THAT(BadFields([bad](auto& r) {
                  r.mutable_sampling()->set_presence_penalty(bad);
                }),
                ElementsAre("sampling.presence_penalty"));
    EXPECT_THAT(BadFields([bad](auto& r) {
                  r.mutable_sampling()->set_frequency_penalty(bad);
                }),
                ElementsAre("sampling.frequency_penalty"));
  }
}

TEST(ConvertTest, BadLogitBias) {
  const auto bias = [](v1::GenerateRequest& r, int32_t id, float value) {
    (*r.mutable_sampling()->mutable_logit_bias())[id] = value;
  };
  EXPECT_THAT(BadFields([&](auto& r) { bias(r, -3, 1); }),
              ElementsAre("sampling.logit_bias[-3]"));
  EXPECT_THAT(BadFields([&](auto& r) { bias(r, 1 << 20, 1); }),
              ElementsAre("sampling.logit_bias[1048576]"));
  for (const float bad : {100.5f, -100.5f, kNan, kInf}) {
    EXPECT_THAT(BadFields([&](auto& r) { bias(r, 4, bad); }),
                ElementsAre("sampling.logit_bias[4]"));
  }
  EXPECT_THAT(BadFields([&](auto& r) {
                for (int i = 0; i <= kMaxLogitBiases; ++i) bias(r, i, 1);
              }),
              ElementsAre("sampling.logit_bias"));
}

TEST(ConvertTest, BadLimits) {
  EXPECT_BAD("limits.max_tokens", r.mutable_limits()->set_max_tokens(0));
  EXPECT_BAD("limits.max_tokens", r.mutable_limits()->set_max_tokens(-5));
  EXPECT_BAD("limits.max_tokens",
             r.mutable_limits()->set_max_tokens(kTestContext));
  EXPECT_BAD("limits.max_tokens", r.mutable_limits()->set_max_tokens(
                                      std::numeric_limits<int32_t>::max()));
  EXPECT_BAD("limits.min_tokens", r.mutable_limits()->set_min_tokens(-1));
  EXPECT_BAD("limits.min_tokens", r.mutable_limits()->set_max_tokens(3);
             r.mutable_limits()->set_min_tokens(4));
  EXPECT_BAD("limits.min_tokens",
             r.mutable_limits()->set_min_tokens(kTestContext));
  EXPECT_BAD("limits.stop",
             for (int i = 0; i < 10000; ++i) r.mutable_limits()->add_stop("x"));
  EXPECT_BAD("limits.stop[0]",
             r.mutable_limits()->add_stop(std::string(1 << 20, 'x')));
  EXPECT_BAD("limits.stop[1]", r.mutable_limits()->add_stop("x");
             r.mutable_limits()->add_stop(""));
  EXPECT_BAD("limits.stop_token_ids[0]",
             r.mutable_limits()->add_stop_token_ids(-1));
  EXPECT_BAD("limits.stop_token_ids[0]",
             r.mutable_limits()->add_stop_token_ids(1 << 25));
  EXPECT_BAD(
      "limits.stop_token_ids",
      for (int i = 0; i < 65; ++i) r.mutable_limits()->add_stop_token_ids(1));
}

TEST(ConvertTest, BadOtherFields) {
  EXPECT_BAD("n", r.set_n(5));
  EXPECT_BAD("n", r.set_n(1u << 31));
  EXPECT_BAD("n", r.set_n(4000000000u));
  EXPECT_BAD("path", r.set_path(static_cast<v1::DecodePath>(4)));
  EXPECT_BAD("path", r.set_path(static_cast<v1::DecodePath>(-1)));
  EXPECT_BAD("priority", r.set_priority(101));
  EXPECT_BAD("priority", r.set_priority(-101));
  EXPECT_BAD("request_id", r.set_request_id(std::string(129, 'x')));
  EXPECT_BAD("request_id", r.set_request_id("a\nb"));
  EXPECT_BAD("request_id", r.set_request_id("gr\xC3\xBC\xC3\x9F"));
  EXPECT_BAD("output.logprobs", r.mutable_output()->set_logprobs(-1));
  EXPECT_BAD("output.logprobs", r.mutable_output()->set_logprobs(21));
}

TEST(ConvertTest, NoNumberOfAnswersMeansOne) {
  const auto converter = TestConverter();
  v1::GenerateRequest proto = Good();
  for (const auto& [n, want] :
       std::vector<std::pair<uint32_t, int32_t>>{{0, 1}, {1, 1}, {4, 4}}) {
    proto.set_n(n);
    const auto request = converter->ToRequest(proto, SteadyTime());
    ASSERT_TRUE(request.ok()) << request.status();
    EXPECT_EQ(request->n, want);
  }
}

TEST(ConvertTest, ManyFaultsAreAllNamedUpToABound) {
  EXPECT_THAT(BadFields([](auto& r) {
                r.set_n(5);
                r.set_priority(999);
                r.mutable_sampling()->set_top_p(0);
              }),
              UnorderedElementsAre("n", "priority", "sampling.top_p"));
  EXPECT_EQ(BadFields([](auto& r) {
              for (int i = 0; i < 50; ++i) r.mutable_tokens()->add_ids(-1);
            }).size(),
            Violations::kMaxKept);
}

TEST(ConvertTest, ErrorsNeverHoldWhatTheClientSent) {
  v1::GenerateRequest proto = Good();
  proto.set_request_id("secret\x01");
  proto.mutable_limits()->add_stop(std::string(2000, 'S'));
  const grpc::Status status = ToGrpcStatus(Convert(proto).status());
  EXPECT_THAT(status.error_message() + status.error_details(),
              Not(HasSubstr("secret")));
  EXPECT_THAT(status.error_details(), Not(HasSubstr("SSSS")));
  EXPECT_LT(status.error_details().size(), 4096u);
}

TEST(ConvertTest, AllFieldsReachTheRequest) {
  v1::GenerateRequest proto = Good();
  proto.set_request_id("mine");
  proto.set_n(1);
  proto.set_path(v1::DECODE_PATH_PRUNED);
  proto.set_priority(-100);
  v1::Sampling* s = proto.mutable_sampling();
  s->set_temperature(0.5);
  s->set_top_p(0.25);
  s->set_top_k(3);
  s->set_min_p(0.125);
  s->set_repetition_penalty(1.5);
  s->set_presence_penalty(-2);
  s->set_frequency_penalty(2);
  s->set_seed(0);
  (*s->mutable_logit_bias())[7] = -100;
  v1::Limits* l = proto.mutable_limits();
  l->set_max_tokens(10);
  l->set_min_tokens(2);
  l->add_stop("end");
  l->add_stop_token_ids(9);
  l->set_include_stop(true);
  proto.mutable_output()->set_logprobs(0);
  const auto request = Convert(proto);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->request_id, "mine");
  EXPECT_EQ(request->path, DecodePath::kPruned);
  EXPECT_EQ(request->priority, -100);
  const SamplingParams& p = request->sampling;
  EXPECT_EQ(p.temperature, 0.5f);
  EXPECT_EQ(p.top_p, 0.25f);
  EXPECT_EQ(p.top_k, 3);
  EXPECT_EQ(p.min_p, 0.125f);
  EXPECT_EQ(p.repetition_penalty, 1.5f);
  EXPECT_EQ(p.presence_penalty, -2);
  EXPECT_EQ(p.frequency_penalty, 2);
  EXPECT_EQ(p.seed, 0u);
  EXPECT_EQ(p.num_logprobs, 0);
  EXPECT_THAT(p.logit_bias, ElementsAre(std::pair(7, -100.0f)));
  EXPECT_EQ(p.min_tokens, 2);
  EXPECT_THAT(p.min_tokens_banned_ids, ElementsAre(0, 1, 9));
  EXPECT_EQ(request->stop_rules.max_tokens, 10);
  EXPECT_THAT(request->stop_rules.stop, ElementsAre("end"));
  EXPECT_THAT(request->stop_rules.stop_token_ids, ElementsAre(9));
  EXPECT_TRUE(request->stop_rules.include_stop);
}

TEST(ConvertTest, IgnoreEosLeavesStopIds) {
  v1::GenerateRequest proto = Good();
  proto.mutable_limits()->set_ignore_eos(true);
  proto.mutable_limits()->set_min_tokens(1);
  proto.mutable_limits()->add_stop_token_ids(9);
  const auto request = Convert(proto);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_TRUE(request->stop_rules.eos_ids.empty());
  EXPECT_THAT(request->sampling.min_tokens_banned_ids, ElementsAre(9));
}

TEST(ConvertTest, UnsetFieldsTakeTheModelsDefaults) {
  ConvertOptions options = TestConvertOptions();
  options.generation.do_sample = true;
  options.generation.temperature = 0.6f;
  options.generation.top_p = 0.9f;
  options.generation.top_k = 20;
  options.generation.min_p = 0.05f;
  options.generation.repetition_penalty = 1.1f;
  SamplingParams p = Convert(Good(), options)->sampling;
  EXPECT_EQ(p.temperature, 0.6f);
  EXPECT_EQ(p.top_p, 0.9f);
  EXPECT_EQ(p.top_k, 20);
  EXPECT_EQ(p.min_p, 0.05f);
  EXPECT_EQ(p.repetition_penalty, 1.1f);

  v1::GenerateRequest proto = Good();
  proto.mutable_sampling()->set_temperature(0);
  proto.mutable_sampling()->set_top_k(0);
  p = Convert(proto, options)->sampling;
  EXPECT_EQ(p.temperature, 0);
  EXPECT_EQ(p.top_k, 0);
  EXPECT_EQ(p.top_p, 0.9f);

  options.generation.do_sample = false;
  EXPECT_EQ(Convert(Good(), options)->sampling.temperature, 0);
  proto.mutable_sampling()->set_temperature(0.8f);
  EXPECT_EQ(Convert(proto, options)->sampling.temperature, 0.8f);
}

TEST(ConvertTest, ModelsWithBadDefaultsAreRefused) {
  ConvertOptions options = TestConvertOptions();
  options.generation.top_p = 0;
  const auto converter = Converter::Create(options);
  EXPECT_THAT(std::string(converter.status().message()),
              HasSubstr("generation_config.json: sampling.top_p"));
}

TEST(ConvertTest, SpecialTextStaysTextUnlessAskedFor) {
  const std::string special = "<|eot_id|>";
  const int32_t id = *TestTokenizer().TokenId(special);
  v1::GenerateRequest proto;
  proto.set_text("a" + special);
  EXPECT_THAT(Convert(proto)->prompt_ids, Not(Contains(id)));
  proto.set_parse_special(true);
  EXPECT_THAT(Convert(proto)->prompt_ids, Contains(id));
}

TEST(ConvertTest, TextEqualsItsTokens) {
  const auto converter = TestConverter();
  for (const bool add : {false, true}) {
    v1::TokenizeRequest tokenize;
    tokenize.set_text("Hello, world \xF0\x9F\x98\x80");
    tokenize.set_add_special_tokens(add);
    const auto tokens = converter->Tokenize(tokenize);
    ASSERT_TRUE(tokens.ok());
    v1::GenerateRequest proto;
    proto.set_text(tokenize.text());
    proto.set_add_special_tokens(add);
    EXPECT_THAT(Convert(proto)->prompt_ids,
                ::testing::ElementsAreArray(tokens->ids()));
    v1::DetokenizeRequest back;
    *back.mutable_ids() = tokens->ids();
    back.set_skip_special_tokens(true);
    EXPECT_EQ(converter->Detokenize(back)->text(), tokenize.text());
  }
}

TEST(ConvertTest, DetokenizeChecksItsIds) {
  const auto converter = TestConverter();
  v1::DetokenizeRequest proto;
  proto.add_ids(3);
  proto.add_ids(-1);
  const auto text = converter->Detokenize(proto);
  EXPECT_THAT(FieldsOf(ToGrpcStatus(text.status())), ElementsAre("ids[1]"));
}

TEST(ParseMessageTest, NamesTheFieldThatIsNotUtf8) {
  RouteLibraryLogs();
  const auto field_of = [](const std::string& bytes) {
    v1::GenerateRequest proto;
    const auto fields = FieldsOf(ToGrpcStatus(ParseMessage(bytes, &proto)));
    return fields.empty() ? "" : fields.front();
  };
  EXPECT_EQ(field_of(std::string("\x12\x02\xC3\x28", 4)), "text");
  EXPECT_EQ(field_of(std::string("\x0A\x01\xFF", 3)), "request_id");
  // limits.stop: "a", then a broken one.
  EXPECT_EQ(field_of(std::string("\x42\x06\x1A\x01\x61\x1A\x01\xFF", 8)),
            "limits.stop[1]");
  EXPECT_EQ(field_of("\xFF\xFF\xFF"), "request");
  EXPECT_EQ(field_of(Good().SerializeAsString()), "");
}

}  // namespace
}  // namespace overfill
