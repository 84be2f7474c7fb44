// Queries lie across the lanes of a vector: scores and sums of all queries
// advance together, K and V elements are broadcast, and no reduction across
// lanes is needed. The softmax is the online one, in f32.
#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/checked_math.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"  // must come first
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
#include "kernels/cpu/vector_convert-inl.h"
// clang-format on

#ifndef OVERFILL_KERNELS_CPU_ATTENTION_SHARED_
#define OVERFILL_KERNELS_CPU_ATTENTION_SHARED_
namespace overfill {

// The work space of one tile. Queries are padded to whole vectors: column
// `queries` of what is [.][queries] is the stride.
struct AttentionWork {
  explicit AttentionWork(float* memory, int32_t head_dim) {
    const int64_t d = head_dim;
    q = memory;
    scores = q + d * kTileQueries;
    decay = scores + kTileTokens * kTileQueries;
    k = decay + kTileQueries;
    v = k + kTileTokens * d;
    float* next = v + kTileTokens * d;
    for (Sums* sums : {&part, &total}) {
      sums->value = next;
      sums->largest = sums->value + d * kTileQueries;
      sums->weight = sums->largest + kTileQueries;
      next = sums->weight + kTileQueries;
    }
  }
  static int64_t Floats(int64_t head_dim) {
    return (3 * head_dim + kTileTokens + 5) * kTileQueries +
           2 * kTileTokens * head_dim;
  }

  struct Sums {
    float* value;    // [D][queries] sum of exp(score - largest) v
    float* largest;  // [queries]
    float* weight;   // [queries] sum of exp(score - largest)
  };
  float* q;       // [D][queries], scaled
  float* scores;  // [kTileTokens][queries]
  float* decay;   // [queries] of what was summed before this piece
  float* k;       // [kTileTokens][D]
  float* v;       // [kTileTokens][D]
  Sums part;      // of this part's pieces so far
  Sums total;     // of the parts before this one
};

// A zero's sign may depend on tokens that the row does not see.
inline float UnsignedZero(float value) { return value == 0 ? 0.0f : value; }

}  // namespace overfill
#endif

HWY_BEFORE_NAMESPACE();
namespace overfill {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using VF = hn::Vec<F32>;

// Loops over a tile are unrolled by request: else -O2 keeps the tile in memory
// instead of registers, at half the speed.

// Vectors of queries that are in registers at once.
#if HWY_TARGET == HWY_AVX3
constexpr int kMaxVectors = 4;
#else
constexpr int kMaxVectors = 2;
#endif
constexpr int kTokensPerStep = 4;
constexpr int kDimsPerStep = 4;

// [rows][group][D] to [D][queries], scaled.
void LoadQueries(const AttentionTile& t, int64_t queries, float* q) {
  const int64_t num_queries = int64_t{t.num_rows} * t.group;
  if (num_queries < queries) std::fill(q, q + t.head_dim * queries, 0.0f);
  for (int64_t i = 0; i < num_queries; ++i) {
    const float* in = t.q + i / t.group * t.q_stride + i % t.group * t.head_dim;
    for (int64_t d = 0; d < t.head_dim; ++d)
      q[d * queries + i] = in[d] * t.scale;
  }
}

// Gathers tokens [begin, end) of the paged K or V as [token][D] f32.
void LoadTokens(const AttentionTile& t, const void* base, int32_t begin,
                int32_t end, float* out) {
  for (int32_t token = begin; token < end;) {
    const int32_t slot = token % t.block_tokens;
    const int32_t count = std::min(t.block_tokens - slot, end - token);
    const int64_t offset =
        t.block_table[token / t.block_tokens] * t.block_stride +
        int64_t{slot} * t.head_dim;
    const int64_t elements = int64_t{count} * t.head_dim;
    if (t.kv_dtype == DType::kF32) {
      std::memcpy(out, static_cast<const float*>(base) + offset,
                  elements * sizeof(float));
    } else {
      VectorWidenBF16(static_cast<const uint16_t*>(base) + offset, elements,
                      out);
    }
    out += elements;
    token += count;
  }
}

// scores[token][query] = k[token] . q[query] for kTokens tokens.
template <int kTokens, int kVectors>
void ScoreTokens(const float* HWY_RESTRICT q, int64_t queries,
                 const float* HWY_RESTRICT k, int64_t head_dim,
                 float* HWY_RESTRICT scores) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  VF acc[kTokens][kVectors];
#pragma GCC unroll 16
  for (auto& token : acc) {
#pragma GCC unroll 16
    for (VF& a : token) a = hn::Zero(d);
  }
  for (int64_t i = 0; i < head_dim; ++i) {
    VF qv[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      qv[v] = hn::Load(d, q + i * queries + v * lanes);
    }
#pragma GCC unroll 16
    for (int token = 0; token < kTokens; ++token) {
      const VF broadcast = hn::Set(d, k[token * head_dim + i]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        acc[token][v] = hn::MulAdd(broadcast, qv[v], acc[token][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int token = 0; token < kTokens; ++token) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      hn::Store(acc[token][v], d, scores + token * queries + v * lanes);
    }
  }
}

// sum[dim][query] = sum * decay[query] + sum_t scores[t][query] v[t][dim] for
// kDimsPerStep dims.
template <int kVectors>
void AddValues(const float* HWY_RESTRICT scores, int64_t queries,
               const float* HWY_RESTRICT values, int64_t head_dim,
               int32_t num_tokens, const float* HWY_RESTRICT decay,
               float* HWY_RESTRICT sum) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  VF acc[kDimsPerStep][kVectors];
#pragma GCC unroll 16
  for (int dim = 0; dim < kDimsPerStep; ++dim) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      acc[dim][v] = hn::Mul(hn::Load(d, sum + dim * queries + v * lanes),
                            hn::Load(d, decay + v * lanes));
    }
  }
  for (int32_t t = 0; t < num_tokens; ++t) {
    VF p[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      p[v] = hn::Load(d, scores + t * queries + v * lanes);
    }
#pragma GCC unroll 16
    for (int dim = 0; dim < kDimsPerStep; ++dim) {
      const VF broadcast = hn::Set(d, values[t * head_dim + dim]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        acc[dim][v] = hn::MulAdd(broadcast, p[v], acc[dim][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int dim = 0; dim < kDimsPerStep; ++dim) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      hn::Store(acc[dim][v], d, sum + dim * queries + v * lanes);
    }
  }
}

// Calls fn(integral constant kVectors, first query) over all queries.
template <typename Fn>
HWY_INLINE void ForQueryVectors(int64_t queries, const Fn& fn) {
  const int64_t lanes = hn::Lanes(F32());
  int64_t query = 0;
  for (; query + kMaxVectors * lanes <= queries; query += kMaxVectors * lanes) {
    fn(std::integral_constant<int, kMaxVectors>(), query);
  }
  for (; query < queries; query += lanes) {
    fn(std::integral_constant<int, 1>(), query);
  }
}

// Turns the scores of tokens [begin, begin + num_tokens) into weights, and
// brings largest, weight and decay up to date.
void UpdateSoftmax(const AttentionTile& t, int64_t queries, int32_t begin,
                   int32_t num_tokens, const AttentionWork& work) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  const bool masked = begin + num_tokens - 1 > t.first_position;
  const VF minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int64_t query = 0; query < queries; query += lanes) {
    float* scores = work.scores + query;
    VF largest = hn::Load(d, work.part.largest + query);
    if (masked) {
      // Row numbers of the lanes; padding lanes pass for the last row.
      HWY_ALIGN float visible[HWY_MAX_BYTES / sizeof(float)];
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t row =
            std::min<int64_t>((query + lane) / t.group, t.num_rows - 1);
        visible[lane] = static_cast<float>(t.first_position + row - begin);
      }
      const VF last = hn::Load(d, visible);
      for (int32_t i = 0; i < num_tokens; ++i) {
        float* at = scores + i * queries;
        const auto see = hn::Ge(last, hn::Set(d, static_cast<float>(i)));
        hn::Store(hn::IfThenElse(see, hn::Load(d, at), minus_infinity), d, at);
      }
    }
    for (int32_t i = 0; i < num_tokens; ++i) {
      largest = hn::Max(largest, hn::Load(d, scores + i * queries));
    }
    const VF old_largest = hn::Load(d, work.part.largest + query);
    const VF decay = hn::Exp(d, hn::Sub(old_largest, largest));
    VF weight = hn::Mul(hn::Load(d, work.part.weight + query), decay);
    for (int32_t i = 0; i < num_tokens; ++i) {
      const VF shifted = hn::Sub(hn::Load(d, scores + i * queries), largest);
      // Exp makes 0 of a NaN; what is not a number must stay visible.
      const VF p =
          hn::IfThenElse(hn::IsNaN(shifted), shifted, hn::Exp(d, shifted));
      weight = hn::Add(weight, p);
      hn::Store(p, d, scores + i * queries);
    }
    hn::Store(largest, d, work.part.largest + query);
    hn::Store(weight, d, work.part.weight + query);
    hn::Store(decay, d, work.decay + query);
  }
}

void AttendPiece(const AttentionTile& t, int64_t queries, int32_t begin,
                 int32_t num_tokens, const AttentionWork& work) {
  const int64_t head_dim = t.head_dim;
  LoadTokens(t, t.k, begin, begin + num_tokens, work.k);
  ForQueryVectors(queries, [&](auto vectors, int64_t query) HWY_ATTR {
    constexpr int kVectors = decltype(vectors)::value;
    int32_t i = 0;
    for (; i + kTokensPerStep <= num_tokens; i += kTokensPerStep) {
      ScoreTokens<kTokensPerStep, kVectors>(work.q + query, queries,
                                            work.k + i * head_dim, head_dim,
                                            work.scores + i * queries + query);
    }
    for (; i < num_tokens; ++i) {
      ScoreTokens<1, kVectors>(work.q + query, queries, work.k + i * head_dim,
                               head_dim, work.scores + i * queries + query);
    }
  });
  UpdateSoftmax(t, queries, begin, num_tokens, work);
  LoadTokens(t, t.v, begin, begin + num_tokens, work.v);
  ForQueryVectors(queries, [&](auto vectors, int64_t query) HWY_ATTR {
    constexpr int kVectors = decltype(vectors)::value;
    for (int64_t dim = 0; dim < head_dim; dim += kDimsPerStep) {
      AddValues<kVectors>(work.scores + query, queries, work.v + dim, head_dim,
                          num_tokens, work.decay + query,
                          work.part.value + dim * queries + query);
    }
  });
}

// Sums of the pieces in [begin, end) alone.
void AttendPart(const AttentionTile& t, int64_t queries, int32_t begin,
                int32_t end, const AttentionWork& work) {
  std::fill_n(work.part.value, t.head_dim * queries, 0.0f);
  std::fill_n(work.part.largest, queries, kNoScore);
  std::fill_n(work.part.weight, queries, 0.0f);
  for (; begin < end; begin += kTileTokens) {
    AttendPiece(t, queries, begin, std::min(kTileTokens, end - begin), work);
  }
}

// What two sums are scaled by so that they can be added.
struct MergeScales {
  VF largest;
  VF old_scale;
  VF part_scale;
};

HWY_INLINE MergeScales ScalesOf(VF old_largest, VF part_largest) {
  const F32 d;
  const VF largest = hn::Max(old_largest, part_largest);
  return {largest, hn::Exp(d, hn::Sub(old_largest, largest)),
          hn::Exp(d, hn::Sub(part_largest, largest))};
}

// The one form of a merged sum: the two users agree to the bit.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void AddScaled(D d, V old_scale, V part_scale,
                          const float* HWY_RESTRICT part,
                          float* HWY_RESTRICT total) {
  hn::StoreU(hn::MulAdd(hn::LoadU(d, part), part_scale,
                        hn::Mul(hn::LoadU(d, total), old_scale)),
             d, total);
}

// total += part, across the lanes.
void AddPart(int64_t queries, int64_t head_dim, const AttentionWork& work) {
  const F32 d;
  for (int64_t query = 0; query < queries; query += hn::Lanes(d)) {
    float* largest = work.total.largest + query;
    const MergeScales scales =
        ScalesOf(hn::Load(d, largest), hn::Load(d, work.part.largest + query));
    hn::Store(scales.largest, d, largest);
    AddScaled(d, scales.old_scale, scales.part_scale, work.part.weight + query,
              work.total.weight + query);
    for (int64_t i = 0; i < head_dim; ++i) {
      const int64_t at = i * queries + query;
      AddScaled(d, scales.old_scale, scales.part_scale, work.part.value + at,
                work.total.value + at);
    }
  }
}

void StorePartial(const AttentionTile& t, int64_t queries, int32_t part,
                  const AttentionWork::Sums& sums) {
  float* partial = t.partials + part * t.part_stride;
  for (int64_t i = 0; i < int64_t{t.num_rows} * t.group; ++i) {
    partial[0] = sums.largest[i];
    partial[1] = sums.weight[i];
    partial += kPartialHeader;
    for (int64_t d = 0; d < t.head_dim; ++d) {
      *partial++ = sums.value[d * queries + i];
    }
  }
}

void StoreTile(const AttentionTile& t, int64_t queries,
               const AttentionWork::Sums& sums) {
  for (int64_t i = 0; i < int64_t{t.num_rows} * t.group; ++i) {
    float* out = t.out + i / t.group * t.out_stride + i % t.group * t.head_dim;
    const float scale = 1.0f / sums.weight[i];
    for (int64_t d = 0; d < t.head_dim; ++d) {
      out[d] = UnsignedZero(sums.value[d * queries + i] * scale);
    }
  }
}

void AttendTileImpl(const AttentionTile& t) {
  const int64_t queries =
      RoundUp(int64_t{t.num_rows} * t.group, hn::Lanes(F32()));
  AttentionWork work(t.work, t.head_dim);
  LoadQueries(t, queries, work.q);
  int32_t part = 0;
  for (int32_t begin = t.kv_begin; begin < t.kv_end; ++part) {
    const int32_t end = begin + std::min(t.part_tokens, t.kv_end - begin);
    AttendPart(t, queries, begin, end, work);
    if (t.partials != nullptr) {
      StorePartial(t, queries, part, work.part);
    } else if (part == 0) {
      std::swap(work.part, work.total);
    } else {
      AddPart(queries, t.head_dim, work);
    }
    begin = end;
  }
  if (t.partials == nullptr) StoreTile(t, queries, work.total);
}

void MergePartialsImpl(const float* partials, int64_t part_stride,
                       int32_t num_parts, int32_t head_dim,
                       float* HWY_RESTRICT out) {
  const F32 d;
  const hn::CappedTag<float, 8> d8;  // divides every head_dim
  float largest = partials[0];
  float weight = partials[1];
  std::copy_n(partials + kPartialHeader, head_dim, out);
  for (int32_t part = 1; part < num_parts; ++part) {
    const float* partial = partials + part * part_stride;
    const MergeScales scales =
        ScalesOf(hn::Set(d, largest), hn::Set(d, partial[0]));
    const auto old_scale = hn::Set(d8, hn::GetLane(scales.old_scale));
    const auto part_scale = hn::Set(d8, hn::GetLane(scales.part_scale));
    const hn::CappedTag<float, 1> d1;
    largest = hn::GetLane(scales.largest);
    AddScaled(d1, hn::Set(d1, hn::GetLane(scales.old_scale)),
              hn::Set(d1, hn::GetLane(scales.part_scale)), partial + 1,
              &weight);
    for (int32_t i = 0; i < head_dim;
         i += static_cast<int32_t>(hn::Lanes(d8))) {
      AddScaled(d8, old_scale, part_scale, partial + kPartialHeader + i,
                out + i);
    }
  }
  const float scale = 1.0f / weight;
  for (int32_t i = 0; i < head_dim; ++i) out[i] = UnsignedZero(out[i] * scale);
}

}  // namespace HWY_NAMESPACE
}  // namespace overfill
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace overfill {

HWY_EXPORT(AttendTileImpl);
HWY_EXPORT(MergePartialsImpl);

int64_t AttentionWorkFloats(int32_t head_dim) {
  return RoundUp(AttentionWork::Floats(head_dim), 16);
}

void AttendTile(const AttentionTile& tile) {
  HWY_DYNAMIC_DISPATCH(AttendTileImpl)(tile);
}

void MergePartials(const float* partials, int64_t part_stride,
                   int32_t num_parts, int32_t head_dim, float* out) {
  HWY_DYNAMIC_DISPATCH(MergePartialsImpl)
  (partials, part_stride, num_parts, head_dim, out);
}

}  // namespace overfill
#endif  // HWY_ONCE
