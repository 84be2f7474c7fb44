// overfill-server: loads a pair, opens its ports, serves, drains.
#ifndef OVERFILL_SERVER_SERVER_MAIN_H_
#define OVERFILL_SERVER_SERVER_MAIN_H_

#include "server/serving.h"

namespace overfill {

// All of main, once per process and before any thread of it is started. Returns
// the exit code: 0 after a drain, 2 for a bad flag, model or pair.
int RunServer(int argc, char** argv, const ServerHooks& hooks);

}  // namespace overfill

#endif  // OVERFILL_SERVER_SERVER_MAIN_H_
