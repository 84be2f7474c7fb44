// The parts of tokenizer.json that come in kinds. Used by spec.cc only.
#ifndef OVERFILL_ENGINE_TOKENIZER_SPEC_COMPONENTS_H_
#define OVERFILL_ENGINE_TOKENIZER_SPEC_COMPONENTS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/json.h"
#include "engine/tokenizer/spec.h"

namespace overfill {

// Names the place in the file that an error message is about.
class ComponentParser {
 public:
  ComponentParser(absl::string_view origin, absl::string_view component)
      : name_(absl::StrCat(origin, ": ", component)) {}

  const std::string& name() const { return name_; }
  absl::Status Error(absl::string_view message) const {
    return absl::InvalidArgumentError(absl::StrCat(name_, ": ", message));
  }

 private:
  std::string name_;
};

// Each reads its component of `root` into `spec`; an absent or null one is no
// component. REQUIRES: vocabulary and added tokens have been read.
absl::Status ParseNormalizer(const Json& root, absl::string_view origin,
                             TokenizerSpec* spec);
absl::Status ParsePreTokenizer(const Json& root, absl::string_view origin,
                               TokenizerSpec* spec);
absl::Status ParsePostProcessor(const Json& root, absl::string_view origin,
                                TokenizerSpec* spec);
// REQUIRES: the pre-tokenizer has been read.
absl::Status ParseDecoder(const Json& root, absl::string_view origin,
                          TokenizerSpec* spec);

}  // namespace overfill

#endif  // OVERFILL_ENGINE_TOKENIZER_SPEC_COMPONENTS_H_
