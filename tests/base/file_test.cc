#include "base/file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace overfill {
namespace {

class FileTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) {
    return ::testing::TempDir() + "file_test_" + std::to_string(getpid()) +
           "_" + name;
  }
  std::string Write(const std::string& name, const std::string& content) {
    const std::string path = Path(name);
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
};

TEST_F(FileTest, ReadsWholeFilesUpToTheBound) {
  const std::string content("a\0b\n", 4);
  const std::string path = Write("plain", content);
  EXPECT_EQ(*ReadFile(path, 4), content);
  const auto refused = ReadFile(path, 3);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused.status().message().rfind(path, 0), 0u);
  unlink(path.c_str());
}

TEST_F(FileTest, WhatIsNoRegularFileIsRefused) {
  EXPECT_EQ(ReadFile(Path("absent"), 9).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadFile(::testing::TempDir(), 9).status().code(),
            absl::StatusCode::kInvalidArgument);
  // A pipe without a writer: opening it must not wait.
  const std::string pipe = Path("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_FALSE(ReadFile(pipe, 9).ok());
  EXPECT_FALSE(MappedFile::Open(pipe).ok());
  unlink(pipe.c_str());
}

TEST_F(FileTest, MappingsMoveAndMayBeEmpty) {
  const std::string path = Write("mapped", "content");
  MappedFile file = *MappedFile::Open(path);
  MappedFile moved = std::move(file);
  ASSERT_EQ(moved.bytes().size(), 7u);
  EXPECT_EQ(std::memcmp(moved.bytes().data(), "content", 7), 0);
  unlink(path.c_str());

  const std::string empty = Write("empty", "");
  const auto mapped = MappedFile::Open(empty);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  EXPECT_TRUE(mapped->bytes().empty());
  unlink(empty.c_str());
}

}  // namespace
}  // namespace overfill
