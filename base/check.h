// Assertions for our own bugs. Never for input: what a file, a client or a
// peer can cause is an absl::Status.
#ifndef OVERFILL_BASE_CHECK_H_
#define OVERFILL_BASE_CHECK_H_

#include <sstream>
#include <string>

namespace overfill {

// Prints `file:line: message` on stderr and aborts.
[[noreturn]] void CheckFailed(const char* file, int line,
                              const std::string& message);

namespace internal_check {

// Collects what is streamed into a failing check; aborts when destroyed.
class Failure {
 public:
  Failure(const char* file, int line, const char* condition)
      : file_(file), line_(line) {
    stream_ << "check failed: " << condition << " ";
  }
  [[noreturn]] ~Failure() { CheckFailed(file_, line_, stream_.str()); }
  std::ostream& stream() { return stream_; }

 private:
  const char* file_;
  int line_;
  std::ostringstream stream_;
};

// Turns the stream expression into void, so that both arms of ?: agree.
struct Voidify {
  void operator&(std::ostream&) {}
};

}  // namespace internal_check
}  // namespace overfill

#define OVERFILL_CHECK(condition)                                   \
  (__builtin_expect(static_cast<bool>(condition), true))            \
      ? (void)0                                                     \
      : ::overfill::internal_check::Voidify() &                     \
            ::overfill::internal_check::Failure(__FILE__, __LINE__, \
                                                #condition)         \
                .stream()

#define OVERFILL_CHECK_EQ(a, b) \
  OVERFILL_CHECK((a) == (b)) << "(" << (a) << " vs " << (b) << ") "
#define OVERFILL_CHECK_LE(a, b) \
  OVERFILL_CHECK((a) <= (b)) << "(" << (a) << " vs " << (b) << ") "
#define OVERFILL_CHECK_LT(a, b) \
  OVERFILL_CHECK((a) < (b)) << "(" << (a) << " vs " << (b) << ") "
#define OVERFILL_CHECK_GE(a, b) \
  OVERFILL_CHECK((a) >= (b)) << "(" << (a) << " vs " << (b) << ") "
#define OVERFILL_CHECK_OK(status)                 \
  do {                                            \
    const auto& overfill_check_status = (status); \
    OVERFILL_CHECK(overfill_check_status.ok())    \
        << overfill_check_status.ToString();      \
  } while (false)

#ifdef NDEBUG
#define OVERFILL_DCHECK(condition) \
  while (false) OVERFILL_CHECK(condition)
#else
#define OVERFILL_DCHECK(condition) OVERFILL_CHECK(condition)
#endif

#endif  // OVERFILL_BASE_CHECK_H_
