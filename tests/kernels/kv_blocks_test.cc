// CopyBlocks and ProjectBlocks: every cell of a store is a known function of
// its coordinates, so that a cell out of place is seen as such.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/kernels/backend_test.h"

namespace overfill {
namespace {

struct StoreShape {
  int32_t num_blocks, num_layers, num_kv_heads, block_tokens, head_dim;
  DType dtype;
};

class KvBlocksTest : public BackendTest {
 protected:
  // Element values by their coordinates: all distinct as bits.
  std::vector<std::byte> Cells(const StoreShape& s, uint32_t salt) {
    const KvView view = View(s, nullptr);
    std::vector<std::byte> bytes(view.block_bytes() * s.num_blocks);
    for (int64_t i = 0; i < view.block_elements() * s.num_blocks; ++i) {
      // Any bits may be copied, those of a NaN too.
      const uint32_t bits =
          static_cast<uint32_t>(i) * 2654435761u + salt * 40503u;
      std::memcpy(&bytes[i * DTypeBytes(s.dtype)], &bits, DTypeBytes(s.dtype));
    }
    return bytes;
  }

  static KvView View(const StoreShape& s, void* data) {
    return {data,           s.dtype,        s.num_blocks, s.num_layers,
            s.num_kv_heads, s.block_tokens, s.head_dim};
  }

  // `count` blocks of `num_blocks`, each once.
  std::vector<int32_t> Choose(int32_t num_blocks, int32_t count) {
    std::vector<int32_t> all(num_blocks);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random_);
    all.resize(count);
    return all;
  }

  std::vector<BlockCopy> RandomCopies(int32_t source_blocks,
                                      int32_t destination_blocks,
                                      int32_t block_tokens, int32_t count) {
    const auto from = Choose(source_blocks, count);
    const auto to = Choose(destination_blocks, count);
    std::vector<BlockCopy> copies;
    for (int32_t i = 0; i < count; ++i) {
      copies.push_back({from[i], to[i], block_tokens});
    }
    copies.back().num_tokens = static_cast<int32_t>(Uniform(1, block_tokens));
    return copies;
  }
};

TEST_P(KvBlocksTest, CopiedBytesAreEqual) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (int round = 0; round < 20; ++round) {
      StoreShape from = {static_cast<int32_t>(Uniform(5, 20)),
                         static_cast<int32_t>(Uniform(1, 6)),
                         static_cast<int32_t>(Uniform(1, 4)),
                         static_cast<int32_t>(Uniform(1, 33)),
                         static_cast<int32_t>(Uniform(1, 16)) * 8,
                         dtype};
      StoreShape to = from;
      to.num_blocks = static_cast<int32_t>(Uniform(5, 20));
      to.num_layers = static_cast<int32_t>(Uniform(1, from.num_layers));
      // Kept layers may skip and, in a test, repeat.
      std::vector<int32_t> layers(to.num_layers);
      for (int32_t& layer : layers) {
        layer = static_cast<int32_t>(Uniform(0, from.num_layers - 1));
      }
      const std::vector<BlockCopy> copies =
          RandomCopies(from.num_blocks, to.num_blocks, from.block_tokens,
                       static_cast<int32_t>(Uniform(1, 5)));
      const std::vector<std::byte> source = Cells(from, 1);
      const std::vector<std::byte> before = Cells(to, 2);
      const auto device_source = Upload(source);
      const auto device_destination = Upload(before);
      {
        StreamScope scope(*stream_);
        ops().CopyBlocks(*stream_, View(from, device_source.data()),
                         View(to, device_destination.data()), layers, copies);
      }
      const std::vector<std::byte> actual = device_destination.Read();
      EXPECT_EQ(device_source.Read(), source);

      // What a cell must hold: its source's bytes, or for a block that no
      // copy names, what it held. Slots past num_tokens are free.
      const KvView source_view = View(from, nullptr);
      const KvView view = View(to, nullptr);
      const int64_t element_bytes = DTypeBytes(dtype);
      for (int32_t block = 0; block < to.num_blocks; ++block) {
        const auto copy =
            std::find_if(copies.begin(), copies.end(),
                         [&](const auto& c) { return c.destination == block; });
        for (int32_t layer = 0; layer < to.num_layers; ++layer) {
          for (int which = 0; which < 2; ++which) {
            for (int32_t head = 0; head < to.num_kv_heads; ++head) {
              const int64_t at = view.TileOffset(block, layer, which, head);
              const std::byte* want = &before[at * element_bytes];
              int64_t count = view.head_elements();
              if (copy != copies.end()) {
                want = &source[source_view.TileOffset(
                                   copy->source, layers[layer], which, head) *
                               element_bytes];
                count = int64_t{copy->num_tokens} * to.head_dim;
              }
              ASSERT_EQ(std::memcmp(&actual[at * element_bytes], want,
                                    count * element_bytes),
                        0)
                  << "block " << block << " layer " << layer << " "
                  << (which == 0 ? "k" : "v") << " head " << head;
            }
          }
        }
      }
    }
  }
}

TEST_P(KvBlocksTest, ProjectsEachToken) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (int round = 0; round < 8; ++round) {
      const StoreShape from = {static_cast<int32_t>(Uniform(24, 40)),
                               static_cast<int32_t>(Uniform(1, 4)),
                               static_cast<int32_t>(Uniform(1, 3)),
                               static_cast<int32_t>(Uniform(1, 20)),
                               static_cast<int32_t>(Uniform(1, 6)) * 8,
                               dtype};
      StoreShape to = from;
      to.num_layers = static_cast<int32_t>(Uniform(1, from.num_layers));
      to.num_kv_heads = static_cast<int32_t>(Uniform(1, 3));
      to.head_dim = static_cast<int32_t>(Uniform(1, 6)) * 8;
      const int64_t in = int64_t{from.num_kv_heads} * from.head_dim;
      const int64_t out = int64_t{to.num_kv_heads} * to.head_dim;
      std::vector<int32_t> layers(to.num_layers);
      for (int32_t& layer : layers) {
        layer = static_cast<int32_t>(Uniform(0, from.num_layers - 1));
      }
      // maps[which][layer]
      std::vector<std::unique_ptr<LinearWeight>> owners;
      std::vector<const LinearWeight*> maps[2];
      std::vector<reference::Matrix> map_values[2];
      for (int which = 0; which < 2; ++which) {
        for (int32_t layer = 0; layer < to.num_layers; ++layer) {
          const OwnedTensor tensor({out, in}, DType::kF32, Normals(out * in));
          const std::vector<HostTensor> weights = {tensor.view};
          auto map = ops().MakeLinear(weights, {}, DType::kF32);
          ASSERT_TRUE(map.ok());
          owners.push_back(*std::move(map));
          maps[which].push_back(owners.back().get());
          reference::Matrix values(out, in);
          values.data = tensor.values;
          map_values[which].push_back(values);
        }
      }
      const KvView source_view = View(from, nullptr);
      std::vector<float> cells =
          Normals(source_view.block_elements() * from.num_blocks, true);
      std::vector<std::byte> source(cells.size() * DTypeBytes(dtype));
      for (size_t i = 0; i < cells.size(); ++i) {
        const uint16_t half = BFloat16FromFloat(cells[i]);
        if (dtype == DType::kF32) {
          std::memcpy(&source[i * 4], &cells[i], 4);
        } else {
          std::memcpy(&source[i * 2], &half, 2);
        }
      }
      const std::vector<std::byte> before = Cells(to, 3);
      const auto device_source = Upload(source);
      const auto device_destination = Upload(before);
      const std::vector<BlockCopy> copies =
          RandomCopies(from.num_blocks, to.num_blocks, from.block_tokens,
                       static_cast<int32_t>(Uniform(1, 24)));
      {
        StreamScope scope(*stream_);
        ops().ProjectBlocks(*stream_, View(from, device_source.data()),
                            View(to, device_destination.data()), layers,
                            maps[0], maps[1], copies);
      }
      const std::vector<std::byte> actual = device_destination.Read();
      const KvView view = View(to, nullptr);
      std::vector<bool> free(view.block_elements() * to.num_blocks);
      for (const BlockCopy& copy : copies) {
        const int64_t at = copy.destination * view.block_elements();
        std::fill_n(free.begin() + at, view.block_elements(), true);
        for (int32_t layer = 0; layer < to.num_layers; ++layer) {
          for (int which = 0; which < 2; ++which) {
            reference::Matrix x(copy.num_tokens, in);
            for (int32_t t = 0; t < copy.num_tokens; ++t) {
              for (int64_t i = 0; i < in; ++i) {
                x.at(t, i) =
                    cells[source_view.TileOffset(
                              copy.source, layers[layer], which,
                              static_cast<int32_t>(i / from.head_dim)) +
                          t * from.head_dim + i % from.head_dim];
              }
            }
            const reference::Matrix y =
                reference::Linear(x, map_values[which][layer], {});
            for (int32_t t = 0; t < copy.num_tokens; ++t) {
              for (int64_t o = 0; o < out; ++o) {
                const int64_t element =
                    view.TileOffset(copy.destination, layer, which,
                                    static_cast<int32_t>(o / to.head_dim)) +
                    t * to.head_dim + o % to.head_dim;
                float got;
                if (dtype == DType::kF32) {
                  std::memcpy(&got, &actual[element * 4], 4);
                } else {
                  uint16_t half;
                  std::memcpy(&half, &actual[element * 2], 2);
                  got = FloatFromBFloat16(half);
                }
                const double want = y.at(t, o);
                const double rounding =
                    dtype == DType::kF32 ? 0 : kRoundoffBF16;
                ASSERT_NEAR(got, want,
                            rounding * std::abs(want) +
                                16 * kRoundoffF32 * static_cast<double>(in));
              }
            }
          }
        }
      }
      // Other blocks keep their bytes.
      const int64_t element_bytes = DTypeBytes(dtype);
      for (size_t i = 0; i < free.size(); ++i) {
        if (free[i]) continue;
        ASSERT_EQ(std::memcmp(&actual[i * element_bytes],
                              &before[i * element_bytes], element_bytes),
                  0);
      }
    }
  }
}

OVERFILL_INSTANTIATE_BACKENDS(KvBlocksTest);

}  // namespace
}  // namespace overfill
