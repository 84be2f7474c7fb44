#include "base/flags.h"

#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/check.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace overfill {
namespace {

constexpr uint64_t kMaxFlagfileBytes = 1 << 20;

absl::Status Invalid(absl::string_view a, absl::string_view b) {
  return absl::InvalidArgumentError(absl::StrCat(a, ": ", b));
}

absl::StatusOr<int64_t> ParseInt(absl::string_view value, int64_t min,
                                 int64_t max) {
  int64_t number;
  if (!absl::SimpleAtoi(value, &number)) {
    return absl::InvalidArgumentError("must be a whole number");
  }
  if (number < min || number > max) {
    return absl::InvalidArgumentError(
        max == std::numeric_limits<int64_t>::max()
            ? absl::StrCat("must be at least ", min)
            : absl::StrCat("must be in [", min, ", ", max, "]"));
  }
  return number;
}

std::string WithDefault(std::string help, absl::string_view value) {
  return value.empty() ? help : absl::StrCat(help, " (", value, ")");
}

}  // namespace

void FlagSet::Add(std::string name, std::string value, std::string help,
                  Setter setter) {
  order_.push_back(name);
  const bool inserted =
      flags_
          .emplace(std::move(name),
                   Flag{std::move(value), std::move(help), std::move(setter)})
          .second;
  OVERFILL_CHECK(inserted);
}

void FlagSet::AddString(std::string name, std::string value, std::string help,
                        std::string* target) {
  Add(std::move(name), std::move(value), WithDefault(std::move(help), *target),
      [target](absl::string_view text) {
        *target = std::string(text);
        return absl::OkStatus();
      });
}

void FlagSet::AddInt(std::string name, std::string help, int64_t min,
                     int64_t max, int64_t* target) {
  Add(std::move(name), "N", WithDefault(std::move(help), absl::StrCat(*target)),
      [=](absl::string_view text) -> absl::Status {
        ASSIGN_OR_RETURN(*target, ParseInt(text, min, max));
        return absl::OkStatus();
      });
}

void FlagSet::AddInt32(std::string name, std::string help, int32_t min,
                       int32_t max, int32_t* target) {
  Add(std::move(name), "N", WithDefault(std::move(help), absl::StrCat(*target)),
      [=](absl::string_view text) -> absl::Status {
        ASSIGN_OR_RETURN(const int64_t number, ParseInt(text, min, max));
        *target = static_cast<int32_t>(number);
        return absl::OkStatus();
      });
}

void FlagSet::AddDuration(std::string name, std::string help,
                          absl::Duration* target) {
  Add(std::move(name), "DURATION",
      WithDefault(std::move(help), absl::FormatDuration(*target)),
      [target](absl::string_view text) -> absl::Status {
        absl::Duration duration;
        if (!absl::ParseDuration(text, &duration) ||
            duration < absl::ZeroDuration() ||
            duration == absl::InfiniteDuration()) {
          return absl::InvalidArgumentError(
              "must be a duration such as 30s or 500ms");
        }
        *target = duration;
        return absl::OkStatus();
      });
}

void FlagSet::AddBool(std::string name, std::string help, bool* target) {
  Add(std::move(name), "", std::move(help),
      [target](absl::string_view text) -> absl::Status {
        if (text != "true" && text != "false") {
          return absl::InvalidArgumentError("must be true or false");
        }
        *target = text == "true";
        return absl::OkStatus();
      });
}

void FlagSet::Refuse(std::string name, std::string reason) {
  flags_.emplace(std::move(name), Flag{"N", std::move(reason), nullptr});
}

void FlagSet::ReadFileAndEnvironment(std::string env_prefix) {
  env_prefix_ = std::move(env_prefix);
  Add("flagfile", "FILE", "more flags, one --name=value per line; # comments",
      [this](absl::string_view text) {
        flagfile_ = std::string(text);
        return absl::OkStatus();
      });
}

const FlagSet::Flag* FlagSet::Find(const std::string& name) const {
  const auto found = flags_.find(name);
  return found == flags_.end() ? nullptr : &found->second;
}

absl::StatusOr<std::vector<FlagSet::Assignment>> FlagSet::Split(
    const std::vector<std::string>& args,
    std::vector<std::string>* positional) const {
  std::vector<Assignment> result;
  bool flags_ended = false;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (flags_ended || arg == "-" || arg.empty() || arg[0] != '-') {
      if (positional == nullptr) return Invalid(arg, "not a flag");
      positional->push_back(arg);
      continue;
    }
    if (arg == "--") {
      flags_ended = true;
      continue;
    }
    const size_t equals = arg.find('=');
    const std::string origin = arg.substr(0, equals);
    const std::string name = origin.substr(origin.rfind("--", 0) == 0 ? 2 : 1);
    const Flag* flag = Find(name);
    if (flag == nullptr) return Invalid(origin, "unknown flag; see --help");
    if (flag->setter == nullptr) return Invalid(origin, flag->help);
    if (equals != std::string::npos) {
      result.push_back({name, arg.substr(equals + 1), origin});
    } else if (flag->value.empty()) {
      result.push_back({name, "true", origin});
    } else if (i + 1 < args.size()) {
      result.push_back({name, args[++i], origin});
    } else {
      return Invalid(origin, "needs a value");
    }
  }
  return result;
}

absl::StatusOr<std::vector<FlagSet::Assignment>> FlagSet::ReadFile(
    const std::string& path) const {
  ASSIGN_OR_RETURN(const std::string text,
                   overfill::ReadFile(path, kMaxFlagfileBytes));
  std::vector<Assignment> result;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++line_number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    auto split = Split({std::string(line)}, nullptr);
    if (!split.ok()) {
      return Invalid(absl::StrCat(path, ":", line_number),
                     split.status().message());
    }
    for (Assignment& assignment : *split) {
      if (assignment.name == "flagfile") {
        return Invalid(absl::StrCat(path, ":", line_number),
                       "a flag file cannot name another one");
      }
      assignment.origin =
          absl::StrCat(path, ":", line_number, ": ", assignment.origin);
      result.push_back(std::move(assignment));
    }
  }
  return result;
}

// An empty variable counts as absent: templates of deployments leave such.
std::vector<FlagSet::Assignment> FlagSet::ReadEnvironment(
    const GetEnv& get_env) const {
  std::vector<Assignment> result;
  for (const auto& [name, flag] : flags_) {
    const std::string variable =
        absl::StrCat(*env_prefix_, "_", absl::AsciiStrToUpper(name));
    const char* value = get_env(variable.c_str());
    if (value == nullptr || *value == '\0') continue;
    result.push_back({name, value, variable});
  }
  return result;
}

absl::Status FlagSet::Apply(const std::vector<Assignment>& assignments) const {
  for (const Assignment& assignment : assignments) {
    const Flag& flag = *Find(assignment.name);
    if (flag.setter == nullptr) return Invalid(assignment.origin, flag.help);
    const absl::Status status = flag.setter(assignment.value);
    if (!status.ok()) return Invalid(assignment.origin, status.message());
  }
  return absl::OkStatus();
}

absl::Status FlagSet::Parse(const std::vector<std::string>& args,
                            std::vector<std::string>* positional,
                            const GetEnv& get_env) {
  ASSIGN_OR_RETURN(const std::vector<Assignment> from_args,
                   Split(args, positional));
  if (env_prefix_) {
    RETURN_IF_ERROR(Apply(ReadEnvironment(get_env)));
    for (const Assignment& assignment : from_args) {
      if (assignment.name == "flagfile") flagfile_ = assignment.value;
    }
    if (!flagfile_.empty()) {
      auto from_file = ReadFile(flagfile_);
      if (!from_file.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat("--flagfile: ", from_file.status().message()));
      }
      RETURN_IF_ERROR(Apply(*from_file));
    }
  }
  return Apply(from_args);
}

std::string FlagSet::Help() const {
  std::string result;
  for (const std::string& name : order_) {
    const Flag& flag = *Find(name);
    const std::string left = flag.value.empty()
                                 ? absl::StrCat("  --", name)
                                 : absl::StrCat("  --", name, "=", flag.value);
    absl::StrAppend(&result, left, "\n      ", flag.help, "\n");
  }
  return result;
}

}  // namespace overfill
