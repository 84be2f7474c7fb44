// Files of a test's own, gone with it.
#ifndef OVERFILL_TESTS_SERVER_TEMP_FILE_H_
#define OVERFILL_TESTS_SERVER_TEMP_FILE_H_

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace overfill {

class TempFile {
 public:
  explicit TempFile(const std::string& name, const std::string& text = "")
      : path_(testing::TempDir() + "/overfill_" + std::to_string(getpid()) +
              "_" + name) {
    Write(text);
  }
  ~TempFile() { Remove(); }
  TempFile(const TempFile&) = delete;

  void Write(const std::string& text) const {
    std::ofstream file(path_, std::ios::binary | std::ios::trunc);
    file << text;
    EXPECT_TRUE(file.good());
  }
  void Remove() const { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

}  // namespace overfill

#endif  // OVERFILL_TESTS_SERVER_TEMP_FILE_H_
