// Transfers that do not come to their end: what their requests, their blocks
// and everybody else see of it.
#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/scheduler/rig.h"

namespace overfill {
namespace {

using std::chrono::milliseconds;

// Long enough that a copy which nothing holds up is done in time.
constexpr milliseconds kLease(250);
constexpr milliseconds kEver(600000);

// Waits until `holds`; fails after a minute.
void Await(const std::function<bool()>& holds) {
  for (int i = 0; i < 60000 && !holds(); ++i) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  ASSERT_TRUE(holds());
}

void ExpectSound(Rig& rig) {
  const absl::Status status = rig.scheduler->CheckIntegrity();
  EXPECT_TRUE(status.ok()) << status;
}

int32_t NumQuarantined(Rig& rig) {
  int32_t count = 0;
  for (const BlockCounts& store : rig.scheduler->Stats().stores) {
    count += store.quarantined;
  }
  return count;
}

// 18 blocks of 4 tokens: for one answer of 38 tokens to a prompt of 9, not for
// two.
RigOptions Options(bool is_shared, milliseconds lease) {
  RigOptions options;
  options.is_shared = is_shared;
  options.prefill_blocks = 18;
  options.decode_blocks = 18;
  options.swap_blocks = {60, is_shared ? 0 : 60};
  options.scheduler.transfer_lease = lease;
  return options;
}

// A kind of transfer, and the mover that it is stopped at.
struct Kind {
  std::string name;
  bool is_shared;
  FakeMover& (*mover)(Rig&);
  int32_t num_samples = 1;
  // Requests that are there when the transfer begins; the stopped one is among
  // them.
  int32_t num_requests = 1;
  int32_t max_tokens = 38;
  // Until the fence nobody else finds blocks for a start.
  bool fills_store = false;
  std::string message;
};

const Kind kKinds[] = {
    {.name = "migration",
     .is_shared = false,
     .mover = [](Rig& rig) -> FakeMover& { return rig.mover; },
     .message = "the prompt's migration took too long"},
    {.name = "fork",
     .is_shared = true,
     .mover = [](Rig& rig) -> FakeMover& { return rig.fork[0]; },
     .num_samples = 3,
     .max_tokens = 9,
     .message = "the copy of the prompt's last block took too long"},
    {.name = "fork in the decode store",
     .is_shared = false,
     .mover = [](Rig& rig) -> FakeMover& { return rig.fork[1]; },
     .num_samples = 3,
     .max_tokens = 9,
     .message = "the copy of the prompt's last block took too long"},
    {.name = "swap out",
     .is_shared = true,
     .mover = [](Rig& rig) -> FakeMover& { return rig.swap_out[0]; },
     .num_requests = 2,
     .fills_store = true,
     .message =
         "a preempted answer's way to or from the swap space took too long"},
    {.name = "swap out of the decode store",
     .is_shared = false,
     .mover = [](Rig& rig) -> FakeMover& { return rig.swap_out[1]; },
     .num_requests = 2,
     .message =
         "a preempted answer's way to or from the swap space took too long"},
    {.name = "swap in",
     .is_shared = true,
     .mover = [](Rig& rig) -> FakeMover& { return rig.swap_in[0]; },
     .num_requests = 2,
     .message =
         "a preempted answer's way to or from the swap space took too long"},
    {.name = "swap in of the decode store",
     .is_shared = false,
     .mover = [](Rig& rig) -> FakeMover& { return rig.swap_in[1]; },
     .num_requests = 2,
     .message =
         "a preempted answer's way to or from the swap space took too long"},
};

// Brings a transfer of the kind to its closed gate; returns its request.
Client& Stop(Rig& rig, const Kind& kind) {
  kind.mover(rig).CloseGate();
  if (kind.num_requests > 1) rig.pruned.CloseGate();
  for (int i = 0; i < kind.num_requests; ++i) {
    // Of 9 tokens: there is a last block to be copied.
    Request request =
        rig.MakeRequest(DecodePath::kTwoStage, 9, kind.max_tokens);
    request.n = kind.num_samples;
    rig.Submit(request);
  }
  if (kind.num_requests > 1) {
    // They go on side by side.
    Await([&] {
      return rig.scheduler->Stats().requests.decoding == kind.num_requests;
    });
    rig.pruned.OpenGate();
  }
  kind.mover(rig).AwaitAtGate();
  return *rig.clients.back();
}

class Lease : public testing::TestWithParam<Kind> {};

TEST_P(Lease, ARequestEndsWithItAndItsBlocksWaitForTheFence) {
  const Kind& kind = GetParam();
  Rig rig(Options(kind.is_shared, kLease));
  Client& stopped = Stop(rig, kind);
  // Its end does not wait: the gate is still closed.
  rig.ExpectStatus(stopped, absl::StatusCode::kUnavailable);
  EXPECT_EQ(stopped.Wait().status.message(), kind.message);
  EXPECT_GT(stopped.num_tokens(), 0u);
  EXPECT_EQ(rig.scheduler->Stats().transfers.fencing, 1);
  EXPECT_GT(NumQuarantined(rig), 0);
  ExpectSound(rig);
  // Others go on, where they find blocks and a way that is free.
  if (!kind.fills_store) {
    rig.ExpectRight(rig.Submit(DecodePath::kFull, 6, 10));
    if (kind.is_shared) {
      rig.ExpectRight(rig.Submit(DecodePath::kTwoStage, 6, 10));
    }
  }
  EXPECT_EQ(rig.scheduler->Stats().transfers.fencing, 1);
  ExpectSound(rig);
  kind.mover(rig).OpenGate();
  Await([&] { return rig.scheduler->Stats().transfers.fencing == 0; });
  Await([&] { return NumQuarantined(rig) == 0; });
  ExpectSound(rig);
  for (auto& client : rig.clients) {
    if (client.get() != &stopped) rig.ExpectRight(*client);
  }
  rig.Finish();
  EXPECT_EQ(rig.scheduler->Stats().transfers.discarded_commits, 0);
}

// What comes in time is no failure, whatever the others' leases are.
TEST_P(Lease, WhatComesInTimeCounts) {
  const Kind& kind = GetParam();
  Rig rig(Options(kind.is_shared, kEver));
  Stop(rig, kind);
  std::this_thread::sleep_for(milliseconds(50));
  ExpectSound(rig);
  kind.mover(rig).OpenGate();
  for (auto& client : rig.clients) rig.ExpectRight(*client);
  rig.Finish();
}

TEST_P(Lease, TheSchedulerCanEndWhileItsTransfersAreUnderWayOrFenced) {
  const Kind& kind = GetParam();
  for (const bool is_fenced : {false, true}) {
    Rig rig(Options(kind.is_shared, is_fenced ? kLease : kEver));
    Stop(rig, kind);
    if (is_fenced) {
      Await([&] { return rig.scheduler->Stats().transfers.fencing > 0; });
    }
    // More of them behind it.
    for (int i = 0; i < 6; ++i) {
      Request request = rig.MakeRequest(DecodePath::kTwoStage, 9, 9);
      request.n = 2;
      rig.Submit(request);
    }
    std::thread opener([&] {
      std::this_thread::sleep_for(milliseconds(20));
      rig.OpenGates();
    });
    rig.Destroy();
    opener.join();
    EXPECT_EQ(rig.observer.counts().terminals,
              static_cast<int64_t>(rig.clients.size()));
    for (auto& client : rig.clients) {
      if (client->Wait().status.ok()) {
        rig.ExpectRight(*client);
      } else {
        rig.ExpectStatus(*client, absl::StatusCode::kUnavailable);
      }
      EXPECT_EQ(client->num_events_after_end, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Lease, testing::ValuesIn(kKinds),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::replace(name.begin(), name.end(), ' ', '_');
                           return name;
                         });

// The blocks of both sides, by number.
TEST(LeaseOfAMigration, BothSidesAreQuarantined) {
  RigOptions options = Options(/*is_shared=*/false, kLease);
  options.swap_blocks = {};
  Rig rig(options);
  rig.mover.CloseGate();
  Client& client = rig.Submit(DecodePath::kTwoStage, 10, 20);
  rig.ExpectStatus(client, absl::StatusCode::kUnavailable);
  for (const int store : {0, 1}) {
    EXPECT_EQ(rig.Blocks(store).quarantined, 3) << store;
    EXPECT_EQ(rig.Blocks(store).owned, 0) << store;
  }
  // The prompt's full blocks are of use even now.
  Request again = client.request;
  again.request_id = "again";
  again.path = DecodePath::kFull;
  rig.ExpectRight(rig.Submit(again));
  EXPECT_EQ(rig.clients.back()->Wait().usage.cached_prompt_tokens, 8);
  rig.mover.OpenGate();
  Await([&] { return NumQuarantined(rig) == 0; });
  EXPECT_EQ(rig.Blocks(1).free, 18);
  rig.Finish();
}

// A fence that does not come keeps its own blocks; who needs others takes them
// from those that can leave, and does not wait for it.
TEST(LeaseOfAMigration, AnswersMakeRoomWhileItsFenceIsMissing) {
  RigOptions options = Options(/*is_shared=*/false, kLease);
  options.prefill_blocks = 24;
  Rig rig(options);
  rig.mover.CloseGate();
  Client& stopped = rig.Submit(DecodePath::kTwoStage, 10, 20);
  rig.ExpectStatus(stopped, absl::StatusCode::kUnavailable);
  EXPECT_EQ(rig.Blocks(0).quarantined, 3);
  for (int i = 0; i < 3; ++i) rig.Submit(DecodePath::kFull, 9, 60);
  for (int i = 1; i < 4; ++i) rig.ExpectRight(*rig.clients[i]);
  EXPECT_GT(rig.observer.counts().preemptions, 0);
  EXPECT_EQ(rig.scheduler->Stats().transfers.fencing, 1);
  ExpectSound(rig);
  rig.mover.OpenGate();
  rig.Finish();
}

struct Misbehaviour {
  FaultRates rates;
  milliseconds lease;
  bool is_harmless;  // every answer comes all the same
};

// Messages that come twice, out of order, or when nobody waits for them any
// more have no effect, and are counted.
TEST(LeaseOfMessages, StaleLateAndRepeatedCommitsHaveNoEffect) {
  const Misbehaviour cases[] = {
      {.rates = {.duplicate = 1}, .lease = kEver, .is_harmless = true},
      {.rates = {.delay = 0.5, .late_fence = 1},
       .lease = milliseconds(2),
       .is_harmless = false},
      {.rates = {.delay = 0.5}, .lease = milliseconds(2), .is_harmless = false},
      {.rates = {.reorder = 0.5},
       .lease = milliseconds(2),
       .is_harmless = false},
  };
  for (const Misbehaviour& kind : cases) {
    RigOptions options = Options(/*is_shared=*/false, kind.lease);
    Rig rig(options);
    rig.PlantFaults({.seed = TestSeed(),
                     .rates = kind.rates,
                     .max_delay = milliseconds(20)});
    int64_t num_ended = 0;
    for (int i = 0; i < 30; ++i) {
      Request request = rig.MakeRequest(DecodePath::kTwoStage, 9, 12);
      request.n = 1 + i % 3;
      rig.Submit(request);
    }
    for (auto& client : rig.clients) {
      if (client->Wait().status.ok()) {
        rig.ExpectRight(*client);
      } else {
        rig.ExpectStatus(*client, absl::StatusCode::kUnavailable);
        ++num_ended;
      }
      ExpectSound(rig);
    }
    EXPECT_EQ(num_ended == 0, kind.is_harmless);
    // Each late one is to come before the count is looked at.
    Await(
        [&] { return rig.scheduler->Stats().transfers.discarded_commits > 0; });
    if (kind.is_harmless) {
      Await([&] {
        return rig.scheduler->Stats().transfers.discarded_commits ==
               rig.faulty->counts().duplicated;
      });
    }
    ExpectSound(rig);
    rig.Finish();
  }
}

// A copy that goes on writing into its destination until it is fenced: no
// other request has the blocks meanwhile.
TEST(LeaseOfAStall, WhatItWritesIsNobodysKv) {
  RigOptions options = Options(/*is_shared=*/false, milliseconds(3));
  Rig rig(options);
  rig.PlantFaults({.seed = TestSeed(),
                   .rates = {.stall = 0.3, .late_fence = 1},
                   .max_delay = milliseconds(20)});
  int64_t num_right = 0;
  for (int i = 0; i < 60; ++i) rig.Submit(DecodePath::kTwoStage, 9, 20);
  for (auto& client : rig.clients) {
    if (client->Wait().status.ok()) {
      rig.ExpectRight(*client);
      ++num_right;
    } else {
      rig.ExpectStatus(*client, absl::StatusCode::kUnavailable);
    }
    ExpectSound(rig);
  }
  EXPECT_GT(num_right, 0);
  EXPECT_LT(num_right, 60);
  rig.Finish();
}

}  // namespace
}  // namespace overfill
