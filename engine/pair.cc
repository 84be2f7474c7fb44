#include "engine/pair.h"

#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "engine/content_digest.h"
#include "engine/dummy_tokenizer.h"
#include "engine/kv_store.h"
#include "engine/pair_check.h"
#include "engine/pair_manifest.h"
#include "engine/pair_manifest_check.h"
#include "engine/parallel.h"
#include "engine/safetensors.h"

namespace overfill {
namespace {

constexpr uint64_t kMaxMapBytes = 1 << 20;
constexpr uint64_t kMaxConfigBytes = 16 << 20;
// Of dummy weights.
constexpr uint64_t kDummySeed = 1;

// Whether two paths lead to one directory.
bool IsSameDirectory(const std::string& a, const std::string& b) {
  std::error_code error;
  return std::filesystem::equivalent(a, b, error) && !error;
}

// The last component, whatever dots and slashes follow it.
std::string ModelName(const std::string& directory) {
  std::error_code error;
  std::filesystem::path path =
      std::filesystem::weakly_canonical(directory, error);
  if (error) path = directory;
  if (path.filename().empty()) path = path.parent_path();
  return path.filename().string();
}

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

std::string IdText(std::optional<int32_t> id) {
  return id ? absl::StrCat(*id) : "none";
}

// The part of a model's digest that its small files make up.
absl::Status HashConfigs(const std::string& directory, Sha256& hash) {
  for (const char* name : {"config.json", "generation_config.json"}) {
    const std::string path = absl::StrCat(directory, "/", name);
    const auto text = ReadFile(path, kMaxConfigBytes);
    if (!text.ok() && !absl::IsNotFound(text.status())) return text.status();
    hash.UpdateField(text.ok() ? "there" : "absent");
    hash.UpdateField(text.ok() ? *text : "");
  }
  return absl::OkStatus();
}

absl::Status CheckWeightsType(DType weights) {
  if (weights != DType::kF16) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "weights ", DTypeName(weights), " is none of bf16, f32 and int8"));
}

}  // namespace

// Makes one pair, small files first.
class PairLoader {
 public:
  PairLoader(Device& device, const PairOptions& options, PhaseTimes* times)
      : device_(device), options_(options), times_(times) {}

  absl::StatusOr<std::unique_ptr<Pair>> Load() {
    RETURN_IF_ERROR(CheckWeightsType(options_.prefill_weights));
    RETURN_IF_ERROR(CheckWeightsType(options_.decode_weights));
    pair_->is_one_model_ =
        options_.prefill_weights == options_.decode_weights &&
        IsSameDirectory(options_.prefill_model_dir, options_.decode_model_dir);
    full_.weights = options_.prefill_weights;
    pruned_.weights = options_.decode_weights;
    RETURN_IF_ERROR(LoadSmallFiles());

    // Every header is checked before any weight is converted.
    RETURN_IF_ERROR(OpenCheckpoint(full_));
    if (!pair_->is_one_model_) RETURN_IF_ERROR(OpenCheckpoint(pruned_));
    RETURN_IF_ERROR(LoadMap());
    EndPhase("configs, tokenizers and KV map");
    RETURN_IF_ERROR(CheckDigestsOfWeights());
    RETURN_IF_ERROR(LoadModel(full_, pair_->full_));
    if (!pair_->is_one_model_) {
      RETURN_IF_ERROR(LoadModel(pruned_, pair_->pruned_));
    }
    pair_->tokenizer_ = std::move(full_.tokenizer);
    SetDigest();
    return std::move(pair_);
  }

 private:
  struct Side {
    DType weights = DType::kBF16;
    PairSide facts;
    std::unique_ptr<Tokenizer> tokenizer;
    std::vector<uint8_t> is_token;
    std::optional<Checkpoint> checkpoint;  // none of dummies
  };

  void EndPhase(absl::string_view name) {
    if (times_ != nullptr) times_->EndPhase(name, absl::Now());
  }

  bool is_dummy() const { return options_.load_format == LoadFormat::kDummy; }

  // All but weights, and whether they are a pair.
  absl::Status LoadSmallFiles() {
    RETURN_IF_ERROR(LoadSide(options_.prefill_model_dir, full_));
    RETURN_IF_ERROR(LoadSide(options_.decode_model_dir, pruned_));
    RETURN_IF_ERROR(LoadManifest());
    RETURN_IF_ERROR(LoadMapSpec());
    RETURN_IF_ERROR(CheckPair(full_.facts, pruned_.facts, map_spec_));
    RETURN_IF_ERROR(CheckManifest());
    ASSIGN_OR_RETURN(pair_->eos_ids_, EosIds(full_.facts));
    if (pair_->eos_ids_.empty()) {
      LogWarning(absl::StrCat(options_.prefill_model_dir,
                              ": no EOS token: only stops and limits end "
                              "an answer"));
    }
    pair_->generation_ = full_.facts.generation;
    return absl::OkStatus();
  }

  absl::Status LoadSide(const std::string& directory, Side& side) {
    PairSide& facts = side.facts;
    facts.directory = directory;
    facts.kv_dtype = KvDTypeOf(side.weights);
    ASSIGN_OR_RETURN(facts.config, LoadModelConfig(directory));
    ASSIGN_OR_RETURN(facts.generation, LoadGenerationConfig(directory));
    if (is_dummy() && !FileExists(absl::StrCat(directory, "/tokenizer.json"))) {
      ASSIGN_OR_RETURN(side.tokenizer,
                       MakeDummyTokenizer(facts.config.vocab_size, directory));
    } else {
      ASSIGN_OR_RETURN(side.tokenizer, Tokenizer::Load(directory));
    }
    facts.tokenizer = side.tokenizer.get();
    ASSIGN_OR_RETURN(side.is_token,
                     TokenMask(facts.config, *side.tokenizer, directory));
    return absl::OkStatus();
  }

  // A model that is a pair with itself needs none, wherever it came from.
  absl::Status LoadManifest() {
    const std::string& full = options_.prefill_model_dir;
    const std::string& pruned = options_.decode_model_dir;
    if (IsSameDirectory(full, pruned)) return absl::OkStatus();
    ASSIGN_OR_RETURN(manifest_, LoadPairManifest(pruned));
    pair_->lacks_manifest_ = !manifest_.has_value();
    return absl::OkStatus();
  }

  absl::Status LoadMapSpec() {
    const std::string& path = options_.kv_map_file;
    if (path.empty()) {
      if (!manifest_) return absl::OkStatus();
      ASSIGN_OR_RETURN(map_spec_, KvMapOfManifest(*manifest_));
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxMapBytes));
    ASSIGN_OR_RETURN(map_spec_, ParseKvMapSpec(text, path));
    return absl::OkStatus();
  }

  absl::Status CheckManifest() {
    if (!manifest_) return absl::OkStatus();
    RETURN_IF_ERROR(
        CheckPairManifest(*manifest_, full_.facts, pruned_.facts, map_spec_));
    if (is_dummy()) return absl::OkStatus();
    RETURN_IF_ERROR(
        CheckManifestFiles(*manifest_, PairHalf::kFull, full_.facts.directory));
    return CheckManifestFiles(*manifest_, PairHalf::kDecode,
                              pruned_.facts.directory);
  }

  absl::Status CheckDigestsOfWeights() {
    if (!manifest_ || is_dummy()) return absl::OkStatus();
    const int threads = LoadingThreads(device_);
    RETURN_IF_ERROR(CheckManifestWeights(*manifest_, PairHalf::kFull,
                                         full_.facts.directory,
                                         *full_.checkpoint, threads));
    RETURN_IF_ERROR(CheckManifestWeights(*manifest_, PairHalf::kDecode,
                                         pruned_.facts.directory,
                                         *pruned_.checkpoint, threads));
    EndPhase("checking the manifest");
    return absl::OkStatus();
  }

  absl::Status LoadMap() {
    const ModelConfig& full = full_.facts.config;
    const ModelConfig& pruned = pruned_.facts.config;
    if (is_dummy()) {
      ASSIGN_OR_RETURN(pair_->kv_map_, MakeDummyKvMap(device_, map_spec_, full,
                                                      pruned, kDummySeed));
    } else {
      ASSIGN_OR_RETURN(
          pair_->kv_map_,
          LoadKvMap(device_, map_spec_, DirectoryOf(options_.kv_map_file), full,
                    pruned));
    }
    return absl::OkStatus();
  }

  absl::Status OpenCheckpoint(Side& side) {
    if (is_dummy()) return absl::OkStatus();
    ASSIGN_OR_RETURN(side.checkpoint,
                     Checkpoint::OpenDirectory(side.facts.directory));
    return CheckWeights(side.facts.config, *side.checkpoint);
  }

  absl::Status LoadModel(Side& side, PairModel& model) {
    const std::string& directory = side.facts.directory;
    const ModelConfig& config = side.facts.config;
    model.name = ModelName(directory);
    model.num_parameters = NumParameters(config);
    Sha256 hash;
    RETURN_IF_ERROR(HashConfigs(directory, hash));
    hash.UpdateField(HexString(side.tokenizer->digest()));
    hash.UpdateField(DTypeName(side.weights));
    // Of tokenizer_config.json: EOS may come from there.
    hash.UpdateField(IdText(side.tokenizer->bos_id()));
    hash.UpdateField(IdText(side.tokenizer->eos_id()));
    if (side.checkpoint) {
      hash.UpdateField(HexString(
          DigestFiles(side.checkpoint->files(), LoadingThreads(device_),
                      absl::StrCat("hashing ", side.checkpoint->origin()))));
      EndPhase("hashing");
      ASSIGN_OR_RETURN(model.weights,
                       LoadWeights(device_, config, *side.checkpoint,
                                   side.weights, side.is_token));
    } else {
      hash.UpdateField(absl::StrCat("noise ", kDummySeed));
      ASSIGN_OR_RETURN(model.weights,
                       MakeDummyWeights(device_, config, side.weights,
                                        side.is_token, kDummySeed));
    }
    model.digest = hash.Finish();
    EndPhase("weights");
    side.checkpoint.reset();
    return absl::OkStatus();
  }

  void SetDigest() {
    Sha256 hash;
    for (const Sha256Digest& part :
         {pair_->full().digest, pair_->pruned().digest,
          pair_->tokenizer().digest(), pair_->kv_map_.digest}) {
      hash.UpdateField(HexString(part));
    }
    pair_->digest_ = hash.Finish();
  }

  Device& device_;
  const PairOptions& options_;
  PhaseTimes* const times_;  // or null
  Side full_;
  Side pruned_;
  std::optional<PairManifest> manifest_;
  KvMapSpec map_spec_;
  std::unique_ptr<Pair> pair_{new Pair()};
};

absl::StatusOr<std::unique_ptr<Pair>> Pair::Load(Device& device,
                                                 const PairOptions& options,
                                                 PhaseTimes* times) {
  return PairLoader(device, options, times).Load();
}

}  // namespace overfill
