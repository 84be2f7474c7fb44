#include "engine/weights.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/checked_math.h"
#include "base/status_macros.h"
#include "engine/dummy_tensor.h"
#include "engine/parallel.h"
#include "engine/progress.h"
#include "engine/weight_plan.h"

namespace overfill {
namespace {

constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kHead[] = "lm_head.weight";

absl::Status InvalidTensor(absl::string_view file, absl::string_view name,
                           absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat(file, ": tensor ", QuoteTensorName(name), ": ", what));
}

absl::Status CheckTensor(const Checkpoint& checkpoint,
                         const PlannedTensor& planned) {
  const StoredTensor* stored = checkpoint.Find(planned.name);
  if (stored == nullptr) {
    return InvalidTensor(checkpoint.origin(), planned.name,
                         absl::StrCat("is missing; config.json asks for ",
                                      ShapeString(planned.shape)));
  }
  if (stored->shape != planned.shape) {
    return InvalidTensor(
        stored->file, planned.name,
        absl::StrCat("is ", ShapeString(stored->shape),
                     "; config.json asks for ", ShapeString(planned.shape)));
  }
  if (!stored->weight_dtype()) {
    return InvalidTensor(stored->file, planned.name,
                         absl::StrCat("dtype ", stored->dtype,
                                      " is not supported (F32, F16, BF16)"));
  }
  return absl::OkStatus();
}

bool IsTiedCopy(const Checkpoint& checkpoint, const StoredTensor& head) {
  const StoredTensor* embedding = checkpoint.Find(kEmbedding);
  return embedding != nullptr && embedding->dtype == head.dtype &&
         embedding->shape == head.shape &&
         std::memcmp(embedding->bytes.data(), head.bytes.data(),
                     head.bytes.size()) == 0;
}

// A tensor that the plan does not name.
absl::Status CheckExtra(const ModelConfig& config, const Checkpoint& checkpoint,
                        const std::string& name, const StoredTensor& stored) {
  if (absl::EndsWith(name, ".rotary_emb.inv_freq")) return absl::OkStatus();
  if (name != kHead) {
    return InvalidTensor(
        stored.file, name,
        absl::StrCat("a ", ArchitectureName(config.architecture),
                     " of this config.json has no such tensor"));
  }
  if (IsTiedCopy(checkpoint, stored)) return absl::OkStatus();
  return InvalidTensor(stored.file, name,
                       "differs from the embedding, but config.json has "
                       "tie_word_embeddings true");
}

// Where the loader takes its tensors from. Thread-safe.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // Points into the source, or into `storage`.
  virtual HostTensor Get(const PlannedTensor& planned,
                         std::vector<uint16_t>& storage) const = 0;
};

class CheckpointSource : public TensorSource {
 public:
  // The checkpoint has passed CheckWeights.
  explicit CheckpointSource(const Checkpoint& checkpoint)
      : checkpoint_(checkpoint) {}
  HostTensor Get(const PlannedTensor& planned,
                 std::vector<uint16_t>&) const override {
    const StoredTensor* stored = checkpoint_.Find(planned.name);
    OVERFILL_CHECK(stored != nullptr) << planned.name;
    return {.data = stored->bytes.data(),
            .dtype = *stored->weight_dtype(),
            .shape = stored->shape};
  }

 private:
  const Checkpoint& checkpoint_;
};

class DummySource : public TensorSource {
 public:
  explicit DummySource(uint64_t seed) : seed_(seed) {}
  HostTensor Get(const PlannedTensor& planned,
                 std::vector<uint16_t>& storage) const override {
    return MakeDummyTensor(planned, seed_, storage);
  }

 private:
  const uint64_t seed_;
};

// Turns planned tensors into device memory. One thread's.
class Converter {
 public:
  Converter(Device& device, const TensorSource& source, DType dtype)
      : ops_(device.ops()), source_(source), dtype_(dtype) {}

  absl::StatusOr<const LinearWeight*> Linear(const PlannedLinear& planned) {
    std::vector<std::vector<uint16_t>> storage(planned.weights.size() +
                                               planned.biases.size());
    std::vector<HostTensor> weights, biases;
    size_t used = 0;
    for (const PlannedTensor& tensor : planned.weights) {
      weights.push_back(Get(tensor, storage[used++]));
    }
    for (const PlannedTensor& tensor : planned.biases) {
      biases.push_back(Get(tensor, storage[used++]));
    }
    auto linear = ops_.MakeLinear(weights, biases, dtype_);
    if (!linear.ok()) return Named(planned.weights[0], linear.status());
    linears_.push_back(*std::move(linear));
    return linears_.back().get();
  }

  absl::StatusOr<const float*> Vector(const PlannedTensor& planned) {
    std::vector<uint16_t> storage;
    auto vector = ops_.MakeVector(Get(planned, storage));
    if (!vector.ok()) return Named(planned, vector.status());
    vectors_.push_back(*std::move(vector));
    return static_cast<const float*>(vectors_.back()->data());
  }

  absl::StatusOr<LayerWeights> Layer(const PlannedLayer& planned) {
    LayerWeights layer;
    AttentionWeights& attention = layer.attention;
    ASSIGN_OR_RETURN(attention.norm_gain, Vector(planned.attention_norm));
    ASSIGN_OR_RETURN(attention.qkv, Linear(planned.qkv));
    if (planned.q_norm) {
      ASSIGN_OR_RETURN(attention.q_norm_gain, Vector(*planned.q_norm));
    }
    if (planned.k_norm) {
      ASSIGN_OR_RETURN(attention.k_norm_gain, Vector(*planned.k_norm));
    }
    ASSIGN_OR_RETURN(attention.output, Linear(planned.output));
    ASSIGN_OR_RETURN(layer.mlp.norm_gain, Vector(planned.mlp_norm));
    ASSIGN_OR_RETURN(layer.mlp.gate_up, Linear(planned.gate_up));
    ASSIGN_OR_RETURN(layer.mlp.down, Linear(planned.down));
    return layer;
  }

  // Host bytes read so far.
  uint64_t bytes() const { return bytes_; }
  // Hands what was made to the weights.
  void MoveTo(ModelWeights& weights) {
    for (auto& linear : linears_) weights.linears.push_back(std::move(linear));
    for (auto& vector : vectors_) weights.vectors.push_back(std::move(vector));
  }

 private:
  HostTensor Get(const PlannedTensor& planned, std::vector<uint16_t>& storage) {
    HostTensor tensor = source_.Get(planned, storage);
    bytes_ += *CheckedProduct(tensor.shape) * DTypeBytes(tensor.dtype);
    return tensor;
  }
  static absl::Status Named(const PlannedTensor& planned,
                            const absl::Status& status) {
    return absl::Status(status.code(),
                        absl::StrCat("tensor ", QuoteTensorName(planned.name),
                                     ": ", status.message()));
  }

  Ops& ops_;
  const TensorSource& source_;
  const DType dtype_;
  uint64_t bytes_ = 0;
  std::vector<std::unique_ptr<LinearWeight>> linears_;
  std::vector<std::unique_ptr<Buffer>> vectors_;
};

absl::Status SendTokenMask(Device& device, const std::vector<uint8_t>& is_token,
                           ModelWeights& weights) {
  if (std::find(is_token.begin(), is_token.end(), 0) == is_token.end()) {
    return absl::OkStatus();  // all have one
  }
  const auto size = static_cast<int64_t>(is_token.size());
  OVERFILL_CHECK_EQ(size, weights.config.vocab_size);
  ASSIGN_OR_RETURN(auto buffer, device.Allocate(size));
  auto stream = device.NewStream(StreamPriority::kLow);
  stream->CopyToDevice(buffer->data(), is_token.data(), size);
  RETURN_IF_ERROR(stream->Synchronize());
  weights.head.is_token = static_cast<const uint8_t*>(buffer->data());
  weights.vectors.push_back(std::move(buffer));
  return absl::OkStatus();
}

absl::StatusOr<ModelWeights> Convert(Device& device, const ModelConfig& config,
                                     const TensorSource& source, DType dtype,
                                     const std::vector<uint8_t>& is_token,
                                     Progress& progress) {
  const WeightPlan plan = PlanWeights(config);
  ModelWeights weights;
  weights.config = config;
  weights.dtype = dtype;
  weights.layers.resize(plan.layers.size());
  // The two largest come first, so that no thread begins one at the end.
  constexpr size_t kEmbeddingTask = 0, kHeadTask = 1, kFirstLayerTask = 2;
  const size_t num_tasks = kFirstLayerTask + plan.layers.size();
  std::vector<Converter> converters;
  for (size_t i = 0; i < num_tasks; ++i) {
    converters.emplace_back(device, source, dtype);
  }
  const auto convert = [&](size_t task) -> absl::Status {
    Converter& converter = converters[task];
    if (task == kEmbeddingTask) {
      ASSIGN_OR_RETURN(weights.embedding, converter.Linear(plan.embedding));
    } else if (task == kHeadTask) {
      ASSIGN_OR_RETURN(weights.head.norm_gain,
                       converter.Vector(plan.final_norm));
      if (plan.lm_head) {
        ASSIGN_OR_RETURN(weights.head.lm_head, converter.Linear(*plan.lm_head));
      }
    } else {
      const size_t layer = task - kFirstLayerTask;
      ASSIGN_OR_RETURN(weights.layers[layer],
                       converter.Layer(plan.layers[layer]));
    }
    progress.Add(converter.bytes());
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(ParallelTasks(LoadingThreads(device), num_tasks, convert));
  for (Converter& converter : converters) converter.MoveTo(weights);
  if (!plan.lm_head) weights.head.lm_head = weights.embedding;
  RETURN_IF_ERROR(SendTokenMask(device, is_token, weights));
  return weights;
}

}  // namespace

int64_t NumParameters(const ModelConfig& config) {
  int64_t total = 0;
  ForEachTensor(PlanWeights(config), [&](const PlannedTensor& tensor) {
    total += static_cast<int64_t>(*CheckedProduct(tensor.shape));
  });
  return total;
}

absl::StatusOr<std::vector<uint8_t>> TokenMask(const ModelConfig& config,
                                               const Tokenizer& tokenizer,
                                               absl::string_view origin) {
  if (tokenizer.vocab_size() > config.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        origin, ": tokenizer.json has ids up to ", tokenizer.vocab_size() - 1,
        ", but vocab_size of config.json is ", config.vocab_size));
  }
  std::vector<uint8_t> mask(config.vocab_size);
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    mask[id] = tokenizer.IsToken(id) ? 1 : 0;
  }
  return mask;
}

absl::Status CheckWeights(const ModelConfig& config,
                          const Checkpoint& checkpoint) {
  absl::Status status;
  std::set<std::string> planned_names;
  ForEachTensor(PlanWeights(config), [&](const PlannedTensor& planned) {
    if (status.ok()) status = CheckTensor(checkpoint, planned);
    planned_names.insert(planned.name);
  });
  RETURN_IF_ERROR(status);
  for (const auto& [name, stored] : checkpoint.tensors()) {
    if (planned_names.count(name) > 0) continue;
    RETURN_IF_ERROR(CheckExtra(config, checkpoint, name, stored));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelWeights> LoadWeights(Device& device,
                                         const ModelConfig& config,
                                         const Checkpoint& checkpoint,
                                         DType dtype,
                                         const std::vector<uint8_t>& is_token) {
  RETURN_IF_ERROR(CheckWeights(config, checkpoint));
  Progress progress(absl::StrCat("loading ", checkpoint.origin()),
                    checkpoint.total_bytes());
  auto weights = Convert(device, config, CheckpointSource(checkpoint), dtype,
                         is_token, progress);
  if (weights.ok()) return weights;
  return absl::Status(
      weights.status().code(),
      absl::StrCat(checkpoint.origin(), ": ", weights.status().message()));
}

absl::StatusOr<ModelWeights> MakeDummyWeights(
    Device& device, const ModelConfig& config, DType dtype,
    const std::vector<uint8_t>& is_token, uint64_t seed) {
  Progress progress(
      "making dummy weights",
      static_cast<uint64_t>(NumParameters(config)) * DTypeBytes(DType::kBF16));
  return Convert(device, config, DummySource(seed), dtype, is_token, progress);
}

}  // namespace overfill
