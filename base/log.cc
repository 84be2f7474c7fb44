#include "base/log.h"

#include <atomic>
#include <cstdio>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"

namespace overfill {
namespace {

std::atomic<LogFormat> log_format = LogFormat::kText;

// As it is where it is one plain word, else in quotes.
std::string TextValue(const std::string& text) {
  bool is_word = !text.empty();
  for (const char c : text) {
    is_word = is_word && absl::ascii_isgraph(static_cast<unsigned char>(c)) &&
              c != '"' && c != '\\' && c != '=';
  }
  if (is_word) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return EscapeControls(quoted + '"');
}

std::string TextLine(absl::string_view time, LogLevel level,
                     absl::string_view message, const LogFields& fields) {
  static constexpr const char* kNames[] = {"INFO", "WARNING", "ERROR"};
  std::string line = absl::StrCat(time, " ", kNames[static_cast<int>(level)],
                                  " ", EscapeControls(message));
  for (const auto& [name, value] : fields) {
    absl::StrAppend(&line, " ", name, "=");
    if (const auto* text = std::get_if<std::string>(&value)) {
      line += TextValue(*text);
    } else if (const auto* number = std::get_if<double>(&value)) {
      absl::StrAppend(&line, *number);
    } else {
      absl::StrAppend(&line, std::get<int64_t>(value));
    }
  }
  return line;
}

std::string JsonLine(absl::string_view time, LogLevel level,
                     absl::string_view message, const LogFields& fields) {
  static constexpr const char* kNames[] = {"info", "warning", "error"};
  nlohmann::ordered_json line = {{"time", std::string(time)},
                                 {"level", kNames[static_cast<int>(level)]},
                                 {"message", std::string(message)}};
  for (const auto& [name, value] : fields) {
    std::visit([&, name = name](const auto& v) { line[name] = v; }, value);
  }
  return line.dump(-1, ' ', /*ensure_ascii=*/false,
                   nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace

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

void SetLogFormat(LogFormat format) { log_format = format; }

void Log(LogLevel level, absl::string_view message, const LogFields& fields) {
  const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(),
                                            absl::UTCTimeZone());
  const auto format = log_format == LogFormat::kJson ? JsonLine : TextLine;
  const std::string line = format(time, level, message, fields) + "\n";
  // One fwrite: lines of several threads do not mix.
  std::fwrite(line.data(), 1, line.size(), stderr);
}

bool LogLimiter::Pass(std::chrono::steady_clock::time_point now,
                      int64_t& suppressed) {
  MutexLock lock(&mu_);
  if (now - second_ >= std::chrono::seconds(1)) {
    second_ = now;
    passed_ = 0;
  }
  if (passed_ >= lines_per_second_) {
    ++suppressed_;
    return false;
  }
  ++passed_;
  suppressed = suppressed_;
  suppressed_ = 0;
  return true;
}

}  // namespace overfill
