#include "client/connection.h"

#include <cstdio>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace overfill {
namespace {

using ::testing::HasSubstr;

std::string WriteFile(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + "/connection_" + name;
  std::ofstream(path) << text;
  return path;
}

std::string ErrorOf(const ConnectionOptions& options) {
  const auto connection = Connection::Create(options);
  return connection.ok() ? "" : std::string(connection.status().message());
}

TEST(ConnectionTest, BadFilesAreNamed) {
  EXPECT_THAT(ErrorOf({.tls_ca = "/no/ca"}), HasSubstr("/no/ca"));
  EXPECT_THAT(ErrorOf({.tls_cert = "a"}), HasSubstr("one needs the other"));
  EXPECT_THAT(ErrorOf({.tls_key = "a"}), HasSubstr("one needs the other"));
  EXPECT_THAT(ErrorOf({.token_file = "/no/token"}), HasSubstr("/no/token"));
}

TEST(ConnectionTest, ATokenCrossesNoNetworkInTheClear) {
  const std::string token = WriteFile("clear", "secret");
  for (const char* target : {"example.org:1", "10.0.0.1:1", "dns:///host:1"}) {
    EXPECT_THAT(ErrorOf({.target = target, .token_file = token}),
                HasSubstr("without TLS"));
    EXPECT_EQ(ErrorOf({.target = target, .tls = true, .token_file = token}),
              "");
  }
  for (const char* target : {"localhost:1", "127.0.0.1:1", "[::1]:1"}) {
    EXPECT_EQ(ErrorOf({.target = target, .token_file = token}), "");
  }
}

TEST(ConnectionTest, ATokenIsOneWord) {
  const auto error_of = [](const std::string& text) {
    return ErrorOf({.token_file = WriteFile("token", text)});
  };
  EXPECT_EQ(error_of("secret"), "");
  EXPECT_EQ(error_of("  secret\r\n"), "");
  EXPECT_THAT(error_of(""), HasSubstr("no token in it"));
  EXPECT_THAT(error_of("\n"), HasSubstr("no token in it"));
  for (const char* text : {"two words", "two\nlines", "caf\xc3\xa9"}) {
    EXPECT_THAT(error_of(text), HasSubstr("more than one word"));
  }
}

}  // namespace
}  // namespace overfill
