// Runs a job of golden_test.py on a checkpoint or a pair and writes what came
// out: JOB.json in, OUTPUT.json and OUTPUT.f32 (rows of raw logits) out. The
// job's members are those of Job and DrivenRun below.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "kernels/device.h"
#include "tests/golden/engine_driver.h"
#include "tests/golden/faults.h"
#include "tests/golden/golden_pair.h"

namespace overfill {
namespace {

constexpr uint64_t kMaxJobBytes = 64 << 20;

DrivenRun ReadRun(const Json& json) {
  DrivenRun run;
  run.path = json.value("path", run.path);
  run.max_tokens = json.at("max_tokens").get<int32_t>();
  run.schedule_seed = json.value("schedule_seed", uint64_t{0});
  run.max_step_rows = json.value("max_step_rows", 0);
  run.sample_chunks = json.value("sample_chunks", false);
  for (const Json& request : json.at("requests")) {
    run.requests.push_back(
        {.prompt = request.at("prompt").get<std::vector<int32_t>>(),
         .answer = request.value("answer", std::vector<int32_t>())});
  }
  return run;
}

Json DigestsToJson(std::map<uint64_t, std::string> digests) {
  Json result = Json::object();
  for (auto& [seed, digest] : digests) {
    result[absl::StrCat(seed - 1)] = std::move(digest);
  }
  return result;
}

// The real runners of a pair with one fault and the two probes around them.
struct Wrapped {
  Wrapped(GoldenPair& pair, Fault fault)
      : after_prefill(KvProbe::When::kAfterPrefill, pair.prefill(),
                      &pair.prefill_store(), pair.kept_layers(), &prefilled),
        first_token(&after_prefill, pair.decode()),
        before_decode(KvProbe::When::kBeforeDecode, pair.decode(),
                      &pair.decode_store(), pair.decode_layers(), &decoded),
        faulty_decode(fault, &before_decode, &pair.decode_store()),
        faulty_full(fault, pair.prefill(), &pair.prefill_store()),
        fault(fault) {}

  StepRunner* prefill() {
    if (fault == Fault::kFirstTokenByDecode) return &first_token;
    return &after_prefill;
  }
  StepRunner* decode() { return &faulty_decode; }
  // The prefill pool of a run that stays in it.
  StepRunner* full() {
    if (fault == Fault::kFirstTokenByDecode) return &first_token;
    return &faulty_full;
  }

  KvDigests prefilled;
  KvDigests decoded;
  KvProbe after_prefill;
  FirstTokenByDecode first_token;
  KvProbe before_decode;
  FaultyDecode faulty_decode;
  FaultyDecode faulty_full;
  Fault fault;
};

class Output {
 public:
  explicit Output(const std::string& prefix)
      : prefix_(prefix), logits_(prefix + ".f32", std::ios::binary) {}

  void Add(const std::vector<DrivenAnswer>& answers, Wrapped& wrapped) {
    Json requests = Json::array();
    for (const DrivenAnswer& answer : answers) {
      requests.push_back({{"tokens", answer.tokens},
                          {"positions", answer.logits_positions},
                          {"first_row", num_rows_}});
      for (const std::vector<float>& row : answer.logits) {
        logits_.write(reinterpret_cast<const char*>(row.data()),
                      static_cast<std::streamsize>(row.size() * 4));
        ++num_rows_;
      }
    }
    runs_.push_back({{"requests", std::move(requests)},
                     {"prefilled", DigestsToJson(wrapped.prefilled.Take())},
                     {"decoded", DigestsToJson(wrapped.decoded.Take())}});
  }

  absl::Status Write(const Json& device) {
    std::ofstream file(prefix_ + ".json");
    file << Json{{"device", device}, {"runs", runs_}};
    if (!file.flush() || !logits_.flush()) {
      return absl::InternalError(absl::StrCat(prefix_, ": cannot be written"));
    }
    return absl::OkStatus();
  }

 private:
  const std::string prefix_;
  std::ofstream logits_;
  int64_t num_rows_ = 0;
  Json runs_ = Json::array();
};

absl::Status RunJob(const Json& job) {
  DeviceOptions device_options;
  // As the server takes it: --cpu_isa from the environment.
  if (const char* isa = std::getenv("OVERFILL_CPU_ISA")) {
    device_options.cpu_isa = isa;
  }
  ASSIGN_OR_RETURN(auto device, MakeDevice("cpu", device_options));
  ASSIGN_OR_RETURN(auto pair, GoldenPair::Load(*device, job));
  Output output(job.at("output").get<std::string>());
  for (const Json& json : job.at("runs")) {
    const DrivenRun run = ReadRun(json);
    ASSIGN_OR_RETURN(const Fault fault,
                     ParseFault(json.value("fault", std::string("none"))));
    RETURN_IF_ERROR(pair->PoisonStores());
    Wrapped wrapped(*pair, fault);
    StepRunner* prefill = pair->prefill();
    StepRunner* decode = pair->decode();
    if (run.path == "two_stage" && !run.sample_chunks) {
      prefill = wrapped.prefill();
      decode = wrapped.decode();
    } else if (run.path == "full" && fault != Fault::kNone) {
      prefill = wrapped.full();
    } else if (fault != Fault::kNone) {
      return absl::InvalidArgumentError("no fault can be planted in this run");
    }
    EngineDriver driver(pair->Pools(prefill, decode), pair->limits());
    ASSIGN_OR_RETURN(const auto answers, driver.Run(run));
    output.Add(answers, wrapped);
  }
  return output.Write({{"name", device->info().name},
                       {"description", device->info().description}});
}

absl::Status Main(const std::string& job_path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(job_path, kMaxJobBytes));
  ASSIGN_OR_RETURN(const Json job, ParseJsonObject(text, job_path));
  return RunJob(job);
}

}  // namespace
}  // namespace overfill

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: golden_runner JOB.json\n";
    return 2;
  }
  // A job without a member that it needs: the test that wrote it is at fault.
  try {
    const absl::Status status = overfill::Main(argv[1]);
    if (status.ok()) return 0;
    std::cerr << "golden_runner: " << status.ToString() << "\n";
  } catch (const std::exception& error) {
    std::cerr << "golden_runner: " << argv[1] << ": " << error.what() << "\n";
  }
  return 1;
}
