// Attention of one row's few queries: a decode step's. The head's elements lie
// across the lanes of a vector, so that a KV head with few queries wastes none;
// L scores, of kQueries queries and of L / kQueries tokens, are summed across
// the lanes at once, for L lanes.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "kernels/cpu/attention.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_row.cc"
#include "hwy/foreach_target.h"  // must come first
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace overfill {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using VF = hn::Vec<F32>;

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128

// The fallbacks that no device runs.
void AttendRowImpl(const AttentionTile&) { std::abort(); }

#else

#if HWY_TARGET == HWY_AVX3
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
static_assert(kMaxRowQueries <= kLanes && kLanes == HWY_LANES(float));
// Vectors of a value's elements that have sums in registers at once.
template <int kQueries>
constexpr int ValueVectors() {
  return std::clamp(kLanes / kQueries, 1, 4);
}
HWY_INLINE VF LoadElements(const float* at) { return hn::LoadU(F32(), at); }
HWY_INLINE VF LoadElements(const uint16_t* at) {
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  const hn::Rebind<uint16_t, F32> d16;
  return hn::BitCast(d,
                     hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, at))));
}

// sums[0] = the sum of each of the kCount vectors' lanes, in order; kCount is
// kLanes at first.
template <int kCount>
HWY_INLINE void SumLanes(VF (&sums)[kLanes]) {
  const F32 d;
#pragma GCC unroll 16
  for (int i = 0; i < kCount / 2; ++i) {
    const VF a = sums[2 * i], b = sums[2 * i + 1];
    sums[i] = hn::Add(hn::ConcatEven(d, b, a), hn::ConcatOdd(d, b, a));
  }
  if constexpr (kCount > 2) SumLanes<kCount / 2>(sums);
}

// The work space of one row. Queries are padded to kQueries with zeros.
struct RowWork {
  RowWork(float* memory, int32_t head_dim, int num_queries)
      : q(memory),
        value(q + int64_t{num_queries} * head_dim),
        scores(value + int64_t{num_queries} * head_dim) {}
  float* q;       // [queries][D], scaled
  float* value;   // [queries][D] sum of exp(score - largest) v
  float* scores;  // [tokens of a piece][queries]
  float largest[kMaxRowQueries];
  float weight[kMaxRowQueries];  // sum of exp(score - largest)
  float decay[kMaxRowQueries];   // of what was summed before this piece
};

// Where a piece's tokens are.
template <typename T>
struct Piece {
  int32_t count = 0;
  const T* k[kTileTokens];
  const T* v[kTileTokens];

  // Of the tile's positions from `begin`; none beyond its end.
  void Find(const AttentionTile& t, int32_t begin) {
    count = std::max(0, std::min(kTileTokens, t.kv_end - begin));
    int32_t slot = begin % t.block_tokens;
    const int32_t* block = t.block_table + begin / t.block_tokens;
    for (int32_t i = 0; i < count; ++i) {
      const int64_t at = *block * t.block_stride + int64_t{slot} * t.head_dim;
      k[i] = static_cast<const T*>(t.k) + at;
      v[i] = static_cast<const T*>(t.v) + at;
      if (++slot < t.block_tokens) continue;
      slot = 0;
      ++block;
    }
  }
};

template <typename T>
HWY_INLINE void PrefetchToken(const T* at, int32_t head_dim) {
  constexpr int32_t kLine = 64 / sizeof(T);
  for (int32_t i = 0; i < head_dim; i += kLine) __builtin_prefetch(at + i);
}

// scores[token][query]; asks for the tokens' values.
template <typename T, int kQueries>
void ScoreRow(const AttentionTile& t, const Piece<T>& piece,
              const RowWork& work) {
  constexpr int kTokens = kLanes / kQueries;
  const F32 d;
  for (int32_t first = 0; first < piece.count; first += kTokens) {
    const T* k[kTokens];
    for (int i = 0; i < kTokens; ++i) {
      // Behind the end the last one again, which nobody reads.
      const int32_t token = std::min(first + i, piece.count - 1);
      k[i] = piece.k[token];
      PrefetchToken(piece.v[token], t.head_dim);
    }
    VF sums[kLanes];
#pragma GCC unroll 16
    for (VF& sum : sums) sum = hn::Zero(d);
    for (int32_t at = 0; at < t.head_dim; at += kLanes) {
      VF q[kQueries];
#pragma GCC unroll 16
      for (int j = 0; j < kQueries; ++j) {
        q[j] = hn::LoadU(d, work.q + j * t.head_dim + at);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kTokens; ++i) {
        const VF key = LoadElements(k[i] + at);
#pragma GCC unroll 16
        for (int j = 0; j < kQueries; ++j) {
          sums[i * kQueries + j] =
              hn::MulAdd(key, q[j], sums[i * kQueries + j]);
        }
      }
    }
    SumLanes<kLanes>(sums);
    hn::StoreU(sums[0], d, work.scores + first * kQueries);
  }
}

// Turns `count` tokens' scores into weights; brings largest, weight and decay
// up to date.
template <int kQueries>
void UpdateRowSoftmax(int32_t count, RowWork& work) {
  const F32 d;
  // Queries repeat in the lanes, and lie alike in each vector.
  const int64_t end = int64_t{count} * kQueries;
  HWY_ALIGN float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = work.largest[i % kQueries];
  VF largest = hn::Load(d, lanes);
  // Behind the end of the scores nothing counts.
  for (int64_t i = end; i % kLanes != 0; ++i) {
    work.scores[i] = -std::numeric_limits<float>::infinity();
  }
  for (int64_t i = 0; i < end; i += kLanes) {
    largest = hn::Max(largest, hn::LoadU(d, work.scores + i));
  }
  hn::Store(largest, d, lanes);
  for (int j = 0; j < kQueries; ++j) {
    float most = lanes[j];
    for (int i = j; i < kLanes; i += kQueries) most = std::max(most, lanes[i]);
    work.decay[j] = std::exp(work.largest[j] - most);
    work.largest[j] = most;
  }
  for (int i = 0; i < kLanes; ++i) lanes[i] = work.largest[i % kQueries];
  largest = hn::Load(d, lanes);
  VF weight = hn::Zero(d);
  for (int64_t i = 0; i < end; i += kLanes) {
    const VF shifted = hn::Sub(hn::LoadU(d, work.scores + i), largest);
    // Exp makes 0 of a NaN; what is not a number must stay visible.
    const VF p =
        hn::IfThenElse(hn::IsNaN(shifted), shifted, hn::Exp(d, shifted));
    weight = hn::Add(weight, p);
    hn::StoreU(p, d, work.scores + i);
  }
  hn::Store(weight, d, lanes);
  for (int j = 0; j < kQueries; ++j) {
    work.weight[j] *= work.decay[j];
    for (int i = j; i < kLanes; i += kQueries) work.weight[j] += lanes[i];
  }
}

// value = value * decay + sum of the tokens' weights times V, for kVectors
// vectors of elements from `at`; asks for the next piece's keys.
template <typename T, int kQueries, int kVectors>
void AddRowValues(const AttentionTile& t, const Piece<T>& piece,
                  const Piece<T>& next, int32_t at, const RowWork& work) {
  const F32 d;
  VF sums[kQueries][kVectors];
#pragma GCC unroll 16
  for (int j = 0; j < kQueries; ++j) {
    const VF decay = hn::Set(d, work.decay[j]);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const float* old = work.value + j * t.head_dim + at + v * kLanes;
      sums[j][v] = hn::Mul(hn::LoadU(d, old), decay);
    }
  }
  for (int32_t i = 0; i < piece.count; ++i) {
    const T* value = piece.v[i] + at;
    if (at == 0 && i < next.count) PrefetchToken(next.k[i], t.head_dim);
    VF elements[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      elements[v] = LoadElements(value + v * kLanes);
    }
#pragma GCC unroll 16
    for (int j = 0; j < kQueries; ++j) {
      const VF p = hn::Set(d, work.scores[i * kQueries + j]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        sums[j][v] = hn::MulAdd(p, elements[v], sums[j][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kQueries; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sums[j][v], d, work.value + j * t.head_dim + at + v * kLanes);
    }
  }
}

template <int kQueries>
void StoreRowResult(const AttentionTile& t, const RowWork& work) {
  for (int32_t j = 0; j < t.group; ++j) {
    const float* value = work.value + j * t.head_dim;
    if (t.partials != nullptr) {
      float* partial = t.partials + j * (kPartialHeader + t.head_dim);
      partial[0] = work.largest[j];
      partial[1] = work.weight[j];
      std::copy_n(value, t.head_dim, partial + kPartialHeader);
      continue;
    }
    const float scale = 1.0f / work.weight[j];
    for (int32_t i = 0; i < t.head_dim; ++i) {
      t.out[j * t.head_dim + i] = value[i] * scale;
    }
  }
}

template <typename T, int kQueries>
void AttendRowOf(const AttentionTile& t) {
  RowWork work(t.work, t.head_dim, kQueries);
  std::fill_n(work.q, kQueries * t.head_dim, 0.0f);
  for (int32_t i = 0; i < t.group * t.head_dim; ++i) {
    work.q[i] = t.q[i] * t.scale;
  }
  std::fill_n(work.value, kQueries * t.head_dim, 0.0f);
  std::fill_n(work.largest, kQueries, kNoScore);
  std::fill_n(work.weight, kQueries, 0.0f);
  Piece<T> pieces[2];
  pieces[0].Find(t, t.kv_begin);
  int now = 0;
  for (int32_t begin = t.kv_begin; begin < t.kv_end; begin += kTileTokens) {
    const Piece<T>& piece = pieces[now];
    now = 1 - now;
    pieces[now].Find(t, begin + kTileTokens);
    ScoreRow<T, kQueries>(t, piece, work);
    UpdateRowSoftmax<kQueries>(piece.count, work);
    int32_t at = 0;
    constexpr int kVectors = ValueVectors<kQueries>();
    for (; at + kVectors * kLanes <= t.head_dim; at += kVectors * kLanes) {
      AddRowValues<T, kQueries, kVectors>(t, piece, pieces[now], at, work);
    }
    for (; at < t.head_dim; at += kLanes) {
      AddRowValues<T, kQueries, 1>(t, piece, pieces[now], at, work);
    }
  }
  StoreRowResult<kQueries>(t, work);
}

template <typename T>
void AttendRowOfType(const AttentionTile& t) {
  if (t.group == 1) return AttendRowOf<T, 1>(t);
  if (t.group == 2) return AttendRowOf<T, 2>(t);
  if (t.group <= 4) return AttendRowOf<T, 4>(t);
  AttendRowOf<T, kMaxRowQueries>(t);
}

void AttendRowImpl(const AttentionTile& t) {
  if (t.kv_dtype == DType::kF32) {
    AttendRowOfType<float>(t);
  } else {
    AttendRowOfType<uint16_t>(t);
  }
}

#endif  // a fallback

}  // namespace HWY_NAMESPACE
}  // namespace overfill
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace overfill {

HWY_EXPORT(AttendRowImpl);

void AttendRow(const AttentionTile& tile) {
  HWY_DYNAMIC_DISPATCH(AttendRowImpl)(tile);
}

}  // namespace overfill
#endif  // HWY_ONCE
