// Attention over a quantized cache in integers, for results of 16 bits: the codes of K and V are multiplied as they are.
//
// Q and P are rounded to 16 bits of their own scale, Q by row and group, P by row, group and tile: less than what a Q in
// float16 is off already.
//   for each tile j of bk keys, of each group g of the head dimension:
//     S  = sum_g k_scale[g] * q_step[g] * (Qi @ Kcodes[g]) + k_bias[g] * sum(Q[g])
//     m, l, P, alpha = online softmax of S
//     Pi = P * v_scale[g] / p_step
//     O  = O * alpha + p_step * (Pi @ Vcodes[g]) + sum_keys P * v_bias[g]
//   out = O / l, lse = m + log(l)
// What rounding takes from P is given back as if it had met the code in the middle: many small P beside a large one would
// be lost otherwise. Columns of O are in the order of code_tiles.h until the end.
//
// No sum overflows: 128 products of a group of K, and bk of a tile of V, by most_of(bk), stay below 2^31.
#pragma once

#include "kernels/cpu/code_tiles.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/softmax.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/transpose.h"

namespace sdpa::cpu::SDPA_ISA {

constexpr int kMostInteger = 32767, kMostCode = 255;
static_assert(int64_t(128) * kMostInteger * kMostCode < int64_t(1) << 31);

// The integer that stands for the largest P of a tile of n keys.
SDPA_INLINE int most_of(int n) {
  const int64_t most = ((int64_t(1) << 31) - 1) / (int64_t(kMostCode) * n);
  return most < kMostInteger ? int(most) : kMostInteger;
}

// Values up to this one count as 0.
constexpr float kLeast = 1e-33f;

struct CodesScratch {
  static constexpr int R = 8;  // rows of a strip

  int32_t *Q, *P, *codes;  // P of one strip
  float *q_step, *q_sum;   // [rows, groups of K]
  float *scales, *biases;  // [groups of K or V, keys] of the tile
  float *S, *O, *alpha, *top, *bias, *tmp;
  float*
      shared;  // [rows, groups of V, W]: parts of O that the columns of a group share, to be added up
  State* state;
  uint32_t* copies;
  int groups_k, groups_v, pairs_k, pairs_v, keys, columns, ldq, lds, ldo, ldp;
  size_t bytes;

  CodesScratch(const Params& p, const Operands& x, int bq, int bk, void* base) {
    const int rows = round_up(bq, R), most_groups = 4, vector_columns = W * 32 / x.bits;
    groups_k = p.D / x.group_size;
    groups_v = p.Dv / x.group_size;
    keys = round_up(bk, W);
    pairs_k = p.D / 2;
    pairs_v = keys / 2;
    columns = round_up(p.Dv, vector_columns);
    ldq = leading<int32_t>(pairs_k);
    lds = leading<float>(keys);
    ldo = leading<float>(columns);
    ldp = leading<int32_t>(pairs_v * most_groups);
    const size_t groups = size_t(groups_k > groups_v ? groups_k : groups_v);
    const size_t k_codes = size_t(keys) * pairs_k, v_codes = size_t(columns) * pairs_v;
    Scratch scratch(base);
    Q = scratch.take<int32_t>(size_t(rows) * ldq);
    P = scratch.take<int32_t>(size_t(R) * ldp);
    codes = scratch.take<int32_t>(k_codes > v_codes ? k_codes : v_codes);
    q_step = scratch.take(rows * groups);
    q_sum = scratch.take(rows * groups);
    scales = scratch.take(groups * keys);
    biases = scratch.take(groups * keys);
    S = scratch.take(size_t(rows) * lds);
    O = scratch.take(size_t(rows) * ldo);
    shared = scratch.take(size_t(rows) * groups_v * W);
    alpha = scratch.take(rows);
    top = scratch.take(groups);
    bias = scratch.take(keys);
    tmp = scratch.take(W * groups > size_t(ldo) + p.D ? W * groups : size_t(ldo) + p.D);
    state = scratch.take<State>(rows);
    copies = scratch.take<uint32_t>(size_t(W) * kMostWords);
    bytes = scratch.bytes();
  }
};

template <typename T, int bits>
struct QuantizedCodes {
  using C = Codes<bits>;
  static constexpr int R = CodesScratch::R;

  const Params& p;
  const Operands& x;
  const Task& t;
  const PackedRows<T> K, V;
  const CodesScratch s;
  const int strips;

  QuantizedCodes(const Params& p, const Operands& x, const Task& t, void* scratch)
      : p(p), x(x), t(t), K(packed_rows<T>(x.K, p.Ks, x.K_groups, x, t.b, t.hkv)),
        V(packed_rows<T>(x.V, p.Vs, x.V_groups, x, t.b, t.hkv)), s(p, x, t.rows, t.bk, scratch),
        strips((t.rows + R - 1) / R) {}

  void run() {
    // Groups among the columns of a vector of V.
    const int groups = C::kVectorColumns / x.group_size;
    if (groups >= 4) return attend<4>();
    if (groups == 2) return attend<2>();
    attend<1>();
  }

 private:
  template <int groups>
  void attend() {
    load_rows<groups>();
    const Keys keys = task_keys(p, t);
    for (int key = keys.begin; key < keys.end; key += t.bk) {
      const int n = keys.end - key < t.bk ? keys.end - key : t.bk;
      const Cover cover = p.mask == MaskKind::None ? Cover::Open : mask_cover(p, x, t, key, n);
      if (cover == Cover::Hidden) continue;
      const auto k = K.from(key), v = V.from(key);
      pack_k_codes<bits>(k, n, p.D, s.codes, s.copies);
      pack_groups(k.scales, k.scale, n, s.groups_k, s.keys, s.scales, s.tmp);
      pack_groups(k.biases, k.bias, n, s.groups_k, s.keys, s.biases, s.tmp);
      scores(key, n);
      softmax(key, n, cover == Cover::Partial);
      pack_v_codes<bits, groups>(v, n, p.Dv, s.pairs_v, s.codes, s.copies);
      pack_groups(v.scales, v.scale, n, s.groups_v, s.keys, s.scales, s.tmp);
      pack_groups(v.biases, v.bias, n, s.groups_v, s.keys, s.biases, s.tmp);
      largest_scales(n);
      const int next = key + n, left = keys.end - next < t.bk ? keys.end - next : t.bk;
      Piece ahead = left > 0 ? K.ahead(next, left, p.D) : Piece{};
      for (int strip = 0; strip < strips; ++strip) {
        const Keys seen = strip_keys(strip, key, n);
        if (seen.begin >= seen.end) continue;
        accumulate<groups>(strip, seen, n, ahead);
        ahead = {};
      }
    }
    for (int r = 0; r < t.rows; ++r) {
      const float* o = s.O + size_t(r) * s.ldo;
      float* const shared = s.shared + size_t(r) * s.groups_v * W;
      for (int g = 0; g < s.groups_v; ++g) shared[g] = sum(load(shared + g * W));
      for (int i = 0; i < s.columns; ++i) {
        const int d = column_of<bits>(i / W, i % W, groups);
        if (d < p.Dv) s.tmp[d] = o[i] + shared[d / x.group_size];
      }
      finish_row<T>(p, t, row_of(p, t.hkv, t.row0 + r), s.state[r], s.tmp);
    }
  }

  // Qi with its steps and sums, and O, m, l as they stand before the first key. Rows past the last are zeros.
  template <int groups>
  void load_rows() {
    float* const q = s.tmp + s.ldo;
    for (int r = 0; r < strips * R; ++r) {
      float* o = s.O + size_t(r) * s.ldo;
      s.alpha[r] = 1.f;
      for (int d = 0; d < s.ldo; ++d) o[d] = s.tmp[d] = 0.f;
      for (int i = 0; i < s.groups_v * W; ++i) s.shared[size_t(r) * s.groups_v * W + i] = 0.f;
      for (int d = 0; d < p.D; ++d) q[d] = 0.f;
      if (r < t.rows) {
        const Row row = row_of(p, t.hkv, t.row0 + r);
        const T* from = row_of_operand<T>(x.Q, p.Qs, t.b, row);
        for (int d = 0; d < p.D; ++d) q[d] = widen(from[d * p.Qs.col]);
        s.state[r] = start_row<T>(p, x, t, row, p.Dv, s.tmp);
        for (int i = 0; i < s.columns; ++i) {
          const int d = column_of<bits>(i / W, i % W, groups);
          if (d < p.Dv) o[i] = s.tmp[d];
        }
      }
      for (int g = 0; g < s.groups_k; ++g) round_group(q, r, g);
    }
  }

  void round_group(const float* q, int r, int g) {
    const int begin = g * x.group_size, end = begin + x.group_size;
    Vec top{}, total{};
    for (int d = begin; d < end; d += W) {
      const Vec a = load(q + d);
      top = max_keep(top, max_keep(a, -a));
      total += a;
    }
    const float most = max(top), inverse = most > kLeast ? kMostInteger / most : 0.f,
                all = sum(total);
    s.q_sum[r * s.groups_k + g] = all;
    // A sum that is not finite, as of a NaN, makes the scores NaN.
    s.q_step[r * s.groups_k + g] = inverse == 0.f ? all * 0.f : most / kMostInteger;
    for (int pair = begin / 2; pair < end / 2; ++pair) {
      const auto rounded = [&](float a) { return uint32_t(int32_t(__builtin_rintf(a * inverse))); };
      s.Q[size_t(r) * s.ldq + pair] =
          int32_t(rounded(q[C::second_of(pair)]) << 16 | (rounded(q[C::first_of(pair)]) & 0xffff));
    }
  }

  // Keys of the tile that any row of the strip can see, counted from the tile's first key.
  Keys strip_keys(int strip, int key, int n) const {
    const int last = (strip + 1) * R < t.rows ? (strip + 1) * R : t.rows;
    const int begin = visible_keys(p, (t.row0 + strip * R) / p.group).begin - key;
    const int end = visible_keys(p, (t.row0 + last - 1) / p.group).end - key;
    return {begin > 0 ? begin : 0, end < n ? end : n};
  }

  void scores(int key, int n) {
    const int all = vectors(n);
    for (int v = 0; v < all; v += 2) {
      Piece ahead = V.ahead(key + v * W, n - v * W < 2 * W ? n - v * W : 2 * W, p.Dv);
      for (int strip = 0; strip < strips; ++strip) {
        const Keys seen = strip_keys(strip, key, n);
        if (seen.begin >= (v + 2) * W || seen.end <= v * W) continue;
        v + 1 < all ? strip_scores<2>(strip, v, ahead) : strip_scores<1>(strip, v, ahead);
        ahead = {};
      }
    }
  }

  // S of a strip and the keys of N vectors
  template <int N>
  void strip_scores(int strip, int v, Piece ahead) {
    const int depth = x.group_size / 2;
    const size_t step = size_t(s.pairs_k) * W;
    for (int g = 0; g < s.groups_k; ++g) {
      __m512i acc[R][N];
      multiply_codes<R, N, 1>(s.Q + size_t(strip) * R * s.ldq + g * depth, s.ldq,
                              s.codes + v * step + size_t(g) * depth * W, step, depth,
                              ahead.part(g, s.groups_k), acc);
      Vec scale[N], bias[N];
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        scale[i] = load(s.scales + g * s.keys + (v + i) * W);
        bias[i] = load(s.biases + g * s.keys + (v + i) * W);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int row = strip * R + r;
        const Vec q_step = splat(s.q_step[row * s.groups_k + g]);
        const Vec q_sum = splat(s.q_sum[row * s.groups_k + g]);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
          float* to = s.S + size_t(row) * s.lds + (v + i) * W;
          const Vec product = bits_as<Vec>(_mm512_cvtepi32_ps(acc[r][i])) * q_step;
          Vec sum = product * scale[i] + bias[i] * q_sum;
          if (g > 0) sum += load(to);
          store(to, sum);
        }
      }
    }
  }

  void softmax(int key, int n, bool masked) {
    MaskRows mask_rows(p, x, t.b, key, n, s.bias);
    for (int strip = 0; strip < strips; ++strip) {
      const Keys strip_seen = strip_keys(strip, key, n);
      if (strip_seen.begin >= strip_seen.end) continue;
      for (int r = strip * R; r < (strip + 1) * R && r < t.rows; ++r) {
        const Row row = row_of(p, t.hkv, t.row0 + r);
        const Keys seen = visible_keys(p, row.iq);
        float* S = s.S + size_t(r) * s.lds;
        const RowTile tile{
            S,
            strip_seen.begin / W,
            vectors(strip_seen.end),
            {seen.begin - key, seen.end - key < n ? seen.end - key : n},
            masked ? mask_rows(row) : nullptr,
        };
        s.alpha[r] = softmax_row(p, tile, s.state[r], S);
      }
    }
  }

  // The largest finite scale of each group, by size.
  void largest_scales(int n) {
    for (int g = 0; g < s.groups_v; ++g) {
      Vec top{};
      for (int v = 0; v < vectors(n); ++v) {
        const Vec scale = load(s.scales + g * s.keys + v * W), size = max_keep(scale, -scale);
        top = max_keep(select(size < kInf, size, Vec{}), top);
      }
      s.top[g] = max(top);
    }
  }

  // O = O * alpha + P @ V of a strip and the keys it sees, `groups` groups at a time
  template <int groups>
  void accumulate(int strip, Keys seen, int n, Piece ahead) {
    const int begin = seen.begin / W, end = vectors(seen.end);
    const int all = s.columns / W, most = most_of(n);
    const Vec largest = largest_weights(strip, begin, end);
    // Vectors of the same groups.
    const int wide = (groups == 1 ? x.group_size / C::kVectorColumns : 1) * C::kPerWord;
    for (int first = 0; first < all; first += wide) {
      const int g = first / C::kPerWord * C::kVectorColumns / x.group_size;
      Steps<groups> steps;
      for (int i = 0; i < groups; ++i) {
        const Vec top = g + i < s.groups_v ? largest * s.top[g + i] : Vec{};
        const IVec some = top > kLeast;
        store(steps.inverse[i], select(some, float(most) / top, Vec{}));
        store(steps.step[i], select(some, top * (1.f / most), Vec{}));
      }
      for (int r = 0; r < R; ++r)
        round_weights<groups>(strip * R + r, g, begin, end, steps, r, s.P + r * s.ldp);
      const int last = first + wide < all ? first + wide : all;
      for (int v = first; v < last; v += 2)
        add_values<groups>(strip, v, begin, end, steps, ahead.part(v / 2, all / 2));
    }
  }

  // What an integer of P stands for, and 1 over that, by group and row.
  template <int groups>
  struct Steps {
    float step[groups][W], inverse[groups][W];
  };

  // Lane r: the largest P of row r of the strip
  SDPA_INLINE Vec largest_weights(int strip, int begin, int end) const {
    Vec top[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float* P = s.S + size_t(strip * R + r) * s.lds;
      top[r] = Vec{};
      if (strip * R + r < t.rows)
        for (int v = begin; v < end; ++v) top[r] = max_keep(load(P + v * W), top[r]);
    }
    fold_max<1, 8>(top);
    return max_keep(swap_lanes<8>(top[0]), top[0]);
  }

  template <int S, int N>
  SDPA_INLINE static void fold_max(Vec (&a)[R]) {
#pragma GCC unroll 4
    for (int i = 0; i < N / 2; ++i)
      a[i] = max_keep(exchange<S, false>(a[2 * i], a[2 * i + 1]),
                      exchange<S, true>(a[2 * i], a[2 * i + 1]));
    if constexpr (N > 2) fold_max<2 * S, N / 2>(a);
  }

  // Pi [pairs][groups] of row r of a strip, and the part of O that is the same in all columns of a group
  template <int groups>
  SDPA_INLINE void round_weights(int row, int g, int begin, int end, const Steps<groups>& steps,
                                 int r, int32_t* Pi) {
    if (row >= t.rows) {
      for (int k = begin * W / 2 * groups; k < end * W / 2 * groups; ++k) Pi[k] = 0;
      return;
    }
    const float* P = s.S + size_t(row) * s.lds;
    Vec sums[groups] = {}, lost[groups] = {};
    for (int v = begin; v < end; ++v) {
      const Vec weight = load(P + v * W);
      const __mmask16 some = _mm512_cmpneq_ps_mask(bits_as<__m512>(weight), _mm512_setzero_ps());
      __m256i packed[groups];
#pragma GCC unroll 4
      for (int i = 0; i < groups; ++i) {
        packed[i] = _mm256_setzero_si256();
        if (g + i >= s.groups_v) continue;
        const size_t at = size_t(g + i) * s.keys + v * W;
        const Vec scale = bits_as<Vec>(_mm512_maskz_loadu_ps(some, s.scales + at));
        sums[i] += weight * bits_as<Vec>(_mm512_maskz_loadu_ps(some, s.biases + at));
        const Vec exact = weight * steps.inverse[i][r] * scale;
        const __m512i rounded = _mm512_cvtps_epi32(bits_as<__m512>(exact));
        lost[i] += exact - bits_as<Vec>(_mm512_cvtepi32_ps(rounded));
        packed[i] = _mm512_cvtsepi32_epi16(rounded);
      }
      store_weights<groups>(packed, Pi + v * W / 2 * groups);
    }
#pragma GCC unroll 4
    for (int i = 0; i < groups; ++i) {
      if (g + i >= s.groups_v) continue;
      float* shared = s.shared + (size_t(row) * s.groups_v + g + i) * W;
      store(shared,
            load(shared) * s.alpha[row] + sums[i] + lost[i] * (C::kCenter * steps.step[i][r]));
    }
  }

  // Pairs of each group in turns
  template <int groups>
  SDPA_INLINE static void store_weights(const __m256i (&packed)[groups], int32_t* to) {
    const auto both = [](__m256i a, __m256i b) {
      return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    };
    const IVec lane = iota();
    if constexpr (groups == 1) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed[0]);
    } else if constexpr (groups == 2) {
      const __m512i turns = bits_as<__m512i>(IVec((lane & 1) * 8 + lane / 2));
      _mm512_storeu_si512(to, _mm512_permutexvar_epi32(turns, both(packed[0], packed[1])));
    } else {
      const __m512i a = both(packed[0], packed[1]), b = both(packed[2], packed[3]);
      const IVec turns = (lane & 3) * 8 + lane / 4;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi32(a, bits_as<__m512i>(turns), b));
      _mm512_storeu_si512(to + W,
                          _mm512_permutex2var_epi32(a, bits_as<__m512i>(IVec(turns + 4)), b));
    }
  }

  // O of a strip and two vectors of columns
  template <int groups>
  SDPA_INLINE void add_values(int strip, int v, int begin, int end, const Steps<groups>& steps,
                              Piece ahead) {
    const int first = begin * W / 2, depth = (end - begin) * W / 2;
    const size_t vector = size_t(s.pairs_v) * W;
    __m512i acc[R][2];
    multiply_codes<R, 2, groups>(s.P + first * groups, s.ldp,
                                 s.codes + v * vector + size_t(first) * W, vector, depth, ahead,
                                 acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      __m512 step = _mm512_set1_ps(steps.step[0][r]);
      for (int i = 1; i < groups; ++i)
        step = _mm512_mask_broadcastss_ps(step, __mmask16((groups == 2 ? 0x5555 : 0x1111) << i),
                                          _mm_load_ss(&steps.step[i][r]));
      const Vec alpha = splat(s.alpha[strip * R + r]);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        float* o = s.O + size_t(strip * R + r) * s.ldo + (v + i) * W;
        store(o,
              load(o) * alpha + bits_as<Vec>(_mm512_cvtepi32_ps(acc[r][i])) * bits_as<Vec>(step));
      }
    }
  }
};

template <typename T>
void quantized_codes(const Params& p, const Operands& x, const Task& t, void* scratch) {
  if (x.bits == 4)
    QuantizedCodes<T, 4>(p, x, t, scratch).run();
  else
    QuantizedCodes<T, 8>(p, x, t, scratch).run();
}

}  // namespace sdpa::cpu::SDPA_ISA
