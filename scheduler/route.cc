#include "scheduler/route.h"

#include "base/check.h"

namespace overfill {

Route MakeRoute(DecodePath path) {
  switch (path) {
    case DecodePath::kTwoStage:
      return {{Span::kPrompt, PoolId::kPrefill},
              {Span::kRest, PoolId::kDecode}};
    case DecodePath::kFull:
      return {{Span::kPrompt, PoolId::kPrefill},
              {Span::kRest, PoolId::kPrefill}};
    case DecodePath::kPruned:
      return {{Span::kPrompt, PoolId::kDecode}, {Span::kRest, PoolId::kDecode}};
  }
  OVERFILL_CHECK(false) << "path " << static_cast<int>(path);
}

PoolId PoolOf(const Route& route, Span span) {
  for (const RouteLeg& leg : route) {
    if (leg.span == span) return leg.pool;
  }
  OVERFILL_CHECK(false) << "no leg for span " << static_cast<int>(span);
}

}  // namespace overfill
