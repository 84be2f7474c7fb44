#include "base/log.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"

namespace overfill {
namespace {

TEST(LogTest, ControlsAreEscapedAndNothingElse) {
  EXPECT_EQ(EscapeControls("tensor \"a\\b\": w\u00f6 'x'"),
            "tensor \"a\\b\": w\u00f6 'x'");
  EXPECT_EQ(EscapeControls("a\nb\r\t\x1b[0m\x7f"),
            "a\\nb\\x0d\\x09\\x1b[0m\\x7f");
  EXPECT_EQ(EscapeControls(absl::string_view("\0", 1)), "\\x00");
}

TEST(LogTest, AMessageIsOneLine) {
  testing::internal::CaptureStderr();
  LogWarning("a \"b\"\n2026-01-31T12:00:00.123Z INFO forged");
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_EQ(log.find('\n'), log.size() - 1);
  EXPECT_TRUE(absl::StrContains(log, "Z WARNING a \"b\"\\n2026-01-31T"));
}

}  // namespace
}  // namespace overfill
