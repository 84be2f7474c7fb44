// What loading is made of: parallel tasks, progress lines, digests of files.
#include <atomic>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/sha256.h"
#include "engine/content_digest.h"
#include "engine/parallel.h"
#include "engine/progress.h"
#include "gtest/gtest.h"
#include "tests/engine/checkpoint_files.h"

namespace overfill {
namespace {

TEST(ParallelTasksTest, EachTaskRunsOnce) {
  for (const int num_threads : {1, 3, 64}) {
    for (const size_t num_tasks : {0, 1, 2, 50}) {
      std::vector<std::atomic<int>> runs(num_tasks);
      EXPECT_TRUE(ParallelTasks(num_threads, num_tasks, [&](size_t i) {
                    ++runs[i];
                    return absl::OkStatus();
                  }).ok());
      for (const auto& count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ParallelTasksTest, SeveralThreadsWorkAtOnce) {
  // Each of two tasks waits until the other one has begun.
  std::atomic<int> begun = 0;
  EXPECT_TRUE(ParallelTasks(2, 2, [&](size_t) {
                ++begun;
                while (begun < 2) std::this_thread::yield();
                return absl::OkStatus();
              }).ok());
}

TEST(ParallelTasksTest, TheLowestErrorCountsAndEndsTheWork) {
  std::atomic<int> begun = 0;
  const absl::Status status = ParallelTasks(2, 1000, [&](size_t i) {
    ++begun;
    if (i > 1) return absl::OkStatus();
    while (begun < 2) std::this_thread::yield();  // both are to fail
    return absl::InternalError(absl::StrCat("task ", i));
  });
  EXPECT_EQ(status.message(), "task 0");
  EXPECT_LT(begun, 1000);
}

TEST(ProgressTest, LongWorkHasALinePerTenth) {
  const uint64_t total = uint64_t{4} << 30;
  testing::internal::CaptureStderr();
  {
    Progress progress("loading it", total);
    for (int i = 0; i < 64; ++i) progress.Add(total / 64);
  }
  const std::string log = testing::internal::GetCapturedStderr();
  const std::vector<std::string> lines =
      absl::StrSplit(log, '\n', absl::SkipEmpty());
  EXPECT_EQ(lines.size(), 10u) << log;
  EXPECT_NE(log.find("loading it: 4096 of 4096 MiB\n"), std::string::npos);
}

TEST(ProgressTest, ShortWorkIsSilent) {
  testing::internal::CaptureStderr();
  {
    Progress progress("loading it", 1 << 20);
    for (int i = 0; i < 64; ++i) progress.Add(1 << 14);
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(DigestFilesTest, NamesSizesAndEveryByteCount) {
  const TempDirectory directory;
  const auto digest = [&](const std::string& a, const std::string& b,
                          const char* second = "b", int num_threads = 2) {
    WriteFile(directory / "a", a);
    WriteFile(directory / second, b);
    std::vector<MappedFile> files;
    for (const char* name : {"a", second}) {
      files.push_back(*MappedFile::Open(directory / name));
    }
    return DigestFiles(files, num_threads, "hashing");
  };
  // Over two pieces, the second one short.
  const std::string large((size_t{64} << 20) + 5, 'x');
  const Sha256Digest first = digest(large, "tail");
  EXPECT_EQ(digest(large, "tail", "b", 1), first);
  std::set<Sha256Digest> digests = {first};
  for (const size_t at : {size_t{0}, size_t{64} << 20, large.size() - 1}) {
    std::string changed = large;
    changed[at] = 'y';
    digests.insert(digest(changed, "tail"));
  }
  digests.insert(digest(large, "tail", "c"));
  digests.insert(digest(large + "t", "ail"));
  digests.insert(digest(large, ""));
  EXPECT_EQ(digests.size(), 7u);
}

TEST(DigestEachFileTest, IsTheSha256OfEachContent) {
  const TempDirectory directory;
  // Over two pieces; the digests are sha256sum's.
  WriteFile(directory / "large", std::string((size_t{64} << 20) + 5, 'x'));
  WriteFile(directory / "abc", "abc");
  WriteFile(directory / "empty", "");
  std::vector<MappedFile> files;
  for (const char* name : {"large", "abc", "empty"}) {
    files.push_back(*MappedFile::Open(directory / name));
  }
  for (const int num_threads : {1, 3}) {
    const auto digests = DigestEachFile(files, num_threads, "hashing");
    ASSERT_EQ(digests.size(), 3u);
    EXPECT_EQ(
        HexString(digests[0]),
        "077ea83cdebb120f47f014da6853e31f9887478a8cdc65159549cc07b51fbab5");
    EXPECT_EQ(
        HexString(digests[1]),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(
        HexString(digests[2]),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  }
}

}  // namespace
}  // namespace overfill
