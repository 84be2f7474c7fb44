// Early returns for absl::Status and absl::StatusOr.
#ifndef OVERFILL_BASE_STATUS_MACROS_H_
#define OVERFILL_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define RETURN_IF_ERROR(expr)                          \
  do {                                                 \
    ::absl::Status overfill_status = (expr);           \
    if (!overfill_status.ok()) return overfill_status; \
  } while (false)

#define OVERFILL_CONCAT_INNER(a, b) a##b
#define OVERFILL_CONCAT(a, b) OVERFILL_CONCAT_INNER(a, b)

// ASSIGN_OR_RETURN(auto x, MakeX());
#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_IMPL(OVERFILL_CONCAT(overfill_or_, __LINE__), lhs, expr)

#define ASSIGN_OR_RETURN_IMPL(result, lhs, expr)       \
  auto result = (expr);                                \
  if (!result.ok()) return std::move(result).status(); \
  lhs = std::move(result).value()

#endif  // OVERFILL_BASE_STATUS_MACROS_H_
