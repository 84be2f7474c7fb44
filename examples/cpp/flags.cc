#include "flags.h"

#include <getopt.h>

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

namespace {

constexpr char kUsage[] = R"(client [flags] PROMPT...

Streams answers of an OverFill server, to one prompt after the other. A token
may also stand in OVERFILL_TOKEN.

  --target=HOST:PORT      or dns:///NAME:PORT, for all addresses of a name
  --ca=FILE               PEM of the servers' CA; turns TLS on
  --cert=FILE --key=FILE  PEM of the client's certificate and its key, for mTLS
  --server_name=NAME      name in the server's certificate (the target's)
  --token_file=FILE       file with the bearer token
  --max_tokens=N          longest answer (the server's)
  --temperature=F         0 is greedy (the model's)
  --timeout=SECONDS       for an answer, with all its tries (60)
  --retries=N             further tries (4)
  --grpc_retries          leave the retries to gRPC and its service config
  --service_config=FILE   gRPC service config
  --cancel_after=N        cancel after N tokens
)";

void CheckFlags(const Flags& flags) {
  if (flags.prompts.empty()) throw BadFlags("PROMPT is missing");
  if (flags.cert.empty() != flags.key.empty() ||
      (!flags.cert.empty() && flags.ca.empty())) {
    throw BadFlags("--cert, --key and --ca go together");
  }
  if (!ReadToken(flags).empty() && flags.ca.empty()) {
    throw BadFlags("a token goes over TLS only: --ca is missing");
  }
  for (const auto& path :
       {flags.ca, flags.cert, flags.key, flags.service_config}) {
    ReadFile(path);
  }
}

double ToNumber(const std::string& name, const std::string& text) {
  constexpr double kMost = 1e9;  // fits an int
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(std::abs(number) <= kMost)) {
    throw BadFlags("--" + name + ": must be a number, at most a billion");
  }
  return number;
}

}  // namespace

const char* Usage() { return kUsage; }

std::string ReadFile(const std::string& path) {
  if (path.empty()) return "";
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw BadFlags(path + ": " + std::strerror(errno));
  return content;
}

std::string ReadToken(const Flags& flags) {
  if (flags.token_file.empty()) {
    const char* token = std::getenv("OVERFILL_TOKEN");
    return token == nullptr ? "" : token;
  }
  std::string token = ReadFile(flags.token_file);
  token.erase(token.find_last_not_of(" \r\n") + 1);
  return token;
}

Flags ParseFlags(int argc, char** argv) {
  const option known[] = {{"help", no_argument, nullptr, 1},
                          {"grpc_retries", no_argument, nullptr, 1},
                          {"target", required_argument, nullptr, 1},
                          {"ca", required_argument, nullptr, 1},
                          {"cert", required_argument, nullptr, 1},
                          {"key", required_argument, nullptr, 1},
                          {"server_name", required_argument, nullptr, 1},
                          {"token_file", required_argument, nullptr, 1},
                          {"max_tokens", required_argument, nullptr, 1},
                          {"temperature", required_argument, nullptr, 1},
                          {"timeout", required_argument, nullptr, 1},
                          {"retries", required_argument, nullptr, 1},
                          {"service_config", required_argument, nullptr, 1},
                          {"cancel_after", required_argument, nullptr, 1},
                          {nullptr, 0, nullptr, 0}};
  std::map<std::string, std::string> given;
  int index = 0;
  for (int c; (c = getopt_long(argc, argv, "", known, &index)) != -1;) {
    if (c != 1) throw BadFlags("see --help");
    given[known[index].name] = optarg == nullptr ? "" : optarg;
  }
  const auto text = [&given](const char* name, std::string* value) {
    if (given.count(name) > 0) *value = given[name];
  };
  const auto number = [&given](const char* name, auto* value) {
    if (given.count(name) > 0) *value = ToNumber(name, given[name]);
  };
  Flags flags;
  flags.service_config = OVERFILL_SERVICE_CONFIG;
  flags.help = given.count("help") > 0;
  flags.grpc_retries = given.count("grpc_retries") > 0;
  text("target", &flags.target);
  text("ca", &flags.ca);
  text("cert", &flags.cert);
  text("key", &flags.key);
  text("server_name", &flags.server_name);
  text("token_file", &flags.token_file);
  text("service_config", &flags.service_config);
  number("max_tokens", &flags.max_tokens);
  number("temperature", &flags.temperature);
  number("timeout", &flags.timeout);
  number("retries", &flags.retries);
  number("cancel_after", &flags.cancel_after);
  flags.prompts.assign(argv + optind, argv + argc);
  if (!flags.help) CheckFlags(flags);
  return flags;
}
