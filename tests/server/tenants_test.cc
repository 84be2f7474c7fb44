#include "server/tenants.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace overfill {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string HashOf(absl::string_view token) {
  Sha256 hasher;
  hasher.Update(token);
  return HexString(hasher.Finish());
}

std::string FileOf(absl::string_view tenants) {
  return absl::StrCat(R"({"tenants": [)", tenants, "]}");
}

std::string TenantOf(absl::string_view name, absl::string_view token,
                     absl::string_view more = "") {
  return absl::StrCat(R"({"name": ")", name, R"(", "token_sha256": [")",
                      HashOf(token), R"("])", more, "}");
}

std::string ErrorOf(absl::string_view text) {
  const auto table = TenantTable::Parse(text, "FILE");
  return table.ok() ? "" : std::string(table.status().message());
}

TEST(TenantTableTest, FindsWhoseATokenIs) {
  const auto table = TenantTable::Parse(
      FileOf(absl::StrCat(TenantOf("a", "token-1",
                                   R"(, "max_requests_in_flight": 3,
                      "max_tokens_per_minute": 500, "max_priority": 7)"),
                          ",", TenantOf("b", "token-2"))),
      "FILE");
  ASSERT_TRUE(table.ok()) << table.status();
  const auto a = table->Find("token-1");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->name, "a");
  EXPECT_EQ(a->limits.max_requests_in_flight, 3);
  EXPECT_EQ(a->limits.max_tokens_per_minute, 500);
  EXPECT_EQ(a->limits.max_priority, 7);
  EXPECT_EQ(table->Find("token-2")->name, "b");
  EXPECT_EQ(table->Find("token-2")->limits.max_requests_in_flight, 0);
  EXPECT_EQ(table->Find("token-2")->limits.max_priority, 0);
  for (const auto& other : {std::string("token-3"), std::string(),
                            HashOf("token-1"), std::string("token-1 ")}) {
    EXPECT_EQ(table->Find(other), nullptr) << other;
  }
}

TEST(TenantTableTest, ATenantMayHaveManyTokensOrNone) {
  const auto table = TenantTable::Parse(
      FileOf(absl::StrCat(R"({"name": "a", "token_sha256": [")", HashOf("x"),
                          R"(", ")", HashOf("y"),
                          R"("]}, {"name": "b", "token_sha256": []})")),
      "FILE");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->Find("x"), table->Find("y"));
  EXPECT_EQ(table->num_tokens(), 2u);
  EXPECT_EQ(table->tenants().size(), 2u);
}

TEST(TenantTableTest, NothingBadPasses) {
  EXPECT_THAT(ErrorOf("nonsense"), HasSubstr("FILE"));
  EXPECT_THAT(ErrorOf("{}"), HasSubstr("FILE: tenants must be a list"));
  EXPECT_THAT(ErrorOf(R"({"tenants": [1]})"), HasSubstr("tenants[0]: must be"));
  EXPECT_THAT(ErrorOf(R"({"tenants": [], "x": 1})"),
              HasSubstr("unknown member \"x\""));
  EXPECT_THAT(ErrorOf(FileOf(TenantOf("", "t"))), HasSubstr("name must be"));
  EXPECT_THAT(ErrorOf(FileOf(TenantOf("a b", "t"))), HasSubstr("name must be"));
  EXPECT_THAT(ErrorOf(FileOf(R"({"token_sha256": []})")),
              HasSubstr("name must be"));
  EXPECT_THAT(ErrorOf(FileOf(TenantOf("a", "t", R"(, "max_priorty": 1)"))),
              HasSubstr("unknown member \"max_priorty\""));
  EXPECT_THAT(
      ErrorOf(FileOf(TenantOf("a", "t", R"(, "max_tokens_per_minute": -1)"))),
      HasSubstr("max_tokens_per_minute"));
  EXPECT_THAT(
      ErrorOf(FileOf(TenantOf("a", "t", R"(, "max_requests_in_flight": 1.5)"))),
      HasSubstr("max_requests_in_flight"));
  EXPECT_THAT(ErrorOf(FileOf(TenantOf("a", "t", R"(, "max_priority": 101)"))),
              HasSubstr("max_priority"));
  EXPECT_THAT(ErrorOf(FileOf(
                  absl::StrCat(TenantOf("a", "t"), ",", TenantOf("a", "u")))),
              HasSubstr("tenants[1]: another tenant has this name"));
  EXPECT_THAT(ErrorOf(FileOf(
                  absl::StrCat(TenantOf("a", "t"), ",", TenantOf("b", "t")))),
              HasSubstr("twice"));
}

TEST(TenantTableTest, BadHashesAreNotQuoted) {
  for (const char* hash : {"5ecre7", "plain-token", ""}) {
    const std::string error = ErrorOf(FileOf(
        absl::StrCat(R"({"name": "a", "token_sha256": [")", hash, R"("]})")));
    EXPECT_THAT(error, HasSubstr("token_sha256 must be a list"));
    if (*hash != '\0') {
      EXPECT_THAT(error, Not(HasSubstr(hash)));
    }
  }
  for (const char* value : {"1", "null", "[1]", "{}", R"(["zz"])"}) {
    EXPECT_THAT(ErrorOf(FileOf(absl::StrCat(R"({"name": "a", "token_sha256": )",
                                            value, "}"))),
                HasSubstr("token_sha256 must be a list"));
  }
  EXPECT_THAT(
      ErrorOf(FileOf(absl::StrCat(R"({"name": "a", "token_sha256": [")",
                                  std::string(63, '0') + "g", R"("]})"))),
      HasSubstr("token_sha256"));
}

TEST(TenantTableTest, TooMuchIsRefused) {
  std::string tenants;
  for (size_t i = 0; i <= TenantTable::kMaxTenants; ++i) {
    absl::StrAppend(&tenants, i == 0 ? "" : ",",
                    TenantOf(absl::StrCat("t", i), absl::StrCat("token", i)));
  }
  EXPECT_THAT(ErrorOf(FileOf(tenants)), HasSubstr("more than 1000 tenants"));
}

}  // namespace
}  // namespace overfill
