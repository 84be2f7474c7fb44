#include "base/json.h"

#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace overfill {
namespace {

std::string Refusal(absl::string_view text) {
  const auto parsed = ParseJsonObject(text, "FILE");
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(parsed.status().message());
}

TEST(JsonTest, OnlyWholeObjectsAreTaken) {
  EXPECT_TRUE(ParseJsonObject(R"({"a": 1})", "FILE").ok());
  for (const char* text : {"", "{", "{} x", "{\"a\": }", "nonsense"}) {
    EXPECT_EQ(Refusal(text), "FILE: not valid JSON") << text;
  }
  EXPECT_EQ(Refusal("[1]"), "FILE: the top level must be a JSON object");
  EXPECT_EQ(Refusal(absl::string_view("{}\0{", 4)), "FILE: not valid JSON");
}

TEST(JsonTest, DeepNestingIsRefused) {
  const auto nested = [](int depth) {
    return R"({"a":)" + std::string(depth, '[') + std::string(depth, ']') + "}";
  };
  EXPECT_TRUE(ParseJsonObject(nested(60), "FILE").ok());
  EXPECT_EQ(Refusal(nested(100000)), "FILE: JSON is nested deeper than 64");
}

TEST(JsonTest, NumbersAreCheckedAgainstTheirRange) {
  const Json object = Json::parse(
      R"({"int": 7, "big": 18446744073709551615, "real": 1.5, "text": "7",
          "none": null})");
  EXPECT_EQ(**JsonInt(object, "int", 0, 7, "FILE"), 7);
  EXPECT_EQ(JsonInt(object, "int", 8, 9, "FILE").status().message(),
            "FILE: int must be between 8 and 9, is 7");
  EXPECT_FALSE(JsonInt(object, "big", 0, INT64_MAX, "FILE").ok());
  EXPECT_FALSE(JsonInt(object, "real", 0, 7, "FILE").ok());
  EXPECT_FALSE(JsonInt(object, "text", 0, 7, "FILE").ok());
  EXPECT_EQ(*JsonInt(object, "none", 0, 7, "FILE"), std::nullopt);
  EXPECT_EQ(*JsonInt(object, "absent", 0, 7, "FILE"), std::nullopt);
  EXPECT_EQ(**JsonNumber(object, "real", "FILE"), 1.5);
  EXPECT_FALSE(JsonNumber(object, "text", "FILE").ok());
  EXPECT_EQ(JsonBool(object, "int", "FILE").status().message(),
            "FILE: int must be true or false");
  EXPECT_EQ(**JsonString(object, "text", "FILE"), "7");
  EXPECT_FALSE(JsonString(object, "int", "FILE").ok());
}

}  // namespace
}  // namespace overfill
