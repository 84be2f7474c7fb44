#include "benchmarks/serving/load_client.h"

#include <chrono>
#include <limits>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "benchmarks/serving/event_loop.h"
#include "grpcpp/support/channel_arguments.h"

namespace overfill {
namespace {

// Logprobs that a dead reader asks for, so that its answer is more than what
// the buffers on the way hold.
constexpr int kDeadReaderLogprobs = 20;
constexpr int kNarrowWindowBytes = 65536;

std::unique_ptr<v1::Inference::Stub> MakeStub(const Connection& connection,
                                              bool narrow) {
  grpc::ChannelArguments arguments;
  // Else equal channels share one connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A refusal is an answer.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  if (narrow) {
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kNarrowWindowBytes);
  }
  return v1::Inference::NewStub(connection.NewChannel(arguments));
}

v1::DecodePath PathOf(const std::string& name) {
  v1::DecodePath path = v1::DECODE_PATH_UNSPECIFIED;
  const bool known = v1::DecodePath_Parse(
      absl::StrCat("DECODE_PATH_", absl::AsciiStrToUpper(name)), &path);
  OVERFILL_CHECK(known) << name;
  return path;
}

}  // namespace

// One run. Everything but the reads happens in the thread of Run.
class LoadClient::Runner {
 public:
  Runner(LoadClient& client, Workload workload, const RunOptions& options)
      : client_(client), workload_(std::move(workload)), options_(options) {}

  RunRecords Run() {
    result_.begin = SteadySeconds();
    result_.send_end = result_.begin;
    if (options_.duration_seconds > 0) {
      end_ = result_.begin + options_.duration_seconds;
      loop_.At(end_, [this] { StopSending(); });
    }
    if (options_.concurrency > 0) {
      for (int i = 0; i < options_.concurrency; ++i) SendNext();
    } else {
      ScheduleArrival();
    }
    StopIfDone();
    loop_.Run();
    OVERFILL_CHECK(static_cast<int64_t>(result_.records.size()) == num_sent_);
    return std::move(result_);
  }

 private:
  bool MaySend() const {
    return !stopped_ && !workload_.AtEnd() &&
           (options_.num_requests == 0 || num_sent_ < options_.num_requests);
  }

  // Open loop: the next one goes at its time, whatever became of the others.
  void ScheduleArrival() {
    if (!MaySend()) return StopSending();
    PlannedRequest plan = workload_.Next();
    const double due = result_.begin + plan.at_seconds;
    if (due > end_) return;  // the duration's end comes first
    loop_.At(due, [this, plan = std::move(plan), due] {
      if (stopped_) return;
      Send(plan, due);
      ScheduleArrival();
    });
  }

  // Closed loop: due now.
  void SendNext() {
    if (!MaySend()) return StopSending();
    Send(workload_.Next(), SteadySeconds());
  }

  void Send(const PlannedRequest& plan, double due) {
    v1::GenerateRequest request = options_.request;
    const auto ids = workload_.PromptTokens(plan, options_.vocab_size);
    request.mutable_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
    request.mutable_limits()->set_max_tokens(plan.max_tokens);
    request.mutable_sampling()->set_seed(plan.sampling_seed);
    request.set_priority(plan.priority);
    request.set_path(PathOf(plan.path));
    if (plan.reader == ReaderKind::kDead) {
      request.mutable_output()->set_logprobs(kDeadReaderLogprobs);
    }
    auto call = std::make_shared<StreamCall>(options_.call, plan, due, &loop_);
    live_.insert(call);
    ++num_sent_;
    result_.send_end = SteadySeconds();
    call->Start(
        StubFor(plan), std::move(request),
        [this, weak = std::weak_ptr<StreamCall>(call)] { OnEnd(weak.lock()); });
  }

  v1::Inference::Stub& StubFor(const PlannedRequest& plan) {
    switch (plan.reader) {
      case ReaderKind::kSlow:
        return *client_.slow_stub_;
      case ReaderKind::kDead:
        return *client_.dead_stub_;
      case ReaderKind::kNormal:
        break;
    }
    return *client_.stubs_[plan.index % client_.stubs_.size()];
  }

  void OnEnd(const std::shared_ptr<StreamCall>& call) {
    OVERFILL_CHECK(live_.erase(call) == 1);  // a call ends once
    result_.records.push_back(call->TakeRecord());
    if (options_.concurrency > 0 && !stopped_) SendNext();
    StopIfDone();
  }

  void StopSending() {
    if (stopped_) return;
    stopped_ = true;
    if (options_.cancel_at_end) CancelAll(/*give_up=*/false);
    loop_.At(SteadySeconds() + options_.give_up_seconds,
             [this] { CancelAll(/*give_up=*/true); });
    StopIfDone();
  }

  void CancelAll(bool give_up) {
    for (const auto& call : live_) call->Cancel(give_up);
  }

  void StopIfDone() {
    if (stopped_ && live_.empty()) loop_.Stop();
  }

  LoadClient& client_;
  Workload workload_;
  const RunOptions options_;
  EventLoop loop_;
  std::set<std::shared_ptr<StreamCall>> live_;
  int64_t num_sent_ = 0;
  double end_ = std::numeric_limits<double>::infinity();
  bool stopped_ = false;  // nothing more is sent
  RunRecords result_;
};

LoadClient::LoadClient(const Connection& connection, int num_channels)
    : slow_stub_(MakeStub(connection, true)),
      dead_stub_(MakeStub(connection, true)) {
  OVERFILL_CHECK(num_channels > 0);
  for (int i = 0; i < num_channels; ++i) {
    stubs_.push_back(MakeStub(connection, false));
  }
}

LoadClient::~LoadClient() = default;

absl::StatusOr<v1::GetModelInfoResponse> LoadClient::GetModelInfo(
    double timeout_seconds) {
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(
      std::chrono::system_clock::now() +
      std::chrono::milliseconds(static_cast<int64_t>(timeout_seconds * 1e3)));
  v1::GetModelInfoResponse info;
  const grpc::Status status = stubs_[0]->GetModelInfo(&context, {}, &info);
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        status.error_message());
  }
  return info;
}

RunRecords LoadClient::Run(Workload workload, const RunOptions& options) {
  OVERFILL_CHECK(options.vocab_size > 0);
  return Runner(*this, std::move(workload), options).Run();
}

}  // namespace overfill
