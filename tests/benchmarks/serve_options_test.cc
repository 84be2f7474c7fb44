#include "benchmarks/serving/serve_options.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace overfill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ServeOptionsTest, TakesAllItsFlags) {
  const auto options = ParseServeOptions(
      {"--target=h:1", "--rate=1,2.5,inf", "--num_requests=9",
       "--burstiness=0.5", "--prompt=fixed:5", "--output=uniform:1:3",
       "--priorities=-3:4", "--paths=full,pruned", "--cancel_fraction=0.25",
       "--cancel_within=2s", "--timeout=1m", "--tiny_deadline=5ms",
       "--slo_ttft=250ms", "--slo_itl=1s", "--seed=18446744073709551615",
       "--ignore_eos=false", "--n=3", "--token_ids"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->connection.target, "h:1");
  ASSERT_EQ(options->rates.size(), 3u);
  EXPECT_EQ(options->rates[1], 2.5);
  EXPECT_TRUE(std::isinf(options->rates[2]));
  EXPECT_EQ(options->workload.burstiness, 0.5);
  EXPECT_EQ(options->workload.min_priority, -3);
  EXPECT_EQ(options->workload.max_priority, 4);
  EXPECT_THAT(options->workload.paths, ElementsAre("full", "pruned"));
  EXPECT_EQ(options->workload.cancel_within_seconds, 2);
  EXPECT_EQ(options->workload.timeout_seconds, 60);
  EXPECT_EQ(options->workload.tiny_deadline_seconds, 0.005);
  EXPECT_EQ(options->workload.seed, ~0ull);
  EXPECT_EQ(options->objectives.ttft, 0.25);
  EXPECT_EQ(options->objectives.itl, 1);
  EXPECT_FALSE(options->objectives.e2e.has_value());
  EXPECT_FALSE(options->ignore_eos);
  EXPECT_TRUE(options->token_ids);
  EXPECT_EQ(options->n, 3);
}

TEST(ServeOptionsTest, RefusesInOneLineThatNamesTheFlag) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "--num_requests"},
      {{"--duration=1s", "--rate=0"}, "--rate"},
      {{"--duration=1s", "--rate=1,"}, "--rate"},
      {{"--duration=1s", "--rate=nan"}, "--rate"},
      {{"--duration=1s", "--rate=inf"}, "--rate"},
      {{"--duration=1s", "--warm_up=1s"}, "--warm_up"},
      {{"--duration=1s", "--concurrency=2", "--rate=1,2"}, "--concurrency"},
      {{"--duration=1s", "--prompt=fixed"}, "--prompt"},
      {{"--duration=1s", "--output=trace"}, "trace"},
      {{"--duration=1s", "--priorities=5"}, "--priorities"},
      {{"--duration=1s", "--priorities=0:101"}, "--priorities"},
      {{"--duration=1s", "--paths=half"}, "--paths"},
      {{"--duration=1s", "--cancel_fraction=1.5"}, "--cancel_fraction"},
      {{"--duration=1s", "--cancel_fraction=0.6", "--dead_fraction=0.6"},
       "fractions"},
      {{"--duration=1s", "--slo_ttft=0s"}, "--slo_ttft"},
      {{"--duration=1s", "--seed=-1"}, "--seed"},
      {{"--duration=1s", "--trace=/nowhere"}, "/nowhere"},
      {{"--duration=1s", "--unknown=1"}, "--unknown"},
      {{"--duration=1s", "stray"}, "stray"},
  };
  for (const auto& [args, part] : cases) {
    const auto options = ParseServeOptions(args);
    ASSERT_FALSE(options.ok()) << part;
    const std::string message(options.status().message());
    EXPECT_THAT(message, HasSubstr(part));
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

TEST(ServeOptionsTest, HelpNeedsNothingElse) {
  const auto options = ParseServeOptions({"--help"});
  ASSERT_TRUE(options.ok());
  EXPECT_TRUE(options->help);
  EXPECT_THAT(ServeHelp(), HasSubstr("--slo_ttft=DURATION"));
}

TEST(ServeOptionsTest, ItsDocumentSaysWhatItsHelpSays) {
  const auto document = ReadFile("docs/api.md", 1 << 20);
  ASSERT_TRUE(document.ok()) << document.status();
  const auto begin = document->find("\n## overfill-bench serve\n");
  ASSERT_NE(begin, std::string::npos);
  const auto end = document->find("\n## ", begin + 1);
  std::vector<std::string> documented, printed;
  for (const absl::string_view line :
       absl::StrSplit(document->substr(begin, end - begin), '\n')) {
    if (absl::StartsWith(line, "| `--")) documented.emplace_back(line);
  }
  const std::vector<std::string> help = absl::StrSplit(ServeHelp(), '\n');
  for (size_t i = 0; i + 1 < help.size(); ++i) {
    if (!absl::StartsWith(help[i], "  --")) continue;
    printed.push_back(absl::StrCat("| `", help[i].substr(2), "` | ",
                                   help[i + 1].substr(6), " |"));
  }
  EXPECT_GT(printed.size(), 30u);
  EXPECT_EQ(documented, printed);
}

}  // namespace
}  // namespace overfill
