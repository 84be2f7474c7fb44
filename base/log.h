// One line per event on stderr, for people or for machines.
#ifndef OVERFILL_BASE_LOG_H_
#define OVERFILL_BASE_LOG_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/mutex.h"

namespace overfill {

// `text` without ASCII control characters: "\\n", "\\x1b", ... in their place.
// All else stays readable, quotes and backslashes too.
std::string EscapeControls(absl::string_view text);

enum class LogLevel { kInfo, kWarning, kError };

// kText: `2026-01-31T12:00:00.123Z INFO message name=value name="two words"`.
// kJson: `{"time": ..., "level": "info", "message": ..., name: value, ...}`.
enum class LogFormat { kText, kJson };

// For the whole process; kText until then. Call it before threads log.
void SetLogFormat(LogFormat format);

// What a line says beside its message. Names are constants of the program,
// other than time, level and message.
using LogValue = std::variant<std::string, int64_t, double>;
using LogFields = std::vector<std::pair<const char*, LogValue>>;

// Thread-safe; a line is written whole. Control characters are escaped, so
// that input cannot forge lines, and in JSON what is not UTF-8 is replaced.
// Never pass prompt text, but where the operator asked for it.
void Log(LogLevel level, absl::string_view message,
         const LogFields& fields = {});

inline void LogInfo(absl::string_view m) { Log(LogLevel::kInfo, m); }
inline void LogWarning(absl::string_view m) { Log(LogLevel::kWarning, m); }
inline void LogError(absl::string_view m) { Log(LogLevel::kError, m); }

// While it lives, lines are written by a thread of its own, and Log never waits
// for whoever reads stderr: a pipe that nobody empties stops no request. Where
// too much waits, lines are dropped, and a line says how many. One per process;
// the end of the program waits a moment for what is left.
class LogWriter {
 public:
  static constexpr size_t kMaxWaitingBytes = 4 << 20;

  LogWriter();
  ~LogWriter();
  LogWriter(const LogWriter&) = delete;
};

// Lets so many lines pass in each second, so that what a peer does cannot fill
// a disk. Thread-safe.
class LogLimiter {
 public:
  explicit LogLimiter(int32_t lines_per_second)
      : lines_per_second_(lines_per_second) {}

  // Whether a line may pass at `now`; then `suppressed` is how many have not
  // since the last that did.
  bool Pass(std::chrono::steady_clock::time_point now, int64_t& suppressed);

 private:
  const int32_t lines_per_second_;
  Mutex mu_;
  std::chrono::steady_clock::time_point second_ ABSL_GUARDED_BY(mu_);
  int32_t passed_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t suppressed_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace overfill

#endif  // OVERFILL_BASE_LOG_H_
