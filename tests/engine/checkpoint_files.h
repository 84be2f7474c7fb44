// Writes small checkpoints to a temporary directory.
#ifndef OVERFILL_TESTS_ENGINE_CHECKPOINT_FILES_H_
#define OVERFILL_TESTS_ENGINE_CHECKPOINT_FILES_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/json.h"

namespace overfill {

// Removed, with all that is in it, at the end of its life.
class TempDirectory {
 public:
  TempDirectory();
  ~TempDirectory();
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(absl::string_view name) const;

 private:
  std::string path_;
};

void WriteFile(const std::string& path, absl::string_view content);

// A tensor as a file holds it.
struct FileTensor {
  std::string dtype;  // "F32", "BF16", "F16", or what a test makes up
  std::vector<int64_t> shape;
  std::string bytes;
};
// Values rounded to `dtype`.
FileTensor MakeFileTensor(const std::vector<int64_t>& shape,
                          const std::vector<float>& values,
                          const std::string& dtype = "F32");
std::vector<float> ValuesOf(const FileTensor& tensor);

using FileTensors = std::map<std::string, FileTensor>;

// The bytes of a safetensors file: of tensors, and of a given header and data.
std::string SafetensorsFile(const FileTensors& tensors);
std::string SafetensorsFile(absl::string_view header, absl::string_view data);

// The files of one model; a test changes what it wants to be otherwise.
struct TinyCheckpoint {
  Json config;
  Json generation = {{"do_sample", false}};
  Json tokenizer;
  Json tokenizer_config;
  FileTensors tensors;
  // More than 1: as many files and an index.
  int num_shards = 1;

  void WriteTo(const std::string& directory) const;
};

// `model_type` is "llama", "qwen2", "qwen3" or "mistral". 3 layers, hidden 27,
// intermediate 41, 4 heads, 2 KV heads, head_dim 16; an untied head, a few rows
// more than the tokenizer has ids.
Json TinyConfig(absl::string_view model_type);
// The tensors that the config asks for, random, stored as `dtype`.
FileTensors TinyTensors(const Json& config, uint32_t seed,
                        const std::string& dtype = "F32");
TinyCheckpoint MakeTinyCheckpoint(absl::string_view model_type, uint32_t seed);

}  // namespace overfill

#endif  // OVERFILL_TESTS_ENGINE_CHECKPOINT_FILES_H_
