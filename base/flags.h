// Command-line flags, which may also come from a file or the environment.
#ifndef OVERFILL_BASE_FLAGS_H_
#define OVERFILL_BASE_FLAGS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace overfill {

// The flags of one program. Declared once, then parsed once; targets outlive
// the set. Not thread-safe.
class FlagSet {
 public:
  // Stores the value; an error says what is wrong with it, without the name.
  using Setter = std::function<absl::Status(absl::string_view value)>;
  using GetEnv = std::function<const char*(const char* name)>;

  // `value` names the value in the help: "N", "DIR". `help` is one line; the
  // typed calls below end it with the target's value at the time of the call,
  // the default.
  void Add(std::string name, std::string value, std::string help,
           Setter setter);
  void AddString(std::string name, std::string value, std::string help,
                 std::string* target);
  // In [min, max].
  void AddInt(std::string name, std::string help, int64_t min, int64_t max,
              int64_t* target);
  void AddInt32(std::string name, std::string help, int32_t min, int32_t max,
                int32_t* target);
  // Zero or more: 30s, 1m30s, 500ms.
  void AddDuration(std::string name, std::string help, absl::Duration* target);
  // --name, --name=true, --name=false.
  void AddBool(std::string name, std::string help, bool* target);
  // A flag that other versions have or will have: refused by name.
  void Refuse(std::string name, std::string reason);
  // Adds --flagfile, and lets each flag come from PREFIX_NAME in the
  // environment.
  void ReadFileAndEnvironment(std::string env_prefix);

  // Applies the environment, then --flagfile, then `args` (without the
  // program's name): the later wins. `positional` takes what is no flag; where
  // it is null, such an argument is an error. INVALID_ARGUMENT is one line
  // that names the flag and where it came from.
  absl::Status Parse(const std::vector<std::string>& args,
                     std::vector<std::string>* positional,
                     const GetEnv& get_env);

  // One line per flag, in the order of declaration.
  std::string Help() const;

 private:
  struct Flag {
    std::string value;  // "": a switch
    std::string help;
    Setter setter;  // null: refused for the reason in `help`
  };
  struct Assignment {
    std::string name;
    std::string value;
    std::string origin;  // "--name", "FILE:3: --name", "OVERFILL_NAME"
  };

  const Flag* Find(const std::string& name) const;
  absl::StatusOr<std::vector<Assignment>> Split(
      const std::vector<std::string>& args,
      std::vector<std::string>* positional) const;
  absl::StatusOr<std::vector<Assignment>> ReadFile(
      const std::string& path) const;
  std::vector<Assignment> ReadEnvironment(const GetEnv& get_env) const;
  absl::Status Apply(const std::vector<Assignment>& assignments) const;

  std::map<std::string, Flag> flags_;
  std::vector<std::string> order_;
  std::optional<std::string> env_prefix_;
  std::string flagfile_;
};

}  // namespace overfill

#endif  // OVERFILL_BASE_FLAGS_H_
