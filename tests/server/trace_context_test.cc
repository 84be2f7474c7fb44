#include "server/trace_context.h"

#include <string>

#include "gtest/gtest.h"

namespace overfill {
namespace {

constexpr char kTrace[] = "0af7651916cd43dd8448eb211c80319c";
constexpr char kParent[] = "b7ad6b7169203331";

std::string Header(const std::string& version, const std::string& rest = "") {
  return version + "-" + kTrace + "-" + kParent + "-01" + rest;
}

TEST(TraceContextTest, ReadsTheHeader) {
  const auto context = ParseTraceParent(Header("00"));
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(context->trace_id, kTrace);
  EXPECT_EQ(context->parent_id, kParent);
}

TEST(TraceContextTest, VersionsToComeMayBeLonger) {
  EXPECT_TRUE(ParseTraceParent(Header("cc")).has_value());
  EXPECT_TRUE(ParseTraceParent(Header("cc", "-what-else")).has_value());
  EXPECT_FALSE(ParseTraceParent(Header("cc", "x")).has_value());
  EXPECT_FALSE(ParseTraceParent(Header("00", "-x")).has_value());
}

TEST(TraceContextTest, WhatIsNoneIsIgnored) {
  const std::string zeros32(32, '0');
  const std::string zeros16(16, '0');
  const std::string tail = std::string("-") + kParent + "-01";
  for (const std::string& header :
       {std::string(), std::string("00"), Header("ff"), Header("0g"),
        Header("00").substr(0, 54), "00-" + zeros32 + tail,
        std::string("00-") + kTrace + "-" + zeros16 + "-01",
        "00-0AF7651916CD43DD8448EB211C80319C" + tail,
        "00-0af7651916cd43dd8448eb211c80319\n" + tail,
        std::string("00_") + kTrace + tail,
        std::string("00-") + kTrace + "-" + kParent + "-0x"}) {
    EXPECT_FALSE(ParseTraceParent(header).has_value()) << header;
  }
}

}  // namespace
}  // namespace overfill
