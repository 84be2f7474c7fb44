#include "scheduler/event_queue.h"

#include <string>
#include <thread>

#include "gtest/gtest.h"

namespace overfill {
namespace {

Delta Text(const std::string& text) {
  Delta delta;
  delta.text = text;
  delta.token_ids = {1};
  return delta;
}

std::string PopText(EventQueue& queue) {
  const auto event = queue.Pop();
  if (!event) return "<none>";
  if (const auto* delta = std::get_if<Delta>(&*event)) return delta->text;
  return "<end>";
}

TEST(EventQueue, JoinsWhatWasNotTaken) {
  int calls = 0;
  EventQueue queue(1000, [&] { ++calls; });
  EXPECT_EQ(PopText(queue), "<none>");
  EXPECT_TRUE(queue.Push(Text("a")));
  EXPECT_TRUE(queue.Push(Text("b")));
  EXPECT_EQ(calls, 1);
  auto event = queue.Pop();
  EXPECT_EQ(std::get<Delta>(*event).text, "ab");
  EXPECT_EQ(std::get<Delta>(*event).token_ids.size(), 2u);
  EXPECT_TRUE(queue.Push(Text("c")));
  (void)queue.Finish({});
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(PopText(queue), "c");
  EXPECT_EQ(PopText(queue), "<end>");
  EXPECT_EQ(PopText(queue), "<none>");
}

TEST(EventQueue, PastTheBoundOnlyTheEndFits) {
  EventQueue queue(20, nullptr);
  EXPECT_TRUE(queue.Push(Text("0123456789")));
  EXPECT_FALSE(queue.Push(Text("0123456789")));
  EXPECT_FALSE(queue.Push(Text("")));
  EXPECT_EQ(PopText(queue), "0123456789");
  EXPECT_FALSE(queue.Push(Text("")));
  (void)queue.Finish({});
  EXPECT_EQ(PopText(queue), "<end>");
}

// The last delta and the end come together: the end must not say that the
// answer is complete when its last piece is not there.
TEST(EventQueue, AnAnswerThatLostAPieceIsNotComplete) {
  EventQueue queue(20, nullptr);
  EXPECT_TRUE(queue.Push(Text("0123456789")));
  EXPECT_FALSE(queue.Push(Text("the last piece")));
  (void)queue.Finish({});
  EXPECT_EQ(PopText(queue), "0123456789");
  const auto end = queue.Pop();
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(std::get<Terminal>(*end).status.code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(EventQueue, TakingMakesRoomAgain) {
  EventQueue queue(20, nullptr);
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(queue.Push(Text("0123456789")));
    EXPECT_EQ(PopText(queue), "0123456789");
  }
}

TEST(EventQueue, LogprobsCountTowardsTheBound) {
  EventQueue queue(100, nullptr);
  Delta delta = Text("");
  delta.logprobs.resize(1);
  delta.logprobs[0].top.resize(20);
  EXPECT_FALSE(queue.Push(delta));
}

TEST(EventQueueDeathTest, ThereIsOneEnd) {
  EventQueue queue(20, nullptr);
  (void)queue.Finish({});
  EXPECT_FALSE(queue.Push(Text("a")));
  EXPECT_DEATH((void)queue.Finish({}), "second terminal");
}

TEST(EventQueue, TheReaderMayPopWithinTheCall) {
  std::string text;
  EventQueue* self = nullptr;
  EventQueue queue(1000, [&] { text += PopText(*self); });
  self = &queue;
  EXPECT_TRUE(queue.Push(Text("a")));
  EXPECT_TRUE(queue.Push(Text("b")));
  (void)queue.Finish({});
  EXPECT_EQ(text, "ab<end>");
}

TEST(EventQueue, TwoThreadsLoseNothing) {
  EventQueue queue(1 << 20, nullptr);
  std::thread producer([&] {
    for (int i = 0; i < 5000; ++i) queue.Push(Text("x"));
    (void)queue.Finish({});
  });
  std::string text;
  while (true) {
    const std::string got = PopText(queue);
    if (got == "<end>") break;
    if (got != "<none>") text += got;
  }
  producer.join();
  EXPECT_EQ(text, std::string(5000, 'x'));
}

}  // namespace
}  // namespace overfill
