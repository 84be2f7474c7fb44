#include "server/authenticator.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/temp_file.h"

namespace overfill {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string FileWith(const std::string& name, const std::string& token) {
  Sha256 hasher;
  hasher.Update(token);
  return absl::StrCat(R"({"tenants": [{"name": ")", name,
                      R"(", "token_sha256": [")", HexString(hasher.Finish()),
                      R"("]}]})");
}

class AuthenticatorTest : public ::testing::Test {
 protected:
  AuthenticatorTest() : file_("tokens.json", FileWith("team", "good")) {
    auto made = Authenticator::FromFile(file_.path());
    EXPECT_TRUE(made.ok()) << made.status();
    authenticator_ = *std::move(made);
  }
  // The tenant's name; "" where there is none, `failure_` then says why.
  std::string Caller(const Authenticator::Metadata& metadata) {
    const auto tenant = authenticator_->Authenticate(metadata, &failure_);
    if (tenant.ok()) return (*tenant)->name;
    status_ = tenant.status();
    EXPECT_EQ(status_.code(), absl::StatusCode::kUnauthenticated);
    return "";
  }
  std::string CallerWith(const std::string& header) {
    return Caller({{"authorization", header}});
  }

  const TempFile file_;
  std::unique_ptr<Authenticator> authenticator_;
  Authenticator::Failure failure_ = Authenticator::Failure::kMissing;
  absl::Status status_;
};

using Failure = Authenticator::Failure;

TEST_F(AuthenticatorTest, TokensAreNeeded) {
  EXPECT_EQ(CallerWith("Bearer good"), "team");
  EXPECT_EQ(CallerWith("bearer good"), "team");
  EXPECT_EQ(Caller({{"other", "x"}, {"authorization", "BEARER good"}}), "team");
  EXPECT_EQ(Caller({}), "");
  EXPECT_EQ(failure_, Failure::kMissing);
  EXPECT_EQ(Caller({{"other", "Bearer good"}}), "");
  EXPECT_EQ(failure_, Failure::kMissing);
}

TEST_F(AuthenticatorTest, OtherShapesAreMalformed) {
  const std::string endless = "Bearer " + std::string(5000, 'x');
  for (const std::string& header :
       {std::string("good"), std::string("Basic good"), std::string("Bearer"),
        std::string(), endless}) {
    EXPECT_EQ(CallerWith(header), "") << header;
    EXPECT_EQ(failure_, Failure::kMalformed) << header;
  }
  // Which of them did a proxy check?
  EXPECT_EQ(Caller({{"authorization", "Bearer good"},
                    {"authorization", "Bearer good"}}),
            "");
  EXPECT_EQ(failure_, Failure::kMalformed);
}

TEST_F(AuthenticatorTest, WrongTokensAreUnknown) {
  for (const std::string& header :
       {std::string("Bearer bad"), std::string("Bearer "),
        std::string("Bearer good "), std::string("Bearer  good"),
        std::string("Bearer goo"), std::string("Bearer good\0", 12)}) {
    EXPECT_EQ(CallerWith(header), "") << header;
    EXPECT_EQ(failure_, Failure::kUnknown) << header;
    EXPECT_THAT(std::string(status_.message()), Not(HasSubstr("team")));
  }
}

TEST_F(AuthenticatorTest, AChangedFileIsReadAgain) {
  EXPECT_EQ(authenticator_->LookAgain(), Reload::kUnchanged);
  file_.Write(FileWith("others", "new"));
  EXPECT_EQ(authenticator_->LookAgain(), Reload::kLoaded);
  EXPECT_EQ(authenticator_->LookAgain(), Reload::kUnchanged);
  EXPECT_EQ(CallerWith("Bearer new"), "others");
  EXPECT_EQ(CallerWith("Bearer good"), "");
}

TEST_F(AuthenticatorTest, ABadFileChangesNothing) {
  file_.Write("{\"tenants\": [");
  EXPECT_EQ(authenticator_->LookAgain(), Reload::kFailed);
  EXPECT_EQ(authenticator_->LookAgain(), Reload::kUnchanged);  // told once
  EXPECT_EQ(CallerWith("Bearer good"), "team");
  file_.Remove();
  EXPECT_EQ(authenticator_->LookAgain(), Reload::kFailed);
  EXPECT_EQ(authenticator_->LookAgain(), Reload::kUnchanged);
  EXPECT_EQ(CallerWith("Bearer good"), "team");
  file_.Write(FileWith("team", "good"));
  EXPECT_EQ(authenticator_->LookAgain(), Reload::kLoaded);
  EXPECT_EQ(CallerWith("Bearer good"), "team");
}

TEST_F(AuthenticatorTest, ABadFileAtTheStartIsAnError) {
  file_.Write("[]");
  EXPECT_THAT(
      std::string(Authenticator::FromFile(file_.path()).status().message()),
      HasSubstr(file_.path()));
  EXPECT_FALSE(Authenticator::FromFile("/no/such/file").ok());
}

TEST(NoAuthenticatorTest, EveryoneIsTheNamelessTenant) {
  Authenticator everyone;
  Failure failure;
  EXPECT_FALSE(everyone.needs_token());
  const auto tenant =
      everyone.Authenticate({{"authorization", "nonsense"}}, &failure);
  ASSERT_TRUE(tenant.ok());
  EXPECT_EQ((*tenant)->name, "");
  EXPECT_EQ((*tenant)->limits.max_priority, kAnyPriority);
  EXPECT_EQ(everyone.LookAgain(), Reload::kUnchanged);
}

}  // namespace
}  // namespace overfill
