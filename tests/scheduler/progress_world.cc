#include "tests/scheduler/progress_world.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/checked_math.h"

namespace overfill {

std::string ProgressWorld::Run() {
  for (int64_t event = 0; num_to_come_ > 0 || !live_.empty(); ++event) {
    while (num_to_come_ > 0 && live_.size() < kMaxLive) Add();
    if (live_.empty()) break;
    if (!Happen()) return "a deadlock";
    if (!violation_.empty()) return violation_;
    if (++idle_events_ > kPatienceEvents)
      return "the first in line stands still";
    if (event % 64 != 0) continue;
    const absl::Status status = Integrity();
    if (!status.ok()) return std::string(status.message());
  }
  if (steps_[0] || steps_[1] || !transfers_.empty()) {
    while (Happen()) continue;
  }
  for (int store = 0; store < kNumStores; ++store) {
    if (ledger_.Available(store) != SizeOf(store)) return "lost blocks";
  }
  for (int slots : free_slots_) {
    if (slots != budget_.max_sequences) return "lost places";
  }
  return "";
}

KvStores ProgressWorld::RandomStores() {
  KvStores stores{.block_tokens = Pick(1, 4),
                  .prefill_blocks = Pick(1, 20),
                  .decode_blocks = random_() % 2 ? Pick(1, 20) : 0};
  for (int store = 0; store < (stores.is_shared() ? 1 : 2); ++store) {
    const int32_t sizes[] = {0, Pick(1, 8), kAllSwapped};
    stores.swap_blocks[store] = sizes[random_() % 3];
  }
  return stores;
}

void ProgressWorld::Add() {
  --num_to_come_;
  Request request;
  request.path = static_cast<DecodePath>(random_() % kNumDecodePaths);
  request.prompt_ids.resize(Pick(1, 16), 0);
  request.stop_rules.max_tokens = Pick(1, 24);
  request.priority = Pick(0, 2);
  // Without blocks for answers there are none to fork into.
  if (rules_ != ProgressRules::kStartsWithoutAnswersBlocks &&
      random_() % 4 == 0) {
    request.n = Pick(1, std::min(3, budget_.max_sequences));
  }
  auto live = std::make_shared<LiveRequest>(next_uid_, std::move(request),
                                            nullptr, &TestTokenizer());
  next_uid_ += live->request.n;
  const auto blocks =
      stores_.WorstCase(live->route, live->first().prompt_tokens(),
                        live->request.stop_rules.max_tokens, live->request.n);
  for (int store = 0; store < 2; ++store) {
    if (rules_ != ProgressRules::kAnySize && blocks[store] > SizeOf(store))
      return;
  }
  live_[live->uid] = live;
  queued_.push_back(live);
}

bool ProgressWorld::Happen() {
  const size_t count = 2 + transfers_.size();
  const size_t first = random_() % count;
  for (size_t i = 0; i < count; ++i) {
    const size_t choice = (first + i) % count;
    if (choice >= 2) {
      FinishTransfer(choice - 2);
      return true;
    }
    const auto pool = static_cast<PoolId>(choice);
    if (steps_[choice]) {
      Apply(pool, *std::exchange(steps_[choice], std::nullopt));
      return true;
    }
    if (Plan(pool)) return true;
  }
  return false;
}

bool ProgressWorld::Plan(PoolId pool) {
  const size_t num_moving = transfers_.size();
  const size_t num_live = live_.size();
  MigrateStranded();
  const std::vector<SequencePtr> answers = Runnable(pool);
  std::vector<SequencePtr> candidates;
  PlanInput input = MakeInput(pool, candidates);
  input.num_decode_rows = static_cast<int32_t>(answers.size());
  const StepPlan plan = PlanStep(input);
  for (size_t i : plan.returns) Return(candidates[i]);
  Step step;
  for (const SequencePtr& sequence : answers)
    step.rows.push_back({sequence, 0});
  for (const PrefillShare& share : plan.prefill) {
    const SequencePtr& sequence = candidates[share.candidate];
    if (sequence->state == SequenceState::kQueued) Start(Find(*sequence));
    ledger_.Cover(*sequence, pool, sequence->num_computed + share.rows);
    step.rows.push_back({sequence, share.rows});
  }
  if (!step.rows.empty()) {
    std::vector<int32_t> blocks;
    for (const auto& [sequence, rows] : step.rows) {
      const auto& table = sequence->holdings[StoreOf(pool)].table;
      blocks.insert(blocks.end(), table.begin(), table.end());
      sequence->is_in_step = true;
    }
    step.pin = ledger_.Pin(StoreOf(pool), blocks, "a step");
    steps_[static_cast<int>(pool)] = std::move(step);
  }
  return steps_[static_cast<int>(pool)] || transfers_.size() > num_moving ||
         live_.size() < num_live;
}

std::vector<SequencePtr> ProgressWorld::Runnable(PoolId pool) {
  std::vector<SequencePtr> answers = decoding_[static_cast<int>(pool)];
  std::sort(answers.begin(), answers.end(),
            [](const SequencePtr& a, const SequencePtr& b) {
              return OutlastsBlocks(AnswerOf(*a), AnswerOf(*b));
            });
  std::vector<SequencePtr> runnable;
  for (const SequencePtr& sequence : answers) {
    if (sequence->state != SequenceState::kDecoding) continue;
    if (ledger_.Grow(*sequence, pool, sequence->num_computed + 1)) {
      runnable.push_back(sequence);
    } else {
      MakeRoom(sequence);
    }
  }
  std::erase_if(runnable, [](const SequencePtr& sequence) {
    return sequence->state != SequenceState::kDecoding;
  });
  return runnable;
}

RunningAnswer ProgressWorld::AnswerOf(const Sequence& sequence) {
  return {.priority = sequence.request().priority,
          .order = sequence.uid,
          .is_to_leave = sequence.is_to_leave};
}

std::vector<SequencePtr> ProgressWorld::AnswersIn(int store) const {
  std::vector<SequencePtr> sequences;
  for (const auto& decoding : decoding_) {
    for (const SequencePtr& sequence : decoding) {
      if (StoreOf(sequence->answer_pool()) == store) {
        sequences.push_back(sequence);
      }
    }
  }
  return sequences;
}

void ProgressWorld::MakeRoom(const SequencePtr& sequence) {
  const int store = StoreOf(sequence->answer_pool());
  if (rules_ == ProgressRules::kNobodyGoes) return;
  if (!stores_.CanSwap(store)) {
    if (rules_ == ProgressRules::kRight) violation_ = "growth without a credit";
    return;
  }
  const std::vector<SequencePtr> sequences = AnswersIn(store);
  std::vector<RunningAnswer> answers;
  for (const SequencePtr& other : sequences) {
    answers.push_back(AnswerOf(*other));
  }
  const auto needy = static_cast<size_t>(
      std::find(sequences.begin(), sequences.end(), sequence) -
      sequences.begin());
  auto victim = ChooseVictim(answers, needy, IsRoomComing(store));
  if (!victim) return;
  if (rules_ == ProgressRules::kEldestGoes) {
    victim = std::min_element(answers.begin(), answers.end(), OutlastsBlocks) -
             answers.begin();
  }
  if (sequences[*victim].get() == FirstInLine()) {
    violation_ = "the first in line gave up its place";
  }
  if (sequences[*victim]->is_in_step) {
    sequences[*victim]->is_to_leave = true;
  } else {
    Preempt(sequences[*victim]);
  }
}

bool ProgressWorld::IsRoomComing(int store) const {
  if (ledger_.Quarantined(store) > 0) return true;
  return std::any_of(transfers_.begin(), transfers_.end(),
                     [&](const Transfer& transfer) {
                       return transfer.from == store &&
                              transfer.state == SequenceState::kLeaving &&
                              transfer.sequence->state == transfer.state;
                     });
}

PlanInput ProgressWorld::MakeInput(PoolId pool,
                                   std::vector<SequencePtr>& candidates) {
  PlanInput input;
  input.budget = budget_;
  input.available = AvailableNow();
  const auto add = [&](const SequencePtr& sequence,
                       PrefillCandidate candidate) {
    candidate.priority = sequence->request().priority;
    candidate.order = sequence->uid;
    input.prefill.push_back(candidate);
    candidates.push_back(sequence);
  };
  for (const SequencePtr& s : prefilling_[static_cast<int>(pool)]) {
    add(s, {.remaining_rows = s->prompt_tokens() - s->num_computed,
            .is_started = true,
            .needs = {}});
  }
  for (const auto& [uid, s] : swapped_) {
    add(s, {.needs = NeedsToReturn(*s),
            .is_return = true,
            .is_here = s->answer_pool() == pool});
  }
  for (const LivePtr& live : queued_) {
    const SequencePtr s = PtrOf(live, 0);
    add(s, {.remaining_rows = s->prompt_tokens(),
            .needs = NeedsToStart(*live),
            .is_here = s->prompt_pool() == pool});
  }
  return input;
}

Resources ProgressWorld::AvailableNow() const {
  Resources available{.slots = free_slots_};
  for (int store = 0; store < 2; ++store) {
    available.blocks[store] = ledger_.Available(store);
    if (!stores_.CanSwap(store) ||
        rules_ == ProgressRules::kStartsWithoutHeadroom) {
      continue;
    }
    available.blocks[store] = AvailableForStarts(
        available.blocks[store], static_cast<int32_t>(AnswersIn(store).size()));
  }
  return available;
}

std::array<int64_t, 2> ProgressWorld::BlocksToStart(const LiveRequest& live,
                                                    int64_t num_samples) const {
  const int32_t max_tokens = live.request.stop_rules.max_tokens;
  return stores_.BlocksFor(
      live.route, live.first().prompt_tokens(),
      rules_ == ProgressRules::kStartsWithoutAnswersBlocks
          ? 1
          : stores_.AnswerTokensAtStart(live.route, max_tokens),
      num_samples);
}

Resources ProgressWorld::NeedsToStart(const LiveRequest& live) const {
  const auto blocks = BlocksToStart(live, live.request.n);
  Resources needs;
  for (int i = 0; i < 2; ++i) needs.blocks[i] = static_cast<int32_t>(blocks[i]);
  const Sequence& first = live.first();
  needs.slots[static_cast<int>(first.prompt_pool())] = live.request.n;
  if (live.request.stop_rules.max_tokens > 1) {
    needs.slots[static_cast<int>(first.answer_pool())] = live.request.n;
  }
  return needs;
}

Resources ProgressWorld::NeedsToReturn(const Sequence& sequence) const {
  Resources needs;
  needs.blocks[StoreOf(sequence.answer_pool())] =
      sequence.num_computed / stores_.block_tokens + 1;
  needs.slots[static_cast<int>(sequence.answer_pool())] = 1;
  return needs;
}

void ProgressWorld::Start(const LivePtr& live) {
  Sequence& first = live->first();
  Resources needs = NeedsToStart(*live);
  const int store = StoreOf(first.answer_pool());
  const auto own = static_cast<int32_t>(BlocksToStart(*live, 2)[store] -
                                        BlocksToStart(*live, 1)[store]);
  for (Sequence& sample : live->samples) {
    if (sample.index > 0) {
      ledger_.Reserve(sample, store, own);
      needs.blocks[store] -= own;
    }
    for (int pool = 0; pool < 2; ++pool) {
      if (needs.slots[pool] > 0) TakeSlot(sample, pool);
    }
    sample.state = SequenceState::kWaiting;
  }
  for (int i = 0; i < 2; ++i) ledger_.Reserve(first, i, needs.blocks[i]);
  std::erase(queued_, live);
  first.state = SequenceState::kPrefilling;
  prefilling_[static_cast<int>(first.prompt_pool())].push_back(PtrOf(live, 0));
}

void ProgressWorld::Apply(PoolId pool, const Step& step) {
  ledger_.Unpin(StoreOf(pool), step.pin);
  for (const auto& [sequence, rows] : step.rows) sequence->is_in_step = false;
  for (const auto& [sequence, rows] : step.rows) {
    if (sequence->state == SequenceState::kEnded) continue;
    NoteProgress(*sequence);
    sequence->num_computed += std::max(rows, 1);
    if (rows > 0) {
      if (sequence->num_computed == sequence->prompt_tokens()) {
        LeavePrompt(sequence);
      }
    } else if (TakeToken(sequence)) {
      LetGo(sequence);
    } else if (sequence->is_to_leave) {
      Preempt(sequence);
    }
  }
}

bool ProgressWorld::TakeToken(const SequencePtr& sequence) {
  ++counts_.tokens;
  return ++num_tokens_[sequence->uid] ==
             sequence->request().stop_rules.max_tokens ||
         random_() % 32 == 0;
}

void ProgressWorld::LeavePrompt(const SequencePtr& reader) {
  const LivePtr live = Find(*reader);
  std::erase(prefilling_[static_cast<int>(reader->prompt_pool())], reader);
  reader->state = SequenceState::kWaiting;
  std::vector<SequencePtr> ended;
  SequencePtr carrier;
  for (int32_t i = 0; i < live->request.n; ++i) {
    const SequencePtr sample = PtrOf(live, i);
    if (TakeToken(sample)) {
      ended.push_back(sample);
    } else if (!carrier) {
      carrier = sample;
    }
  }
  if (carrier && carrier != reader) {
    ledger_.Exchange(*reader, *carrier);
    carrier->num_computed = reader->num_computed;
  }
  for (const SequencePtr& sample : ended) LetGo(sample);
  if (!carrier) return;
  if (carrier->answer_pool() == carrier->prompt_pool()) {
    BeginAnswers(carrier);
    return;
  }
  for (Sequence& sample : live->samples) {
    FreeSlot(sample, static_cast<int>(sample.prompt_pool()));
  }
  stranded_.push_back(carrier);
  MigrateStranded();
}

void ProgressWorld::MigrateStranded() {
  for (const SequencePtr& s : std::exchange(stranded_, {})) {
    if (s->state == SequenceState::kEnded) continue;
    if (stores_.is_shared()) {
      ledger_.HandOver(*s, s->answer_pool());
      BeginAnswers(s);
    } else if (ledger_.Grow(*s, s->answer_pool(), s->num_computed)) {
      MoveAll(s, SequenceState::kMigrating, StoreOf(s->prompt_pool()),
              StoreOf(s->answer_pool()));
    } else {
      stranded_.push_back(s);
    }
  }
}

void ProgressWorld::BeginAnswers(const SequencePtr& carrier) {
  const LivePtr live = Find(*carrier);
  for (int32_t i = 0; i < live->request.n; ++i) {
    const SequencePtr sample = PtrOf(live, i);
    if (sample == carrier || sample->state != SequenceState::kWaiting) {
      continue;
    }
    ++counts_.forks;
    const PoolId pool = carrier->answer_pool();
    const auto copy =
        ledger_.Fork(*carrier, *sample, pool, carrier->num_computed);
    sample->num_computed = carrier->num_computed;
    if (copy) {
      Send(sample, SequenceState::kForking, StoreOf(pool), StoreOf(pool),
           {copy->source}, {copy->destination});
    } else {
      BeginDecode(sample);
    }
  }
  BeginDecode(carrier);
}

void ProgressWorld::Preempt(const SequencePtr& sequence) {
  const int store = StoreOf(sequence->answer_pool());
  sequence->is_to_leave = false;
  if (!ledger_.CoverSwap(*sequence, SwapStoreOf(store),
                         sequence->num_computed)) {
    ++counts_.exhausted;
    const LivePtr live = Find(*sequence);
    for (int32_t i = 0; i < live->request.n; ++i) LetGo(PtrOf(live, i));
    return;
  }
  ++counts_.preemptions;
  std::erase(decoding_[static_cast<int>(sequence->answer_pool())], sequence);
  FreeSlot(*sequence, static_cast<int>(sequence->answer_pool()));
  ledger_.Unreserve(*sequence, store);
  MoveAll(sequence, SequenceState::kLeaving, store, SwapStoreOf(store));
}

void ProgressWorld::Return(const SequencePtr& sequence) {
  const PoolId pool = sequence->answer_pool();
  const int store = StoreOf(pool);
  swapped_.erase(sequence->uid);
  ledger_.Reserve(*sequence, store, NeedsToReturn(*sequence).blocks[store]);
  TakeSlot(*sequence, static_cast<int>(pool));
  ledger_.Cover(*sequence, pool, sequence->num_computed);
  MoveAll(sequence, SequenceState::kReturning, SwapStoreOf(store), store);
}

void ProgressWorld::MoveAll(const SequencePtr& sequence, SequenceState state,
                            int from, int to) {
  const auto count =
      CeilDiv(int64_t{sequence->num_computed}, stores_.block_tokens);
  const auto part = [&](int store) {
    const auto& table = sequence->holdings[store].table;
    return std::vector<int32_t>(table.begin(), table.begin() + count);
  };
  Send(sequence, state, from, to, part(from), part(to));
}

void ProgressWorld::Send(const SequencePtr& sequence, SequenceState state,
                         int from, int to, const std::vector<int32_t>& source,
                         const std::vector<int32_t>& destination) {
  sequence->state = state;
  transfers_.push_back({sequence, state, from, to,
                        ledger_.Pin(from, source, "a transfer"),
                        ledger_.Pin(to, destination, "a transfer")});
}

void ProgressWorld::FinishTransfer(size_t index) {
  const Transfer transfer = transfers_[index];
  transfers_.erase(transfers_.begin() + static_cast<ptrdiff_t>(index));
  ledger_.Unpin(transfer.from, transfer.source);
  ledger_.Unpin(transfer.to, transfer.destination);
  const SequencePtr& sequence = transfer.sequence;
  if (sequence->state == SequenceState::kEnded) return;
  NoteProgress(*sequence);
  if (transfer.from != transfer.to) ledger_.Release(*sequence, transfer.from);
  switch (transfer.state) {
    case SequenceState::kMigrating:
      BeginAnswers(sequence);
      return;
    case SequenceState::kLeaving:
      sequence->state = SequenceState::kSwapped;
      swapped_[sequence->uid] = sequence;
      return;
    case SequenceState::kForking:
      ledger_.ReturnLent(*sequence, transfer.from);
      BeginDecode(sequence);
      return;
    default:
      BeginDecode(sequence);
  }
}

void ProgressWorld::LetGo(const SequencePtr& sequence) {
  if (sequence->state == SequenceState::kEnded) return;
  for (int pool = 0; pool < 2; ++pool) {
    std::erase(decoding_[pool], sequence);
    FreeSlot(*sequence, pool);
  }
  swapped_.erase(sequence->uid);
  ledger_.ReleaseAll(*sequence);
  sequence->state = SequenceState::kEnded;
  const LivePtr live = Find(*sequence);
  if (--live->num_running > 0) return;
  ++counts_.completed;
  live_.erase(live->uid);
  idle_events_ = 0;
}

const Sequence* ProgressWorld::FirstInLine() const {
  const auto first = std::min_element(
      live_.begin(), live_.end(), [](const auto& a, const auto& b) {
        return OutlastsBlocks(AnswerOf(a.second->first()),
                              AnswerOf(b.second->first()));
      });
  for (const Sequence& sample : first->second->samples) {
    if (sample.state != SequenceState::kEnded) return &sample;
  }
  return nullptr;
}

}  // namespace overfill
