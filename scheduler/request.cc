#include "scheduler/request.h"

#include "base/check.h"

namespace overfill {

const char* DecodePathName(DecodePath path) {
  switch (path) {
    case DecodePath::kTwoStage:
      return "two_stage";
    case DecodePath::kFull:
      return "full";
    case DecodePath::kPruned:
      return "pruned";
  }
  OVERFILL_CHECK(false) << "path " << static_cast<int>(path);
}

}  // namespace overfill
