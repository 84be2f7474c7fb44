#include "engine/safetensors_header.h"

#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/checked_math.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "engine/safetensors.h"

namespace overfill {
namespace {

using Entries = std::map<std::string, SafetensorsEntry, std::less<>>;

constexpr char kMetadata[] = "__metadata__";
constexpr size_t kMaxDims = 16;
constexpr size_t kMaxNameBytes = 4096;
constexpr size_t kMaxTensors = 10'000'000;

// Receives the parser's events. Its place in the header is (where_, key_): the
// format has three levels, so that no stack is needed. A function that returns
// false stops the parser; error_ says why.
class HeaderHandler : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderHandler(absl::string_view path) : path_(path) {}

  Entries TakeEntries() { return std::move(entries_); }
  const absl::Status& status() const { return error_; }
  bool complete() const { return where_ == Where::kDone; }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t) override {
    return Unexpected("a negative number");
  }
  bool number_float(number_float_t, const string_t&) override {
    return Unexpected("a fraction");
  }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (where_ == Where::kShape) {
      if (value > uint64_t{std::numeric_limits<int64_t>::max()}) {
        return Fail("shape is too large");
      }
      if (entry_.shape.size() == kMaxDims)
        return Fail("has over 16 dimensions");
      entry_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (where_ == Where::kOffsets) {
      if (num_offsets_ == 2) return Fail("data_offsets must be two numbers");
      (num_offsets_++ == 0 ? entry_.begin : entry_.end) = value;
      return true;
    }
    return Unexpected("a number");
  }

  bool string(string_t& value) override {
    if (where_ == Where::kMetadata) return true;  // not ours to read
    if (where_ == Where::kEntry && key_ == "dtype") {
      entry_.dtype = std::move(value);
      return true;
    }
    return Unexpected("a string");
  }

  bool start_object(std::size_t) override {
    switch (where_) {
      case Where::kStart:
        where_ = Where::kTop;
        return true;
      case Where::kTop:
        if (name_ == kMetadata) {
          where_ = Where::kMetadata;
          return true;
        }
        where_ = Where::kEntry;
        entry_ = {};
        has_dtype_ = has_shape_ = has_offsets_ = false;
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool key(string_t& value) override {
    if (where_ == Where::kMetadata) return true;
    if (where_ == Where::kEntry) return EntryKey(value);
    if (value.size() > kMaxNameBytes) {
      return FailFile(
          absl::StrCat("a tensor's name has ", value.size(), " bytes"));
    }
    name_ = std::move(value);
    if (name_ == kMetadata && std::exchange(has_metadata_, true)) {
      return FailFile("has __metadata__ twice");
    }
    if (entries_.count(name_) > 0) return Fail("comes twice");
    if (entries_.size() == kMaxTensors) return FailFile("has too many tensors");
    return true;
  }

  bool end_object() override {
    if (where_ == Where::kTop) {
      where_ = Where::kDone;
      return true;
    }
    const bool was_entry = where_ == Where::kEntry;
    where_ = Where::kTop;
    return !was_entry || FinishEntry();
  }

  bool start_array(std::size_t) override {
    if (where_ == Where::kEntry && key_ == "shape") {
      where_ = Where::kShape;
      return true;
    }
    if (where_ == Where::kEntry && key_ == "data_offsets") {
      where_ = Where::kOffsets;
      num_offsets_ = 0;
      return true;
    }
    return Unexpected("an array");
  }

  bool end_array() override {
    if (where_ == Where::kOffsets && num_offsets_ != 2) {
      return Fail("data_offsets must be two numbers");
    }
    where_ = Where::kEntry;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return FailFile(
        absl::StrCat("the header is not valid JSON at byte ", position));
  }

 private:
  enum class Where { kStart, kTop, kMetadata, kEntry, kShape, kOffsets, kDone };

  bool FailFile(absl::string_view what) {
    error_ = absl::InvalidArgumentError(absl::StrCat(path_, ": ", what));
    return false;
  }
  bool Fail(absl::string_view what) {
    return FailFile(
        absl::StrCat("tensor ", QuoteTensorName(name_), ": ", what));
  }
  bool Unexpected(absl::string_view what) {
    switch (where_) {
      case Where::kStart:
      case Where::kDone:
        return FailFile("the header must be a JSON object");
      case Where::kMetadata:
        return FailFile(absl::StrCat("__metadata__ holds ", what));
      case Where::kTop:
        return Fail(absl::StrCat("is ", what, ", not an object"));
      default:
        return Fail(absl::StrCat(key_, " holds ", what));
    }
  }

  bool EntryKey(string_t& value) {
    bool* seen = value == "dtype"          ? &has_dtype_
                 : value == "shape"        ? &has_shape_
                 : value == "data_offsets" ? &has_offsets_
                                           : nullptr;
    if (seen == nullptr) {
      return Fail(
          absl::StrCat("has an unknown member ", QuoteTensorName(value)));
    }
    key_ = std::move(value);
    if (std::exchange(*seen, true)) {
      return Fail(absl::StrCat(key_, " comes twice"));
    }
    return true;
  }

  bool FinishEntry() {
    if (!has_dtype_) return Fail("has no dtype");
    if (!has_shape_) return Fail("has no shape");
    if (!has_offsets_) return Fail("has no data_offsets");
    const auto element_bytes = SafetensorsElementBytes(entry_.dtype);
    if (!element_bytes) {
      return Fail(
          absl::StrCat("dtype ", QuoteTensorName(entry_.dtype), " is unknown"));
    }
    const auto elements = CheckedProduct(entry_.shape);
    const auto bytes =
        elements ? CheckedMul(*elements, *element_bytes) : std::nullopt;
    if (!bytes) return Fail("shape is too large");
    if (entry_.begin > entry_.end) {
      return Fail(absl::StrCat("data_offsets [", entry_.begin, ", ", entry_.end,
                               "] run backwards"));
    }
    if (entry_.end - entry_.begin != *bytes) {
      return Fail(absl::StrCat("data_offsets hold ", entry_.end - entry_.begin,
                               " bytes, but ", entry_.dtype, " ",
                               ShapeString(entry_.shape), " takes ", *bytes));
    }
    entries_.emplace(std::move(name_), std::move(entry_));
    return true;
  }

  const absl::string_view path_;
  absl::Status error_;
  Entries entries_;
  Where where_ = Where::kStart;
  std::string name_;  // of the tensor being read
  std::string key_;   // of its member
  SafetensorsEntry entry_;
  int num_offsets_ = 0;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  bool has_metadata_ = false;
};

}  // namespace

std::optional<uint64_t> SafetensorsElementBytes(absl::string_view dtype) {
  static constexpr std::pair<const char*, uint64_t> kSizes[] = {
      {"BOOL", 1},    {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
      {"F8_E8M0", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},     {"BF16", 2},
      {"I32", 4},     {"U32", 4}, {"F32", 4}, {"F64", 8},     {"I64", 8},
      {"U64", 8},     {"C64", 8},
  };
  for (const auto& [name, bytes] : kSizes) {
    if (dtype == name) return bytes;
  }
  return std::nullopt;
}

absl::StatusOr<Entries> ParseSafetensorsHeader(absl::string_view json,
                                               absl::string_view path) {
  HeaderHandler handler(path);
  Json::sax_parse(json.begin(), json.end(), &handler);
  RETURN_IF_ERROR(handler.status());
  if (!handler.complete()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the header is not complete"));
  }
  return handler.TakeEntries();
}

}  // namespace overfill
