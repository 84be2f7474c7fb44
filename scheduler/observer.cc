#include "scheduler/observer.h"

#include "base/check.h"

namespace overfill {

const char* PoolName(PoolId pool) {
  switch (pool) {
    case PoolId::kPrefill:
      return "prefill";
    case PoolId::kDecode:
      return "decode";
  }
  OVERFILL_CHECK(false) << "pool " << static_cast<int>(pool);
}

}  // namespace overfill
