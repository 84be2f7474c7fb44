// What became of a look at files that may have changed.
#ifndef OVERFILL_SERVER_RELOAD_H_
#define OVERFILL_SERVER_RELOAD_H_

namespace overfill {

// kFailed: they are bad or gone, and what was read before stays; once for each
// state of the files.
enum class Reload { kUnchanged, kLoaded, kFailed };

}  // namespace overfill

#endif  // OVERFILL_SERVER_RELOAD_H_
