#include "base/log.h"

#include <unistd.h>

#include <cstdint>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

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

TEST(LogTest, FieldsAreWordsOrQuoted) {
  testing::internal::CaptureStderr();
  Log(LogLevel::kInfo, "m",
      {{"a", std::string("word")},
       {"b", std::string("two \"w\"\n")},
       {"c", int64_t{-3}},
       {"d", 0.5},
       {"e", std::string()}});
  EXPECT_TRUE(absl::EndsWith(
      testing::internal::GetCapturedStderr(),
      "Z INFO m a=word b=\"two \\\"w\\\"\\n\" c=-3 d=0.5 e=\"\"\n"));
}

TEST(LogTest, JsonHoldsAnything) {
  SetLogFormat(LogFormat::kJson);
  testing::internal::CaptureStderr();
  Log(LogLevel::kError, "a\n\"b\"\xff", {{"n", int64_t{7}}});
  SetLogFormat(LogFormat::kText);
  const std::string written = testing::internal::GetCapturedStderr();
  EXPECT_EQ(written.find('\n'), written.size() - 1);
  const auto line = nlohmann::json::parse(written);
  EXPECT_EQ(line["level"], "error");
  EXPECT_EQ(line["message"], "a\n\"b\"\uFFFD");
  EXPECT_EQ(line["n"], 7);
}

TEST(LogWriterTest, WritesAllInOrder) {
  testing::internal::CaptureStderr();
  {
    LogWriter writer;
    for (int i = 0; i < 1000; ++i) LogInfo(absl::StrCat("line ", i, "."));
  }
  LogInfo("after");
  const std::string written = testing::internal::GetCapturedStderr();
  size_t at = 0;
  for (int i = 0; i < 1000; ++i) {
    at = written.find(absl::StrCat("line ", i, "."), at);
    ASSERT_NE(at, std::string::npos) << i;
  }
  EXPECT_NE(written.find("after", at), std::string::npos);
}

// Standard error is a full pipe: who logs goes on, and who reads it at last is
// told what is missing.
TEST(LogWriterTest, AReaderThatSleepsStopsNobody) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const int saved = dup(STDERR_FILENO);
  ASSERT_GE(dup2(ends[1], STDERR_FILENO), 0);
  std::string read_back;
  {
    LogWriter writer;
    const std::string text(1000, 'x');
    for (int i = 0; i < 10'000; ++i) LogInfo(text);  // 10 MB
    LogInfo("the last");
    std::thread reader([&] {
      char buffer[65536];
      ssize_t count;
      while ((count = read(ends[0], buffer, sizeof(buffer))) > 0) {
        read_back.append(buffer, static_cast<size_t>(count));
        if (absl::StrContains(read_back, "were dropped")) break;
      }
    });
    reader.join();
  }
  ASSERT_GE(dup2(saved, STDERR_FILENO), 0);
  close(saved);
  close(ends[0]);
  close(ends[1]);
  EXPECT_TRUE(absl::StrContains(read_back, "lines_left_out="));
  EXPECT_LT(read_back.size(), 2 * LogWriter::kMaxWaitingBytes);
}

}  // namespace
}  // namespace overfill
