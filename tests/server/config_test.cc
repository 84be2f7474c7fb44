#include "server/config.h"

#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace overfill {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Environment = std::map<std::string, std::string>;

const std::vector<std::string> kModels = {"--prefill_model=a",
                                          "--decode_model=b"};

absl::StatusOr<CommandLine> Parse(std::vector<std::string> args,
                                  const Environment& environment = {}) {
  return ParseCommandLine(args, [&environment](const char* name) {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

absl::StatusOr<ServerConfig> ParseWithModels(
    const std::vector<std::string>& args, const Environment& environment = {}) {
  std::vector<std::string> all = kModels;
  all.insert(all.end(), args.begin(), args.end());
  const auto parsed = Parse(all, environment);
  if (!parsed.ok()) return parsed.status();
  return parsed->config;
}

// The error of flags beside the models; one line.
std::string ErrorOf(const std::vector<std::string>& args,
                    const Environment& environment = {}) {
  const auto config = ParseWithModels(args, environment);
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(config.status().message());
  EXPECT_THAT(message, Not(HasSubstr("\n")));
  return message;
}

std::string WriteFile(const std::string& text) {
  const std::string path =
      ::testing::TempDir() + "flags" +
      ::testing::UnitTest::GetInstance()->current_test_info()->name();
  std::ofstream(path) << text;
  return path;
}

TEST(ConfigTest, DefaultsAreTheDocumentedOnes) {
  const auto config = ParseWithModels({});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->prefill_model, "a");
  EXPECT_EQ(config->decode_model, "b");
  EXPECT_EQ(config->device, "cpu");
  EXPECT_FALSE(config->batch_invariant);
  EXPECT_EQ(config->listen.ToString(), "127.0.0.1:50051");
  EXPECT_EQ(config->metrics_listen.ToString(), "127.0.0.1:9464");
  EXPECT_EQ(config->max_request_bytes, 4 << 20);
  EXPECT_EQ(config->drain_timeout, absl::Seconds(30));
  EXPECT_EQ(config->drain_delay, absl::ZeroDuration());
  EXPECT_EQ(config->tls_refresh, absl::Seconds(10));
  EXPECT_EQ(config->max_connection_age, absl::ZeroDuration());
  EXPECT_EQ(config->max_connection_age_grace, absl::Minutes(5));
  EXPECT_EQ(config->max_connection_streams, 1024);
  EXPECT_EQ(config->log_format, LogFormat::kText);
  EXPECT_TRUE(config->log_requests);
  EXPECT_FALSE(config->log_prompts);
  EXPECT_FALSE(config->allow_plaintext);
  EXPECT_EQ(config->swap_bytes, -1);
  EXPECT_EQ(config->itl_target, absl::ZeroDuration());
  EXPECT_EQ(config->max_queued_bytes, 64 << 20);
  EXPECT_EQ(config->max_tenant_queued_requests, 0);
  EXPECT_EQ(config->max_tenant_queued_tokens, 0);
  EXPECT_EQ(config->max_tenant_queued_bytes, 0);
  EXPECT_EQ(config->max_request_duration, absl::Hours(1));
  EXPECT_EQ(config->priority_ageing, absl::Seconds(1));
  EXPECT_EQ(config->transfer_lease, absl::Seconds(10));
  EXPECT_TRUE(config->prefix_cache);
  EXPECT_EQ(config->max_open_streams, 1024);
  EXPECT_EQ(config->tokenizer_threads, 1);
  EXPECT_EQ(config->stuck_step_timeout, absl::Seconds(60));
}

TEST(ConfigTest, EveryFlagReachesItsField) {
  const auto config = ParseWithModels({"--kv_map=m",
                                       "--device",
                                       "cuda:1",
                                       "--threads=3",
                                       "--cpu_isa=avx2",
                                       "--weights=f32",
                                       "--load_format=dummy",
                                       "--listen",
                                       "[::1]:7",
                                       "--metrics_listen=h:8",
                                       "--kv_cache_bytes=9",
                                       "--block_tokens=10",
                                       "--max_sequence_tokens=11",
                                       "--prefill_chunk_tokens=12",
                                       "--max_decode_batch=13",
                                       "--max_queued_requests=14",
                                       "--max_queued_tokens=15",
                                       "--max_request_bytes=2048",
                                       "--drain_timeout=1m30s",
                                       "--swap_bytes=16",
                                       "--max_queued_bytes=17",
                                       "--max_tenant_queued_requests=18",
                                       "--max_tenant_queued_tokens=19",
                                       "--max_tenant_queued_bytes=20",
                                       "--itl_target=21ms",
                                       "--max_request_duration=22m",
                                       "--priority_ageing=23s",
                                       "--transfer_lease=24s",
                                       "--prefix_cache=false",
                                       "--max_open_streams=25",
                                       "--tokenizer_threads=26",
                                       "--stuck_step_timeout=27s",
                                       "--batch_invariant"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kv_map, "m");
  EXPECT_EQ(config->device, "cuda:1");
  EXPECT_EQ(config->threads, 3);
  EXPECT_EQ(config->cpu_isa, "avx2");
  EXPECT_TRUE(config->batch_invariant);
  EXPECT_EQ(config->weights, DType::kF32);
  EXPECT_EQ(config->load_format, LoadFormat::kDummy);
  EXPECT_EQ(config->listen.ToString(), "[::1]:7");
  EXPECT_EQ(config->metrics_listen.ToString(), "h:8");
  EXPECT_EQ(config->kv_cache_bytes, 9);
  EXPECT_EQ(config->block_tokens, 10);
  EXPECT_EQ(config->max_sequence_tokens, 11);
  EXPECT_EQ(config->prefill_chunk_tokens, 12);
  EXPECT_EQ(config->max_decode_batch, 13);
  EXPECT_EQ(config->max_queued_requests, 14);
  EXPECT_EQ(config->max_queued_tokens, 15);
  EXPECT_EQ(config->max_request_bytes, 2048);
  EXPECT_EQ(config->max_open_streams, 25);
  EXPECT_EQ(config->tokenizer_threads, 26);
  EXPECT_EQ(config->stuck_step_timeout, absl::Seconds(27));
  EXPECT_EQ(config->drain_timeout, absl::Seconds(90));
  EXPECT_EQ(config->swap_bytes, 16);
  EXPECT_EQ(config->max_queued_bytes, 17);
  EXPECT_EQ(config->max_tenant_queued_requests, 18);
  EXPECT_EQ(config->max_tenant_queued_tokens, 19);
  EXPECT_EQ(config->max_tenant_queued_bytes, 20);
  EXPECT_EQ(config->itl_target, absl::Milliseconds(21));
  EXPECT_EQ(config->max_request_duration, absl::Minutes(22));
  EXPECT_EQ(config->priority_ageing, absl::Seconds(23));
  EXPECT_EQ(config->transfer_lease, absl::Seconds(24));
  EXPECT_FALSE(config->prefix_cache);
}

TEST(ConfigTest, ZerosThatMeanSomethingAreTaken) {
  const auto config = ParseWithModels(
      {"--swap_bytes=0", "--itl_target=0", "--priority_ageing=0s",
       "--max_tenant_queued_requests=0", "--max_tenant_queued_tokens=0",
       "--max_tenant_queued_bytes=0", "--prefix_cache"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->swap_bytes, 0);
  EXPECT_EQ(config->itl_target, absl::ZeroDuration());
  EXPECT_EQ(config->priority_ageing, absl::ZeroDuration());
  EXPECT_TRUE(config->prefix_cache);
  EXPECT_EQ(ParseWithModels({"--swap_bytes=-1"})->swap_bytes, -1);
}

TEST(ConfigTest, CommandLineWinsOverFileOverEnvironment) {
  const std::string file =
      WriteFile("# comment\n\n  --block_tokens=8 \n--max_decode_batch=9\n");
  const Environment environment = {{"OVERFILL_BLOCK_TOKENS", "4"},
                                   {"OVERFILL_MAX_DECODE_BATCH", "5"},
                                   {"OVERFILL_THREADS", "6"},
                                   {"OVERFILL_KV_MAP", ""},
                                   {"OVERFILL_SERVICE_HOST", "10.0.0.1"}};
  const auto config =
      ParseWithModels({"--flagfile=" + file, "--block_tokens=16"}, environment);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->block_tokens, 16);
  EXPECT_EQ(config->max_decode_batch, 9);
  EXPECT_EQ(config->threads, 6);
}

TEST(ConfigTest, FlagfileMayComeFromTheEnvironment) {
  const std::string file = WriteFile("--threads=7");
  const auto config =
      ParseWithModels({}, Environment{{"OVERFILL_FLAGFILE", file}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->threads, 7);
}

TEST(ConfigTest, BadFlagsAreNamed) {
  EXPECT_THAT(ErrorOf({"--nonsense=1"}), HasSubstr("--nonsense: unknown"));
  EXPECT_THAT(ErrorOf({"stray"}), HasSubstr("stray: not a flag"));
  EXPECT_THAT(ErrorOf({"--block_tokens"}), HasSubstr("needs a value"));
  EXPECT_THAT(ErrorOf({"--block_tokens=0"}), HasSubstr("--block_tokens: must"));
  EXPECT_THAT(ErrorOf({"--block_tokens=x"}), HasSubstr("whole number"));
  EXPECT_THAT(ErrorOf({"--max_queued_tokens=-1"}), HasSubstr("at least 1"));
  EXPECT_THAT(ErrorOf({"--kv_cache_bytes=99999999999999999999"}),
              HasSubstr("--kv_cache_bytes"));
  EXPECT_THAT(ErrorOf({"--drain_timeout=5"}), HasSubstr("duration"));
  EXPECT_THAT(ErrorOf({"--drain_timeout=-5s"}), HasSubstr("duration"));
  for (const char* name : {"itl_target", "priority_ageing", "transfer_lease",
                           "max_request_duration"}) {
    const std::string flag = std::string("--") + name;
    for (const char* value : {"5", "soon", ""}) {
      EXPECT_THAT(ErrorOf({flag + "=" + value}),
                  HasSubstr(flag + ": must be a duration"));
    }
    for (const char* value : {"-1ms", "inf", "-inf", "8761h"}) {
      EXPECT_THAT(ErrorOf({flag + "=" + value}),
                  HasSubstr(flag + ": must be between"));
    }
  }
  for (const char* flag : {"--transfer_lease", "--max_request_duration"}) {
    EXPECT_THAT(ErrorOf({std::string(flag) + "=0"}), HasSubstr("between 1ms"));
  }
  EXPECT_THAT(ErrorOf({"--swap_bytes=-2"}), HasSubstr("--swap_bytes: must"));
  EXPECT_THAT(ErrorOf({"--max_queued_bytes=0"}), HasSubstr("at least 1"));
  for (const char* bound : {"requests", "tokens", "bytes"}) {
    EXPECT_THAT(ErrorOf({std::string("--max_tenant_queued_") + bound + "=-1"}),
                HasSubstr(bound));
  }
  EXPECT_THAT(ErrorOf({"--prefix_cache=perhaps"}), HasSubstr("true or false"));
  EXPECT_THAT(ErrorOf({"--weights=fp4"}), HasSubstr("--weights: must be"));
  EXPECT_THAT(ErrorOf({"--device=tpu"}), HasSubstr("--device: must be"));
  EXPECT_THAT(ErrorOf({"--load_format=gguf"}), HasSubstr("--load_format"));
  for (const char* address :
       {"", "50051", "a:b", "a:70000", "::1:5", "[::1:5", "a:-1"}) {
    EXPECT_THAT(ErrorOf({std::string("--listen=") + address}),
                HasSubstr("--listen: must be HOST:PORT"));
  }
}

TEST(ConfigTest, BadFilesAndVariablesAreNamed) {
  EXPECT_THAT(ErrorOf({"--flagfile=/does/not/exist"}),
              HasSubstr("/does/not/exist"));
  const std::string file = WriteFile("\n--threads=zero\n");
  EXPECT_THAT(ErrorOf({"--flagfile=" + file}), HasSubstr(":2: --threads"));
  EXPECT_THAT(ErrorOf({}, {{"OVERFILL_THREADS", "-1"}}),
              HasSubstr("OVERFILL_THREADS: must be"));
  EXPECT_THAT(ErrorOf({}, {{"OVERFILL_DECODE_DEVICE", "x"}}),
              HasSubstr("OVERFILL_DECODE_DEVICE: not supported yet"));
}

TEST(ConfigTest, FlagsOfLaterVersionsAreRefusedByName) {
  for (const char* flag : {"--prefill_device=cpu", "--decode_device=cpu"}) {
    EXPECT_THAT(ErrorOf({flag}), HasSubstr("not supported yet")) << flag;
  }
}

TEST(ConfigTest, EachModelMayHaveItsOwnWeights) {
  const auto plain = ParseWithModels({"--weights=int8"});
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->weights, DType::kInt8);
  EXPECT_FALSE(plain->prefill_weights || plain->decode_weights);
  const auto mixed = ParseWithModels({"--decode_weights=int8"});
  ASSERT_TRUE(mixed.ok()) << mixed.status();
  EXPECT_EQ(mixed->weights, DType::kBF16);
  EXPECT_EQ(mixed->prefill_weights, std::nullopt);
  EXPECT_EQ(mixed->decode_weights, DType::kInt8);
  for (const char* flag : {"--weights=f16", "--prefill_weights=int4"}) {
    EXPECT_THAT(ErrorOf({flag}), HasSubstr("must be bf16, f32 or int8"));
  }
}

TEST(ConfigTest, ModelsAreNeededButNotForHelp) {
  EXPECT_THAT(std::string(Parse({"--decode_model=b"}).status().message()),
              HasSubstr("--prefill_model"));
  EXPECT_THAT(std::string(Parse({"--prefill_model=a"}).status().message()),
              HasSubstr("--decode_model"));
  EXPECT_EQ(Parse({"--help"})->action, CommandLine::Action::kHelp);
  EXPECT_EQ(Parse({"--version"})->action, CommandLine::Action::kVersion);
}

TEST(ConfigTest, EmptyHostIsEveryInterface) {
  const auto config = ParseWithModels({"--listen=:7", "--allow_plaintext"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->listen.ToString(), "0.0.0.0:7");
}

TEST(ConfigTest, PlaintextStaysOnThisMachineUnlessAskedFor) {
  for (const char* host : {"127.0.0.1", "127.8.9.10", "localhost", "[::1]"}) {
    EXPECT_TRUE(ParseWithModels({absl::StrCat("--listen=", host, ":5")}).ok());
  }
  for (const char* host : {"0.0.0.0", "", "10.0.0.1", "[::]", "example.org",
                           "127.example.com", "1.127.0.1"}) {
    const std::string listen = absl::StrCat("--listen=", host, ":5");
    EXPECT_THAT(ErrorOf({listen}), HasSubstr("--allow_plaintext")) << host;
    EXPECT_TRUE(ParseWithModels({listen, "--allow_plaintext"}).ok());
    EXPECT_TRUE(ParseWithModels({listen, "--tls_cert=c", "--tls_key=k"}).ok());
  }
}

TEST(ConfigTest, CertificatesComeWhole) {
  EXPECT_THAT(ErrorOf({"--tls_cert=c"}), HasSubstr("one needs the other"));
  EXPECT_THAT(ErrorOf({"--tls_key=k"}), HasSubstr("one needs the other"));
  EXPECT_THAT(ErrorOf({"--tls_client_ca=a"}), HasSubstr("--tls_client_ca"));
  EXPECT_THAT(ErrorOf({"--tls_refresh=0"}), HasSubstr("--tls_refresh"));
}

TEST(ConfigTest, TimesFitEachOther) {
  EXPECT_THAT(ErrorOf({"--drain_delay=30s"}),
              HasSubstr("shorter than --drain_timeout"));
  EXPECT_TRUE(ParseWithModels({"--drain_delay=29s"}).ok());
  EXPECT_TRUE(ParseWithModels({"--drain_timeout=0s"}).ok());
  EXPECT_THAT(ErrorOf({"--max_connection_age=1us"}), HasSubstr("at least 1s"));
  EXPECT_TRUE(ParseWithModels({"--max_connection_age=1s"}).ok());
}

TEST(ConfigTest, TheHealthPortIsOffUntilNamed) {
  EXPECT_FALSE(ParseWithModels({})->health_enabled);
  const auto config = ParseWithModels({"--health_listen=0.0.0.0:8"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->health_enabled);
  EXPECT_EQ(config->health_listen.ToString(), "0.0.0.0:8");
  EXPECT_THAT(ErrorOf({"--log_format=xml"}), HasSubstr("text or json"));
}

TEST(ConfigTest, MetricsCanBeTurnedOff) {
  EXPECT_TRUE(ParseWithModels({})->metrics_enabled);
  EXPECT_FALSE(ParseWithModels({"--metrics_listen="})->metrics_enabled);
}

TEST(ConfigTest, HelpNamesEveryFlagThatIsTaken) {
  const std::string help = ServerHelp();
  for (const char* flag : {"prefill_model",
                           "decode_model",
                           "kv_map",
                           "load_format",
                           "weights",
                           "device",
                           "threads",
                           "cpu_isa",
                           "listen",
                           "metrics_listen",
                           "kv_cache_bytes",
                           "block_tokens",
                           "max_sequence_tokens",
                           "prefill_chunk_tokens",
                           "max_decode_batch",
                           "max_queued_requests",
                           "max_queued_tokens",
                           "max_request_bytes",
                           "drain_delay",
                           "drain_timeout",
                           "health_listen",
                           "tls_cert",
                           "tls_key",
                           "tls_client_ca",
                           "tls_refresh",
                           "auth_tokens",
                           "max_connection_age",
                           "max_connection_age_grace",
                           "max_connection_streams",
                           "log_format",

                           "swap_bytes",
                           "itl_target",
                           "transfer_lease",
                           "max_queued_bytes",
                           "max_tenant_queued_requests",
                           "max_tenant_queued_tokens",
                           "max_tenant_queued_bytes",
                           "max_request_duration",
                           "priority_ageing",
                           "flagfile"}) {
    EXPECT_THAT(help, HasSubstr(std::string("  --") + flag + "="));
  }
  EXPECT_THAT(help, HasSubstr("  --prefix_cache\n"));
  for (const char* flag : {"allow_plaintext", "log_requests", "log_prompts"}) {
    EXPECT_THAT(help, HasSubstr(absl::StrCat("  --", flag, "\n")));
  }
  EXPECT_THAT(help, Not(HasSubstr("prefill_device")));
  EXPECT_THAT(help, HasSubstr("  --batch_invariant\n"));
}

}  // namespace
}  // namespace overfill
