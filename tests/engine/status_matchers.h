// What tests of refusals look for in an error.
#ifndef OVERFILL_TESTS_ENGINE_STATUS_MATCHERS_H_
#define OVERFILL_TESTS_ENGINE_STATUS_MATCHERS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace overfill {

// The status is of this code, its message one line with each of the words.
inline testing::AssertionResult IsRefusal(
    const absl::Status& status, const std::vector<std::string>& words,
    absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
  if (status.code() != code) {
    return testing::AssertionFailure() << "status is " << status;
  }
  if (absl::StrContains(status.message(), '\n')) {
    return testing::AssertionFailure() << "several lines: " << status;
  }
  for (const std::string& word : words) {
    if (absl::StrContains(status.message(), word)) continue;
    return testing::AssertionFailure()
           << "no \"" << word << "\" in: " << status.message();
  }
  return testing::AssertionSuccess();
}

}  // namespace overfill

#endif  // OVERFILL_TESTS_ENGINE_STATUS_MATCHERS_H_
