#include "base/log.h"

#include <cstdio>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace overfill {

std::string EscapeControls(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (const char c : text) {
    if (c == '\n') {
      result += "\\n";
    } else if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) {
      absl::StrAppend(&result, "\\x", absl::Hex(c, absl::kZeroPad2));
    } else {
      result += c;
    }
  }
  return result;
}

void Log(LogLevel level, absl::string_view message) {
  static constexpr const char* kNames[] = {"INFO", "WARNING", "ERROR"};
  const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(),
                                            absl::UTCTimeZone());
  // One fwrite: lines of several threads do not mix.
  const std::string line =
      absl::StrCat(time, " ", kNames[static_cast<int>(level)], " ",
                   EscapeControls(message), "\n");
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace overfill
