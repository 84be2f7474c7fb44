// QkNormRopeWrite and PagedAttention over random ragged batches.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/kernels/backend_test.h"

namespace overfill {
namespace {

struct SequencePlan {
  int32_t start = 0;  // positions that are in the store already
  int32_t rows = 0;
};

struct AttentionCase {
  int32_t num_kv_heads = 1;
  int32_t group = 1;  // query heads per KV head
  int32_t head_dim = 64;
  int32_t block_tokens = 16;
  DType kv_dtype = DType::kBF16;
  bool qk_norm = false;
  std::vector<SequencePlan> sequences;
};

// A store of two layers with shuffled blocks, a ragged batch over it, and the
// same in the reference's terms.
class AttentionTest : public BackendTest {
 protected:
  void Check(const AttentionCase& c);

  float Stored(const AttentionCase& c, float value) const {
    return c.kv_dtype == DType::kF32
               ? value
               : FloatFromBFloat16(BFloat16FromFloat(value));
  }
};

// Reads and writes KV elements of either type.
struct HostStore {
  KvView layout;  // data is null
  std::vector<std::byte> bytes;

  float Get(int64_t element) const {
    if (layout.dtype == DType::kF32) {
      float value;
      std::memcpy(&value, &bytes[element * 4], 4);
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, &bytes[element * 2], 2);
    return FloatFromBFloat16(bits);
  }
  void Set(int64_t element, float value) {
    if (layout.dtype == DType::kF32) {
      std::memcpy(&bytes[element * 4], &value, 4);
      return;
    }
    const uint16_t bits = BFloat16FromFloat(value);
    std::memcpy(&bytes[element * 2], &bits, 2);
  }
};

void AttentionTest::Check(const AttentionCase& c) {
  const int32_t num_heads = c.num_kv_heads * c.group;
  const int32_t num_sequences = static_cast<int32_t>(c.sequences.size());
  SCOPED_TRACE(testing::Message()
               << num_heads << "/" << c.num_kv_heads << " heads of "
               << c.head_dim << ", blocks of " << c.block_tokens << ", "
               << DTypeName(c.kv_dtype) << ", " << num_sequences
               << " sequences, first " << c.sequences[0].start << " + "
               << c.sequences[0].rows);
  // Blocks in random order, a few of them nobody's.
  BatchView batch;
  std::vector<int32_t> token_ids, positions, row_sequence, row_begin = {0};
  int32_t num_blocks = 3;
  for (const SequencePlan& sequence : c.sequences) {
    const int32_t end = sequence.start + sequence.rows;
    const int32_t blocks = (end + c.block_tokens - 1) / c.block_tokens;
    batch.max_blocks = std::max(batch.max_blocks, blocks + 1);
    batch.max_kv_tokens = std::max(batch.max_kv_tokens, end);
    batch.max_sequence_rows = std::max(batch.max_sequence_rows, sequence.rows);
    num_blocks += blocks;
  }
  std::vector<int32_t> free_blocks(num_blocks);
  std::iota(free_blocks.begin(), free_blocks.end(), 0);
  std::shuffle(free_blocks.begin(), free_blocks.end(), random_);
  // What is past a sequence's blocks must not be followed.
  std::vector<int32_t> tables(num_sequences * batch.max_blocks, 1 << 30);
  for (int32_t s = 0; s < num_sequences; ++s) {
    const SequencePlan& sequence = c.sequences[s];
    for (int32_t r = 0; r < sequence.rows; ++r) {
      positions.push_back(sequence.start + r);
      row_sequence.push_back(s);
    }
    row_begin.push_back(static_cast<int32_t>(positions.size()));
    const int32_t end = sequence.start + sequence.rows;
    for (int32_t i = 0; i * c.block_tokens < end; ++i) {
      tables[s * batch.max_blocks + i] = free_blocks.back();
      free_blocks.pop_back();
    }
  }
  const int32_t num_rows = static_cast<int32_t>(positions.size());
  const auto device_positions = Upload(positions);
  const auto device_row_sequence = Upload(row_sequence);
  const auto device_row_begin = Upload(row_begin);
  const auto device_tables = Upload(tables);
  batch.num_rows = num_rows;
  batch.num_sequences = num_sequences;
  batch.positions = device_positions.data();
  batch.row_sequence = device_row_sequence.data();
  batch.row_begin = device_row_begin.data();
  batch.block_tables = device_tables.data();

  // The store, all NaN but for what earlier steps wrote.
  constexpr int32_t kLayers = 2;
  constexpr int32_t kLayer = 1;
  HostStore store;
  store.layout = {nullptr,        c.kv_dtype,     num_blocks, kLayers,
                  c.num_kv_heads, c.block_tokens, c.head_dim};
  store.bytes.resize(store.layout.block_bytes() * num_blocks);
  for (int64_t i = 0; i < store.layout.block_elements() * num_blocks; ++i) {
    store.Set(i, std::nanf(""));
  }
  const auto element = [&](int32_t s, int32_t position, int which,
                           int32_t kv_head, int32_t d) {
    const int32_t block =
        tables[s * batch.max_blocks + position / c.block_tokens];
    return store.layout.TileOffset(block, kLayer, which, kv_head) +
           int64_t{position % c.block_tokens} * c.head_dim + d;
  };
  std::vector<reference::SequenceKv> kv(num_sequences);
  for (int32_t s = 0; s < num_sequences; ++s) {
    kv[s].num_kv_heads = c.num_kv_heads;
    kv[s].head_dim = c.head_dim;
    for (int32_t p = 0; p < c.sequences[s].start; ++p) {
      for (int32_t h = 0; h < c.num_kv_heads; ++h) {
        for (int32_t d = 0; d < c.head_dim; ++d) {
          const float k = Stored(c, Normal());
          const float v = Stored(c, Normal());
          store.Set(element(s, p, 0, h, d), k);
          store.Set(element(s, p, 1, h, d), v);
          kv[s].k.push_back(k);
          kv[s].v.push_back(v);
        }
      }
    }
  }
  auto device_store = Upload(store.bytes);
  KvView view = store.layout;
  view.data = device_store.data();

  // Rotation.
  std::vector<float> frequencies;
  for (int32_t i = 0; i < c.head_dim / 2; ++i) {
    frequencies.push_back(
        static_cast<float>(std::pow(10000.0, -2.0 * i / c.head_dim)));
  }
  const reference::Matrix angles =
      reference::RopeAngles(positions, frequencies);
  const DeviceMatrix cos_sin =
      MakeMatrix(num_rows, c.head_dim,
                 std::vector<float>(angles.data.begin(), angles.data.end()));

  AttentionShape shape;
  shape.num_heads = num_heads;
  shape.num_kv_heads = c.num_kv_heads;
  shape.head_dim = c.head_dim;
  shape.norm_eps = 1e-6f;
  const std::vector<float> q_gain = Normals(c.head_dim);
  const std::vector<float> k_gain = Normals(c.head_dim);
  const auto device_q_gain = Upload(q_gain);
  const auto device_k_gain = Upload(k_gain);
  AttentionWeights weights;
  if (c.qk_norm) {
    weights.q_norm_gain = device_q_gain.data();
    weights.k_norm_gain = device_k_gain.data();
  }
  const int64_t width = int64_t{num_heads + 2 * c.num_kv_heads} * c.head_dim;
  const std::vector<float> qkv = Normals(num_rows * width);
  const DeviceMatrix qkv_matrix = MakeMatrix(num_rows, width, qkv);
  const DeviceMatrix out = MakeMatrix(num_rows, num_heads * c.head_dim);
  {
    StreamScope scope(*stream_);
    ops().QkNormRopeWrite(*stream_, shape, weights, batch, cos_sin.view, view,
                          kLayer, qkv_matrix.view);
    ops().PagedAttention(*stream_, shape, batch, view, kLayer, qkv_matrix.view,
                         out.view);
  }
  const std::vector<float> actual_qkv = qkv_matrix.Read();
  const std::vector<float> actual = out.Read();
  EXPECT_TRUE(qkv_matrix.PaddingIntact());
  EXPECT_TRUE(out.PaddingIntact());
  const std::vector<std::byte> before = store.bytes;
  store.bytes = device_store.Read();

  // What was written: this layer's slots of the batch's rows, and no others.
  const auto gain_of = [&](int32_t head) -> std::vector<double> {
    if (!c.qk_norm) return {};
    const std::vector<float>& gain = head < num_heads ? q_gain : k_gain;
    return {gain.begin(), gain.end()};
  };
  const auto rotated = [&](int32_t row, int32_t head) {
    const auto begin = qkv.begin() + row * width + head * c.head_dim;
    return reference::NormRotateHead(
        std::vector<double>(begin, begin + c.head_dim), gain_of(head),
        shape.norm_eps,
        std::span(angles.data).subspan(row * c.head_dim, c.head_dim));
  };
  std::vector<bool> written(store.layout.block_elements() * num_blocks);
  for (int32_t row = 0; row < num_rows; ++row) {
    const int32_t s = row_sequence[row];
    for (int32_t h = 0; h < c.num_kv_heads; ++h) {
      const std::vector<double> k = rotated(row, num_heads + h);
      for (int32_t d = 0; d < c.head_dim; ++d) {
        const float v = qkv[row * width +
                            (num_heads + c.num_kv_heads + h) * c.head_dim + d];
        const int64_t k_at = element(s, positions[row], 0, h, d);
        const int64_t v_at = element(s, positions[row], 1, h, d);
        written[k_at] = written[v_at] = true;
        ASSERT_EQ(store.Get(v_at), Stored(c, v));
        const double step = c.kv_dtype == DType::kF32 ? 0 : kRoundoffBF16;
        ASSERT_LE(
            std::abs(store.Get(k_at) - k[d]),
            (step + 8 * kRoundoffF32) * std::abs(k[d]) + 32 * kRoundoffF32)
            << "k of row " << row << " head " << h << " dim " << d;
        // From here on the stored value is what counts.
        kv[s].k.push_back(store.Get(k_at));
        kv[s].v.push_back(store.Get(v_at));
      }
    }
  }
  const int64_t element_bytes = DTypeBytes(c.kv_dtype);
  for (size_t i = 0; i < written.size(); ++i) {
    if (written[i]) continue;
    ASSERT_EQ(std::memcmp(&store.bytes[i * element_bytes],
                          &before[i * element_bytes], element_bytes),
              0)
        << "element " << i << " of the store changed";
  }

  // Attention.
  int64_t bad = 0;
  for (int32_t row = 0; row < num_rows && bad < 3; ++row) {
    const int32_t s = row_sequence[row];
    for (int32_t h = 0; h < num_heads && bad < 3; ++h) {
      const std::vector<double> q = rotated(row, h);
      for (int32_t d = 0; d < c.head_dim; ++d) {
        ASSERT_LE(std::abs(actual_qkv[row * width + h * c.head_dim + d] - q[d]),
                  8 * kRoundoffF32 * std::abs(q[d]) + 32 * kRoundoffF32);
      }
      const std::vector<double> expected =
          reference::Attend(q, kv[s], h / c.group, positions[row]);
      // A score's error is a few roundings of |q| |k| / sqrt(D) ~ |q|; it
      // scales a weight, and values are a few units in size.
      double norm = 0;
      for (double value : q) norm += value * value;
      const double tolerance = kRoundoffF32 * 32 * (2 + std::sqrt(norm));
      for (int32_t d = 0; d < c.head_dim; ++d) {
        const float got =
            actual[(int64_t{row} * num_heads + h) * c.head_dim + d];
        if (std::abs(got - expected[d]) <= tolerance) continue;
        ++bad;
        ADD_FAILURE() << "row " << row << " (sequence " << s << ", position "
                      << positions[row] << ") head " << h << " dim " << d
                      << " is " << got << ", want " << expected[d] << " +- "
                      << tolerance;
        break;
      }
    }
  }
}

TEST_P(AttentionTest, HeadDimsAndGroups) {
  for (const int32_t head_dim : {8, 64, 80, 96, 128, 256}) {
    for (int32_t group = 1; group <= 8; ++group) {
      AttentionCase c;
      c.num_kv_heads = 1 + group % 3;
      c.group = group;
      c.head_dim = head_dim;
      c.kv_dtype = group % 2 == 0 ? DType::kF32 : DType::kBF16;
      c.qk_norm = group % 4 == 1;
      c.sequences = {{0, 19}, {33, 1}, {0, 1}, {7, 5}};
      Check(c);
    }
  }
}

TEST_P(AttentionTest, BlockSizes) {
  for (const int32_t block_tokens : {1, 3, 7, 16, 32, 64, 100}) {
    AttentionCase c;
    c.num_kv_heads = 2;
    c.group = 3;
    c.block_tokens = block_tokens;
    c.sequences = {{0, 40}, {64, 1}, {63, 2}, {100, 33}};
    Check(c);
  }
}

TEST_P(AttentionTest, OneLongSequence) {
  for (const int32_t start : {255, 256, 777, 3000}) {
    AttentionCase c;
    c.num_kv_heads = 2;
    c.group = 4;
    c.sequences = {{start, 1}};
    Check(c);
    c.sequences = {{start, 37}};
    Check(c);
  }
}

TEST_P(AttentionTest, ManyDecodeRowsBesideAChunk) {
  AttentionCase c;
  c.num_kv_heads = 2;
  c.group = 2;
  c.head_dim = 64;
  for (int i = 0; i < 30; ++i) {
    c.sequences.push_back({static_cast<int32_t>(Uniform(0, 300)), 1});
  }
  c.sequences.push_back({130, 100});
  std::shuffle(c.sequences.begin(), c.sequences.end(), random_);
  Check(c);
}

TEST_P(AttentionTest, RandomCases) {
  for (int i = 0; i < 30; ++i) {
    AttentionCase c;
    c.num_kv_heads = static_cast<int32_t>(Uniform(1, 4));
    c.group = static_cast<int32_t>(Uniform(1, 8));
    c.head_dim = static_cast<int32_t>(Uniform(1, 20)) * 8;
    c.block_tokens = static_cast<int32_t>(Uniform(1, 40));
    c.kv_dtype = Uniform(0, 1) != 0 ? DType::kF32 : DType::kBF16;
    c.qk_norm = Uniform(0, 1) != 0;
    const int64_t num_sequences = Uniform(1, 6);
    for (int64_t s = 0; s < num_sequences; ++s) {
      c.sequences.push_back(
          {static_cast<int32_t>(Uniform(0, 200)),
           static_cast<int32_t>(Uniform(0, 2) != 0 ? 1 : Uniform(1, 90))});
    }
    Check(c);
  }
}

OVERFILL_INSTANTIATE_BACKENDS(AttentionTest);

}  // namespace
}  // namespace overfill
