#include "client/printer.h"

#include <cstdint>
#include <string>

#include "gtest/gtest.h"

namespace overfill {
namespace {

v1::GenerateResponse DeltaOf(uint32_t index, const std::string& text) {
  v1::GenerateResponse event;
  event.mutable_delta()->set_index(index);
  event.mutable_delta()->set_text(text);
  return event;
}

v1::GenerateResponse EndOf(uint32_t index) {
  v1::GenerateResponse event;
  event.mutable_completion()->set_index(index);
  return event;
}

TEST(AnswerTextTest, OneAnswerComesAsItIs) {
  for (const uint32_t n : {0, 1}) {
    AnswerText text(n);
    EXPECT_EQ(text.Add(DeltaOf(0, "ab")), "ab");
    EXPECT_EQ(text.Add(DeltaOf(0, "c")), "c");
    EXPECT_EQ(text.Add(EndOf(0)), "\n");
    EXPECT_EQ(text.Finish(), "");
  }
}

TEST(AnswerTextTest, SeveralComeOneAfterTheOther) {
  AnswerText text(3);
  EXPECT_EQ(text.Add(DeltaOf(1, "second, ")), "");
  EXPECT_EQ(text.Add(DeltaOf(0, "first")), "[1/3]\nfirst");
  EXPECT_EQ(text.Add(DeltaOf(2, "third")), "");
  EXPECT_EQ(text.Add(EndOf(2)), "");
  EXPECT_EQ(text.Add(DeltaOf(1, "held")), "");
  EXPECT_EQ(text.Add(EndOf(0)), "\n[2/3]\nsecond, held");
  EXPECT_EQ(text.Add(DeltaOf(1, ", live")), ", live");
  EXPECT_EQ(text.Add(EndOf(1)), "\n[3/3]\nthird\n");
  EXPECT_EQ(text.Finish(), "");
}

TEST(AnswerTextTest, WhatHasComeIsPrintedWhenTheStreamBreaks) {
  AnswerText text(4);
  EXPECT_EQ(text.Add(DeltaOf(0, "a")), "[1/4]\na");
  EXPECT_EQ(text.Add(DeltaOf(2, "c")), "");
  EXPECT_EQ(text.Finish(), "\n[3/4]\nc\n");
  EXPECT_EQ(AnswerText(4).Finish(), "");
  EXPECT_EQ(AnswerText(1).Finish(), "");
}

TEST(AnswerTextTest, HugeNumbersCostNothing) {
  AnswerText text(4'000'000'000u);
  EXPECT_EQ(text.Add(DeltaOf(3'999'999'999u, "x")), "");
  EXPECT_EQ(text.Add(DeltaOf(4'000'000'000u, "not asked for")), "");
  EXPECT_EQ(text.Finish(), "[4000000000/4000000000]\nx\n");
}

}  // namespace
}  // namespace overfill
