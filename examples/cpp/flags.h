// The flags of the example, and the files that they name.
#ifndef OVERFILL_EXAMPLES_CPP_FLAGS_H_
#define OVERFILL_EXAMPLES_CPP_FLAGS_H_

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

class BadFlags : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Flags {
  std::string target = "127.0.0.1:50051";
  std::string ca, cert, key, server_name, token_file;
  std::string service_config;  // CMakeLists.txt has the default
  std::optional<int> max_tokens;
  std::optional<double> temperature;
  double timeout = 60;
  int retries = 4;
  bool grpc_retries = false;
  int cancel_after = 0;
  bool help = false;
  std::vector<std::string> prompts;
};

// Throws BadFlags.
Flags ParseFlags(int argc, char** argv);

const char* Usage();

// Throws BadFlags. Empty for no path.
std::string ReadFile(const std::string& path);

// Empty: none.
std::string ReadToken(const Flags& flags);

#endif  // OVERFILL_EXAMPLES_CPP_FLAGS_H_
