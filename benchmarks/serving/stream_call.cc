#include "benchmarks/serving/stream_call.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace overfill {

StreamCall::StreamCall(StreamCallOptions options, PlannedRequest plan,
                       double scheduled, EventLoop* loop)
    : options_(options), loop_(loop) {
  MutexLock lock(&mu_);
  record_.plan = std::move(plan);
  record_.scheduled = scheduled;
}

void StreamCall::Start(v1::Inference::Stub& stub, v1::GenerateRequest request,
                       std::function<void()> on_end) {
  self_ = shared_from_this();
  request_ = std::move(request);
  on_end_ = std::move(on_end);
  ReaderKind reader;
  {
    MutexLock lock(&mu_);
    record_.samples.resize(std::max(1u, request_.n()));
    record_.sent = SteadySeconds();
    reader = record_.plan.reader;
    if (record_.plan.timeout_seconds > 0) {
      context_.set_deadline(std::chrono::system_clock::now() +
                            std::chrono::microseconds(static_cast<int64_t>(
                                record_.plan.timeout_seconds * 1e6)));
    }
  }
  stub.async()->Generate(&context_, &request_, this);
  // Reads from the loop's thread are none of gRPC's reactions: a hold keeps
  // the call from ending between them.
  if (reader == ReaderKind::kSlow) AddHold();
  if (reader != ReaderKind::kDead) StartRead(&response_);
  SetTimers();
  StartCall();
}

void StreamCall::SetTimers() {
  std::weak_ptr<StreamCall> weak = weak_from_this();
  const auto cancel = [weak] {
    if (const auto call = weak.lock()) call->Cancel(/*give_up=*/false);
  };
  MutexLock lock(&mu_);
  if (record_.plan.cancel_after_seconds) {
    loop_->At(record_.sent + *record_.plan.cancel_after_seconds, cancel);
  }
  if (record_.plan.reader == ReaderKind::kDead) {
    loop_->At(record_.sent + options_.dead_hold_seconds, cancel);
  }
}

void StreamCall::Cancel(bool give_up) {
  {
    MutexLock lock(&mu_);
    if (done_) return;
    record_.cancelled_by_client = true;
    record_.unfinished |= give_up;
  }
  // Not under the lock: gRPC may answer in this thread.
  context_.TryCancel();
}

void StreamCall::RecordDelta(const v1::Delta& delta, double now,
                             SampleRecord& sample) {
  const int num_tokens = delta.token_ids_size();
  sample.delta_after_completion |= sample.num_completions > 0;
  if (num_tokens == 0) return;
  sample.arrivals.push_back({now, num_tokens});
  num_tokens_ += num_tokens;
  if (options_.keep_token_ids) {
    sample.token_ids.insert(sample.token_ids.end(), delta.token_ids().begin(),
                            delta.token_ids().end());
  }
}

bool StreamCall::RecordEvent(double now) {
  MutexLock lock(&mu_);
  const bool is_delta = response_.has_delta();
  const uint32_t index =
      is_delta ? response_.delta().index() : response_.completion().index();
  if (index >= record_.samples.size()) {
    record_.unknown_index = true;
    return false;
  }
  SampleRecord& sample = record_.samples[index];
  if (is_delta) {
    RecordDelta(response_.delta(), now, sample);
  } else {
    const v1::Usage& usage = response_.completion().usage();
    ++sample.num_completions;
    sample.usage_completion_tokens = usage.completion_tokens();
    record_.usage_prompt_tokens = usage.prompt_tokens();
    record_.usage_cached_prompt_tokens = usage.cached_prompt_tokens();
  }
  return record_.plan.cancel_after_tokens &&
         num_tokens_ >= *record_.plan.cancel_after_tokens;
}

void StreamCall::OnReadDone(bool ok) {
  const double now = SteadySeconds();
  ReaderKind reader;
  {
    MutexLock lock(&mu_);
    reader = record_.plan.reader;
  }
  if (!ok) {
    if (reader == ReaderKind::kSlow) RemoveHold();
    return;
  }
  if (RecordEvent(now)) Cancel(/*give_up=*/false);
  if (reader == ReaderKind::kSlow) {
    // The hold keeps the call, and so `self_`.
    loop_->At(now + options_.slow_delay_seconds,
              [this] { StartRead(&response_); });
  } else {
    StartRead(&response_);
  }
}

void StreamCall::OnDone(const grpc::Status& status) {
  {
    MutexLock lock(&mu_);
    record_.ended = SteadySeconds();
    record_.status_code = static_cast<int>(status.error_code());
    done_ = true;
  }
  // The last reference may go in the loop's thread while this one returns: from
  // here on nothing of the call is touched.
  EventLoop* const loop = loop_;
  loop->Soon([self = std::move(self_)] { self->on_end_(); });
}

RequestRecord StreamCall::TakeRecord() {
  MutexLock lock(&mu_);
  return std::move(record_);
}

}  // namespace overfill
