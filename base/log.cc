#include "base/log.h"

#include <atomic>
#include <cstdio>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

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

std::string FormatLine(LogLevel level, absl::string_view message,
                       const LogFields& fields) {
  const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(),
                                            absl::UTCTimeZone());
  const auto format = log_format == LogFormat::kJson ? JsonLine : TextLine;
  return format(time, level, message, fields) + "\n";
}

// One fwrite: lines of several threads do not mix.
void WriteNow(absl::string_view line) {
  std::fwrite(line.data(), 1, line.size(), stderr);
}

// The lines that LogWriter's thread has to write.
class LineQueue {
 public:
  // False: there is no thread.
  bool Push(std::string& line) {
    MutexLock lock(&mu_);
    if (!is_running_) return false;
    if (waiting_bytes_ + line.size() > LogWriter::kMaxWaitingBytes) {
      ++dropped_;
      return true;
    }
    waiting_bytes_ += line.size();
    waiting_.push_back(std::move(line));
    changed_.NotifyAll();
    return true;
  }

  void Start() {
    {
      MutexLock lock(&mu_);
      is_running_ = true;
    }
    // Detached, as it may hang in a write for ever.
    std::thread([this] { Run(); }).detach();
  }

  void Stop() {
    constexpr auto kPatience = std::chrono::seconds(1);
    const auto end = std::chrono::steady_clock::now() + kPatience;
    MutexLock lock(&mu_);
    is_running_ = false;
    changed_.NotifyAll();
    while (!has_ended_) {
      const auto left = end - std::chrono::steady_clock::now();
      if (left <= std::chrono::nanoseconds(0)) return;
      changed_.WaitFor(&mu_, left);
    }
    has_ended_ = false;
  }

 private:
  void Run() {
    for (std::optional<std::string> lines; (lines = Next());) WriteNow(*lines);
    MutexLock lock(&mu_);
    has_ended_ = true;
    changed_.NotifyAll();
  }

  // All that waits; nothing at the end.
  std::optional<std::string> Next() {
    MutexLock lock(&mu_);
    while (waiting_.empty() && is_running_) changed_.Wait(&mu_);
    if (waiting_.empty()) return std::nullopt;
    std::string lines;
    for (const std::string& line : waiting_) lines += line;
    if (dropped_ > 0) {
      lines += FormatLine(LogLevel::kWarning, "lines of the log were dropped",
                          {{"lines_left_out", dropped_}});
    }
    waiting_.clear();
    waiting_bytes_ = 0;
    dropped_ = 0;
    return lines;
  }

  Mutex mu_;
  CondVar changed_;
  bool is_running_ ABSL_GUARDED_BY(mu_) = false;
  bool has_ended_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::string> waiting_ ABSL_GUARDED_BY(mu_);
  size_t waiting_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t dropped_ ABSL_GUARDED_BY(mu_) = 0;
};

// Never destroyed: its thread may outlive main.
LineQueue& WriterQueue() {
  static LineQueue& queue = *new LineQueue;
  return queue;
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
  std::string line = FormatLine(level, message, fields);
  if (!WriterQueue().Push(line)) WriteNow(line);
}

LogWriter::LogWriter() { WriterQueue().Start(); }
LogWriter::~LogWriter() { WriterQueue().Stop(); }

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
