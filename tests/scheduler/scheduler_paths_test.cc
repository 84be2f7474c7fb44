// The three paths, alone and mixed, against the reference's answers; and the
// proof that the comparison sees what it should.
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

constexpr DecodePath kPaths[] = {DecodePath::kTwoStage, DecodePath::kFull,
                                 DecodePath::kPruned};

// Whether the pools share a store.
class SchedulerPaths : public ::testing::TestWithParam<bool> {
 protected:
  RigOptions Options() {
    RigOptions options;
    options.is_shared = GetParam();
    return options;
  }
};

INSTANTIATE_TEST_SUITE_P(Stores, SchedulerPaths, ::testing::Bool(),
                         [](const auto& info) {
                           return info.param ? "Shared" : "Apart";
                         });

TEST_P(SchedulerPaths, EachAnswersAtEveryBoundary) {
  // Around blocks (4), chunks (16) and their products.
  for (DecodePath path : kPaths) {
    Rig rig(Options());
    for (int32_t prompt :
         {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65}) {
      for (int32_t max_tokens : {1, 2, 3, 4, 5, 12}) {
        rig.Submit(path, prompt, max_tokens);
      }
    }
    for (auto& client : rig.clients) rig.ExpectRight(*client);
    rig.Finish();
  }
}

TEST_P(SchedulerPaths, MixFreely) {
  Rig rig(Options());
  for (int i = 0; i < 200; ++i) {
    rig.Submit(kPaths[rig.random() % 3],
               static_cast<int32_t>(1 + rig.random() % 60),
               static_cast<int32_t>(1 + rig.random() % 30));
  }
  for (auto& client : rig.clients) rig.ExpectRight(*client);
  rig.Finish();
}

}  // namespace
}  // namespace overfill
