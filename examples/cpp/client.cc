// Streams answers: C++, blocking calls. ../README.md tells how to build it.
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "flags.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"
#include "overfill/rpc/error_details.pb.h"
#include "overfill/rpc/status.pb.h"
#include "overfill/v1/inference.grpc.pb.h"

namespace {

namespace v1 = overfill::v1;
using Seconds = std::chrono::duration<double>;
using Clock = std::chrono::system_clock;  // that of gRPC's deadlines

constexpr Seconds kFirstBackoff(0.2);
constexpr Seconds kLongestBackoff(10);

void Note(const std::string& line) {
  std::fprintf(stderr, "%s\n", line.c_str());
}

// Ctrl-C: cancels the call under way, or ends the wait for the next try.
class Interrupt {
 public:
  // Before gRPC starts its threads: they are to have the signal blocked too.
  Interrupt() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    std::thread([this, signals] {
      int signal = 0;
      sigwait(&signals, &signal);
      Raise();
    }).detach();
  }

  void Raise() {
    const std::lock_guard<std::mutex> lock(mu_);
    is_raised_ = true;
    if (call_ != nullptr) call_->TryCancel();
    changed_.notify_all();
  }

  // The call to cancel from now on; null: none.
  void Watch(grpc::ClientContext* call) {
    const std::lock_guard<std::mutex> lock(mu_);
    call_ = call;
    if (is_raised_ && call_ != nullptr) call_->TryCancel();
  }

  bool WaitFor(Seconds time) {
    std::unique_lock<std::mutex> lock(mu_);
    return changed_.wait_for(lock, time, [this] { return is_raised_; });
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  bool is_raised_ = false;
  grpc::ClientContext* call_ = nullptr;
};

// One for all calls of a program.
std::shared_ptr<grpc::Channel> OpenChannel(const Flags& flags) {
  grpc::ChannelArguments args;
  args.SetServiceConfigJSON(ReadFile(flags.service_config));
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, flags.grpc_retries ? 1 : 0);
  // Finds out in 40 s that a peer is gone, also while a request waits in the
  // queue. The server takes a ping every 10 s, and not more.
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // A server that comes back is found soon.
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5'000);
  if (!flags.server_name.empty()) {
    args.SetSslTargetNameOverride(flags.server_name);
  }
  if (flags.ca.empty()) {
    return grpc::CreateCustomChannel(flags.target,
                                     grpc::InsecureChannelCredentials(), args);
  }
  grpc::SslCredentialsOptions tls;
  tls.pem_root_certs = ReadFile(flags.ca);
  tls.pem_private_key = ReadFile(flags.key);
  tls.pem_cert_chain = ReadFile(flags.cert);
  return grpc::CreateCustomChannel(flags.target, grpc::SslCredentials(tls),
                                   args);
}

v1::GenerateRequest MakeRequest(const Flags& flags, const std::string& prompt) {
  v1::GenerateRequest request;
  request.set_text(prompt);
  if (flags.max_tokens) {
    request.mutable_limits()->set_max_tokens(*flags.max_tokens);
  }
  if (flags.temperature) {
    request.mutable_sampling()->set_temperature(*flags.temperature);
  }
  return request;
}

// The google.rpc detail of this type, if the status has one.
template <typename Message>
std::optional<Message> FindDetail(const grpc::Status& status) {
  google::rpc::Status rich;
  if (!rich.ParseFromString(status.error_details())) return std::nullopt;
  for (const auto& packed : rich.details()) {
    Message message;
    if (packed.UnpackTo(&message)) return message;
  }
  return std::nullopt;
}

std::string CodeName(grpc::StatusCode code) {
  constexpr const char* kNames[] = {"OK",
                                    "CANCELLED",
                                    "UNKNOWN",
                                    "INVALID_ARGUMENT",
                                    "DEADLINE_EXCEEDED",
                                    "NOT_FOUND",
                                    "ALREADY_EXISTS",
                                    "PERMISSION_DENIED",
                                    "RESOURCE_EXHAUSTED",
                                    "FAILED_PRECONDITION",
                                    "ABORTED",
                                    "OUT_OF_RANGE",
                                    "UNIMPLEMENTED",
                                    "INTERNAL",
                                    "UNAVAILABLE",
                                    "DATA_LOSS",
                                    "UNAUTHENTICATED"};
  const auto number = static_cast<size_t>(code);
  return number < std::size(kNames) ? kNames[number] : std::to_string(code);
}

std::string ErrorText(const grpc::Status& status) {
  return CodeName(status.error_code()) + ": " + status.error_message();
}

void NoteError(const grpc::Status& status) {
  const auto bad = FindDetail<google::rpc::BadRequest>(status);
  if (!bad) {
    Note("error: " + ErrorText(status));
    return;
  }
  Note("error: " + CodeName(status.error_code()));
  for (const auto& violation : bad->field_violations()) {
    Note("  " + violation.field() + ": " + violation.description());
  }
}

// Whether and when a request is sent again, within its tries and time.
class Retries {
 public:
  explicit Retries(const Flags& flags)
      : most_(flags.grpc_retries ? 0 : flags.retries),
        deadline_(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                     Seconds(flags.timeout))) {}

  Clock::time_point deadline() const { return deadline_; }

  // Time to wait before the next try. None: the error stands.
  std::optional<Seconds> Delay(const grpc::Status& status, bool has_begun) {
    // What has been shown would be shown twice, or differ.
    if (has_begun || count_ >= most_) return std::nullopt;
    const auto wait = FindDetail<google::rpc::RetryInfo>(status);
    if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
      // Without RetryInfo it will not pass: a message too large, say.
      if (!wait) return std::nullopt;
    } else if (status.error_code() != grpc::StatusCode::UNAVAILABLE) {
      return std::nullopt;
    }
    Seconds at_least(0);
    if (wait) {
      at_least = std::chrono::seconds(wait->retry_delay().seconds()) +
                 std::chrono::nanoseconds(wait->retry_delay().nanos());
    }
    // Upwards alone: clients refused together do not come back together, and
    // none before its time.
    const Seconds delay = std::max(at_least, backoff_) *
                          std::uniform_real_distribution<>(1, 1.2)(random_);
    if (Clock::now() + delay >= deadline_) return std::nullopt;
    backoff_ = std::min(2 * backoff_, kLongestBackoff);
    ++count_;
    std::fprintf(stderr, "retry %d of %d in %.2f s: %s\n", count_, most_,
                 delay.count(), ErrorText(status).c_str());
    return delay;
  }

 private:
  const int most_;
  const Clock::time_point deadline_;
  int count_ = 0;
  Seconds backoff_ = kFirstBackoff;
  std::mt19937 random_{std::random_device()()};
};

// Prints an answer as it comes.
class Answer {
 public:
  void Add(const v1::GenerateResponse& event) {
    has_begun_ = true;
    if (event.has_completion()) {
      const v1::Completion& end = event.completion();
      const std::string reason = v1::FinishReason_Name(end.finish_reason());
      std::fprintf(stderr, "done: %s, %u prompt tokens, %u tokens\n",
                   reason.c_str() + std::strlen("FINISH_REASON_"),
                   end.usage().prompt_tokens(),
                   end.usage().completion_tokens());
      return;
    }
    num_tokens_ += event.delta().token_ids_size();
    std::fwrite(event.delta().text().data(), 1, event.delta().text().size(),
                stdout);
    std::fflush(stdout);
  }

  void End() const {
    if (has_begun_) std::puts("");
    std::fflush(stdout);
  }

  bool has_begun() const { return has_begun_; }
  int num_tokens() const { return num_tokens_; }

 private:
  bool has_begun_ = false;
  int num_tokens_ = 0;
};

// One try.
grpc::Status Stream(v1::Inference::Stub* stub, const Flags& flags,
                    const v1::GenerateRequest& request,
                    Clock::time_point deadline, Interrupt* interrupt,
                    Answer* answer) {
  grpc::ClientContext context;
  context.set_deadline(deadline);
  // Read for each call: a token's file may be renewed at any time.
  if (const std::string token = ReadToken(flags); !token.empty()) {
    context.set_credentials(grpc::AccessTokenCredentials(token));
  }
  interrupt->Watch(&context);
  const auto reader = stub->Generate(&context, request);
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
    answer->Add(event);
    if (flags.cancel_after > 0 && answer->num_tokens() >= flags.cancel_after) {
      interrupt->Raise();
    }
  }
  const grpc::Status status = reader->Finish();
  interrupt->Watch(nullptr);
  answer->End();
  return status;
}

// OK, or the error that stands.
grpc::Status Generate(v1::Inference::Stub* stub, const Flags& flags,
                      const std::string& prompt, Interrupt* interrupt) {
  const v1::GenerateRequest request = MakeRequest(flags, prompt);
  Retries retries(flags);
  while (true) {
    Answer answer;
    const grpc::Status status =
        Stream(stub, flags, request, retries.deadline(), interrupt, &answer);
    if (status.ok()) return status;
    const auto delay = retries.Delay(status, answer.has_begun());
    if (!delay || interrupt->WaitFor(*delay)) return status;
  }
}

int Run(const Flags& flags) {
  // Not freed: its thread waits for a signal until the program ends.
  static Interrupt& interrupt = *new Interrupt;
  const auto stub = v1::Inference::NewStub(OpenChannel(flags));
  for (const std::string& prompt : flags.prompts) {
    const grpc::Status status = Generate(stub.get(), flags, prompt, &interrupt);
    if (interrupt.WaitFor(Seconds(0))) {
      Note("cancelled");
      return 130;
    }
    if (!status.ok()) {
      NoteError(status);
      return 1;
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Flags flags = ParseFlags(argc, argv);
    if (flags.help) {
      std::fputs(Usage(), stdout);
      return 0;
    }
    return Run(flags);
  } catch (const BadFlags& error) {
    Note("client: " + std::string(error.what()));
    return 2;
  }
}
