// One line per event on stderr: `2026-01-31T12:00:00.123Z INFO message`.
#ifndef OVERFILL_BASE_LOG_H_
#define OVERFILL_BASE_LOG_H_

#include <string>

#include "absl/strings/string_view.h"

namespace overfill {

// `text` without ASCII control characters: "\\n", "\\x1b", ... in their place.
// All else stays readable, quotes and backslashes too.
std::string EscapeControls(absl::string_view text);

enum class LogLevel { kInfo, kWarning, kError };

// Thread-safe; a line is written whole. Control characters in `message` are
// escaped, so that input cannot forge lines. Never pass prompt text.
void Log(LogLevel level, absl::string_view message);

inline void LogInfo(absl::string_view m) { Log(LogLevel::kInfo, m); }
inline void LogWarning(absl::string_view m) { Log(LogLevel::kWarning, m); }
inline void LogError(absl::string_view m) { Log(LogLevel::kError, m); }

}  // namespace overfill

#endif  // OVERFILL_BASE_LOG_H_
