#include "tests/scheduler/transfer_stores.h"

#include <optional>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/mutex.h"
#include "engine/kv_mover.h"
#include "engine/kv_store.h"
#include "kernels/device.h"
#include "scheduler/transfer_rules.h"
#include "tests/scheduler/fake_model.h"

namespace overfill {
namespace {

class FakeStores : public Stores {
 public:
  KvMover* mover() override { return &mover_; }
  FaultHooks Hooks() override {
    return {.flip =
                [this](int32_t store, int32_t block, int32_t num_tokens,
                       uint64_t random) {
                  OVERFILL_CHECK_EQ(store, kDecodeStore);
                  destination_.At(block,
                                  static_cast<int32_t>(random % num_tokens)) ^=
                      uint64_t{1} << (random >> 32) % 64;
                },
            .received_digest =
                [this](const KvTransfer& transfer) {
                  return mover_.DestinationDigest(*PlanCopies(transfer),
                                                  transfer.coverage.begin);
                }};
  }
  void Fill(int32_t block, uint64_t content) override {
    for (int32_t slot = 0; slot < kJobBlockTokens; ++slot) {
      source_.At(block, slot) = content * kJobBlockTokens + slot;
    }
  }
  bool Holds(int32_t block, int32_t num_tokens, uint64_t content) override {
    for (int32_t slot = 0; slot < num_tokens; ++slot) {
      if (destination_.At(block, slot) != content * kJobBlockTokens + slot) {
        return false;
      }
    }
    return true;
  }

 private:
  FakeStore source_{kNumJobBlocks, kJobBlockTokens};
  FakeStore destination_{kNumJobBlocks, kJobBlockTokens};
  FakeMover mover_{&source_, &destination_};
};

class DeviceStores : public Stores {
 public:
  DeviceStores() {
    device_ = *MakeDevice("cpu", {.num_threads = 1});
    const KvLayout layout = {DType::kBF16, 2, 2, kJobBlockTokens, 16};
    const int64_t bytes = kNumJobBlocks * *KvBlockBytes(layout);
    source_ = *KvStore::Create(*device_, layout, bytes);
    destination_ = *KvStore::Create(*device_, layout, bytes);
    mover_ = *BlockMover::Create(*device_, *source_, *destination_,
                                 {.source_layers = {0, 1}});
  }
  KvMover* mover() override { return mover_.get(); }
  FaultHooks Hooks() override {
    return {.flip =
                [this](int32_t store, int32_t block, int32_t num_tokens,
                       uint64_t random) {
                  FlipBit(destination_->view(), block, num_tokens, random);
                },
            .received_digest =
                [this](const KvTransfer& transfer) -> std::optional<uint64_t> {
              return *mover_->DestinationDigest(*PlanCopies(transfer),
                                                transfer.coverage.begin);
            }};
  }
  void Fill(int32_t block, uint64_t content) override {
    ForEach(source_->view(), block, kJobBlockTokens,
            [&](uint16_t& element, uint64_t i) {
              element = static_cast<uint16_t>(content * 31 + i);
            });
  }
  bool Holds(int32_t block, int32_t num_tokens, uint64_t content) override {
    bool is_right = true;
    ForEach(destination_->view(), block, num_tokens,
            [&](uint16_t& element, uint64_t i) {
              is_right = is_right &&
                         element == static_cast<uint16_t>(content * 31 + i);
            });
    return is_right;
  }

 private:
  // `i` numbers the element within its block.
  template <typename Fn>
  static void ForEach(const KvView& kv, int32_t block, int32_t num_tokens,
                      const Fn& fn) {
    const int64_t begin = kv.TileOffset(block, 0, 0, 0);
    for (int32_t layer = 0; layer < kv.num_layers; ++layer) {
      for (int half = 0; half < 2; ++half) {
        for (int32_t head = 0; head < kv.num_kv_heads; ++head) {
          const int64_t tile = kv.TileOffset(block, layer, half, head);
          for (int64_t i = 0; i < int64_t{num_tokens} * kv.head_dim; ++i) {
            fn(static_cast<uint16_t*>(kv.data)[tile + i],
               static_cast<uint64_t>(tile - begin + i));
          }
        }
      }
    }
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<KvStore> source_;
  std::unique_ptr<KvStore> destination_;
  std::unique_ptr<BlockMover> mover_;
};

class LockedStores : public Stores, private KvMover {
 public:
  explicit LockedStores(Stores* stores)
      : stores_(stores), hooks_(stores->Hooks()) {}

  KvMover* mover() override { return this; }
  FaultHooks Hooks() override {
    return {.flip =
                [this](int32_t store, int32_t block, int32_t num_tokens,
                       uint64_t random) {
                  MutexLock lock(&mu_);
                  hooks_.flip(store, block, num_tokens, random);
                },
            .received_digest =
                [this](const KvTransfer& transfer) {
                  MutexLock lock(&mu_);
                  return hooks_.received_digest(transfer);
                }};
  }
  void Fill(int32_t block, uint64_t content) override {
    MutexLock lock(&mu_);
    stores_->Fill(block, content);
  }
  bool Holds(int32_t block, int32_t num_tokens, uint64_t content) override {
    MutexLock lock(&mu_);
    return stores_->Holds(block, num_tokens, content);
  }

 private:
  absl::StatusOr<KvMoveResult> Move(std::span<const BlockCopy> blocks,
                                    int32_t first_position) override {
    MutexLock lock(&mu_);
    return stores_->mover()->Move(blocks, first_position);
  }

  Stores* const stores_;
  const FaultHooks hooks_;
  Mutex mu_;
};

}  // namespace

std::unique_ptr<Stores> MakeFakeStores() {
  return std::make_unique<FakeStores>();
}

std::unique_ptr<Stores> MakeDeviceStores() {
  return std::make_unique<DeviceStores>();
}

std::unique_ptr<Stores> MakeLockedStores(Stores* inner) {
  return std::make_unique<LockedStores>(inner);
}

}  // namespace overfill
