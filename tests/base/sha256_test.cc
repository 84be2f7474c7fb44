#include "base/sha256.h"

#include <string>

#include "gtest/gtest.h"

namespace overfill {
namespace {

// The vectors of FIPS 180-4's examples.
TEST(Sha256Test, KnownDigests) {
  Sha256 empty;
  EXPECT_EQ(HexString(empty.Finish()),
            "e3b0c44298fc1c149afbf4c8996fb924"
            "27ae41e4649b934ca495991b7852b855");
  Sha256 abc;
  abc.Update("a");
  abc.Update("bc");
  EXPECT_EQ(HexString(abc.Finish()),
            "ba7816bf8f01cfea414140de5dae2223"
            "b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256Test, FieldsDoNotRunIntoEachOther) {
  const auto digest = [](const std::string& a, const std::string& b) {
    Sha256 hash;
    hash.UpdateField(a);
    hash.UpdateField(b);
    return HexString(hash.Finish());
  };
  EXPECT_NE(digest("ab", "c"), digest("a", "bc"));
  EXPECT_EQ(digest("ab", "c"), digest("ab", "c"));
}

}  // namespace
}  // namespace overfill
