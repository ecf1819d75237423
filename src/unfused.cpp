#include "src/unfused.h"

#include <algorithm>
#include <limits>
#include <optional>

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include "src/barrier.h"

namespace sdpa {

namespace {

using mx::array;
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Block {
  int row0, row1;  // query rows
  int key0, key1;  // keys that any of them sees
};

// [B, H, L, S] -> [B, Hkv, group, L, S]; broadcast heads stay broadcast.
array split_heads(const array& x, int Hkv, int group, mx::StreamOrDevice s) {
  if (x.shape(1) == 1) return mx::expand_dims(x, 2, s);
  return mx::unflatten(x, 1, {Hkv, group}, s);
}

array slice_axis(const array& x, int axis, int begin, int end, mx::StreamOrDevice s) {
  if (x.shape(axis) == 1 || (begin == 0 && end == x.shape(axis))) return x;
  mx::Shape start(x.ndim(), 0), stop = x.shape();
  start[axis] = begin;
  stop[axis] = end;
  return mx::slice(x, std::move(start), std::move(stop), s);
}

// Keys seen by the rows of the block, [rows, keys] bool.
array position_mask(const Attributes& a, const Block& b, int q_offset, mx::StreamOrDevice s) {
  array q = mx::expand_dims(mx::arange(q_offset + b.row0, q_offset + b.row1, s), 1, s);
  array k = mx::expand_dims(mx::arange(b.key0, b.key1, s), 0, s);
  array seen = mx::greater_equal(q, k, s);
  if (a.window)
    seen = mx::logical_and(seen, mx::less(q, mx::add(k, array(a.window, mx::int32), s), s), s);
  return seen;
}

// What the logsumexp and its weights are computed in.
mx::Dtype exact_dtype(mx::Dtype dtype) { return dtype == mx::float64 ? mx::float64 : mx::float32; }

// The mask array of a block, broadcastable to [B, Hkv, group, rows, keys].
array block_mask(const Inputs& in, const Block& b, mx::StreamOrDevice s) {
  const int Hkv = in.k.shape(1), group = in.q.shape(1) / Hkv;
  return split_heads(slice_axis(slice_axis(*in.mask, 2, b.row0, b.row1, s), 3, b.key0, b.key1, s),
                     Hkv, group, s);
}

// scale * Q K^T of a block [B, Hkv, group, rows, keys], with softcap, before any mask.
array block_products(const Inputs& in, const Attributes& a, const Block& b, array q,
                     mx::Dtype dtype, mx::StreamOrDevice s) {
  q = mx::astype(q, dtype, s);
  array k = mx::expand_dims(mx::astype(slice_axis(in.k, 2, b.key0, b.key1, s), dtype, s), 2, s);
  array scores =
      mx::matmul(mx::multiply(array(a.scale, dtype), q, s), mx::swapaxes(k, -1, -2, s), s);
  if (a.softcap == 0.f) return scores;
  const array cap(a.softcap, exact_dtype(dtype));  // float16 ends at 65504, a softcap need not
  return mx::astype(mx::multiply(mx::tanh(mx::divide(scores, cap, s), s), cap, s), dtype, s);
}

// [Bs, Hq] -> [Bs, Hkv, group, 1, 1] in the exact dtype
array sink_logits(const Inputs& in, int Hkv, int group, mx::StreamOrDevice s) {
  array sinks = mx::astype(*in.sinks, exact_dtype(in.q.dtype()), s);
  sinks = mx::unflatten(sinks, 1, {Hkv, group}, s);
  return mx::expand_dims(sinks, {3, 4}, s);
}

// {out, lse} of a block: P = exp(S - max S) / sum, out = P V. Differentiable also where a row sees nothing.
std::vector<array> exact_block(const Inputs& in, const Attributes& a, const Block& b,
                               const array& q, mx::StreamOrDevice s) {
  const int Hkv = in.k.shape(1), group = in.q.shape(1) / Hkv;
  array v = mx::expand_dims(slice_axis(in.v, 2, b.key0, b.key1, s), 2, s);
  const mx::Dtype dtype = exact_dtype(q.dtype());
  const array zero(0.f, dtype), minus_inf(-kInf, dtype);
  array scores = block_products(in, a, b, q, dtype, s);
  if (a.causal) scores = mx::where(position_mask(a, b, in.q_offset(a), s), scores, minus_inf, s);
  if (in.mask) {
    array mask = block_mask(in, b, s);
    scores = mask.dtype() == mx::bool_ ? mx::where(mask, scores, minus_inf, s)
                                       : mx::add(scores, mask, s);
  }

  array top = mx::max(scores, std::vector<int>{-1}, true, s);
  if (in.sinks) top = mx::maximum(top, sink_logits(in, Hkv, group, s), s);
  // The maximum only steadies the exponent: no gradient runs through it.
  top = mx::stop_gradient(mx::where(mx::equal(top, minus_inf, s), zero, top, s), s);
  array e = mx::exp(mx::subtract(scores, top, s), s);
  array total = mx::sum(e, std::vector<int>{-1}, true, s);
  if (in.sinks)
    total = mx::add(total, mx::exp(mx::subtract(sink_logits(in, Hkv, group, s), top, s), s), s);
  array empty = mx::equal(total, zero, s);
  array safe_total = mx::where(empty, array(1.f, dtype), total, s);
  array p = mx::astype(mx::divide(e, safe_total, s), in.v.dtype(), s);
  // 0 * Inf of hidden values is NaN
  array out = mx::where(empty, array(0.f, p.dtype()), mx::matmul(p, v, s), s);
  array lse = mx::where(empty, minus_inf, mx::add(mx::log(safe_total, s), top, s), s);
  lse = mx::astype(mx::squeeze(lse, -1, s), mx::float32, s);
  return {mx::flatten(out, 1, 2, s), mx::flatten(lse, 1, 2, s)};
}

// out of a block with stock's softmax. Rows that see no key are opened before the softmax, which would make NaN of
// them, and zeroed after it.
array stock_block(const Inputs& in, const Attributes& a, const Block& b, const array& q,
                  mx::StreamOrDevice s) {
  array v = mx::expand_dims(slice_axis(in.v, 2, b.key0, b.key1, s), 2, s);
  array scores = block_products(in, a, b, q, q.dtype(), s);
  const array minus_inf(-kInf, scores.dtype()), zero(0.f, scores.dtype());

  std::optional<array> seen, bias;  // keys that a row sees; what an additive mask adds
  if (a.causal) seen = position_mask(a, b, in.q_offset(a), s);
  if (in.mask) {
    array mask = block_mask(in, b, s);
    if (mask.dtype() == mx::bool_) {
      seen = seen ? mx::logical_and(*seen, mask, s) : mask;
    } else {
      bias = mx::astype(mask, scores.dtype(), s);
    }
  }
  const int64_t first = int64_t(in.q_offset(a)) + b.row0,
                last = int64_t(in.q_offset(a)) + b.row1 - 1;
  const bool causal_gaps =
      a.causal && (first < 0 || (a.window && last + 1 - a.window >= in.k.shape(2)));
  std::optional<array> row_sees;  // [.., rows, 1]
  if (in.mask || causal_gaps) {
    array open = seen ? *seen : array(true);
    if (bias) open = mx::logical_and(open, mx::greater(*bias, minus_inf, s), s);
    row_sees = mx::any(open, std::vector<int>{-1}, true, s);
    if (seen) seen = mx::logical_or(*seen, mx::logical_not(*row_sees, s), s);
    if (bias) bias = mx::where(*row_sees, *bias, zero, s);
  }
  if (seen) scores = mx::where(*seen, scores, minus_inf, s);
  if (bias) scores = mx::add(scores, *bias, s);
  array out = mx::matmul(mx::softmax(scores, std::vector<int>{-1}, true, s), v, s);
  if (row_sees) out = mx::where(*row_sees, out, zero, s);
  return mx::flatten(out, 1, 2, s);
}

Block block_of(const Inputs& in, const Attributes& a, int row0, int row1) {
  const int Lk = in.k.shape(2);
  Block b{row0, row1, 0, Lk};
  if (a.causal) {
    const int64_t first = int64_t(in.q_offset(a)) + row0, last = int64_t(in.q_offset(a)) + row1 - 1;
    b.key1 = int(std::clamp<int64_t>(last + 1, 0, Lk));
    if (a.window) b.key0 = int(std::clamp<int64_t>(first + 1 - a.window, 0, b.key1));
  }
  return b;
}

}  // namespace

std::vector<array> unfused(const std::vector<array>& inputs, const Attributes& a, int block_rows,
                           bool exact_lse, mx::StreamOrDevice s) {
  const Inputs all(inputs, a);
  const int Lq = all.q.shape(2), Hkv = all.k.shape(1), group = all.q.shape(1) / Hkv;
  const int step = block_rows > 0 ? std::min(block_rows, std::max(Lq, 1)) : std::max(Lq, 1);
  std::vector<array> outs, lses;
  for (int row = 0; row < std::max(Lq, 1); row += step) {
    // all inputs wait: keys widened for the next block are memory too
    const std::vector<array> held = outs.empty() ? inputs : after(inputs, outs.back(), s);
    const Inputs in(held, a);
    const Block b = block_of(in, a, row, std::min(row + step, Lq));
    array q = mx::unflatten(slice_axis(in.q, 2, b.row0, b.row1, s), 1, {Hkv, group}, s);
    if (b.key0 == b.key1) {  // no key at all: reductions over an empty axis are not defined
      const int B = in.q.shape(0), Hq = in.q.shape(1), rows = b.row1 - b.row0;
      outs.push_back(mx::zeros({B, Hq, rows, in.v.shape(3)}, in.v.dtype(), s));
      array lse =
          in.sinks ? mx::expand_dims(mx::astype(*in.sinks, mx::float32, s), 2, s) : array(-kInf);
      lses.push_back(mx::broadcast_to(lse, {B, Hq, rows}, s));
    } else if (exact_lse || in.sinks) {
      auto block = exact_block(in, a, b, q, s);
      outs.push_back(block[0]);
      lses.push_back(block[1]);
    } else {
      outs.push_back(stock_block(in, a, b, q, s));
    }
  }
  array out = outs.size() == 1 ? outs[0] : mx::concatenate(outs, 2, s);
  if (!exact_lse) return {out};
  array lse = lses.size() == 1 ? lses[0] : mx::concatenate(lses, 2, s);
  if (all.carry_out) {
    auto merged =
        merge_on_stock({mx::astype(out, mx::float32, s), *all.carry_out, lse, *all.carry_lse}, s);
    return {mx::astype(merged[0], out.dtype(), s), merged[1]};
  }
  return {out, lse};
}

std::vector<array> merge_on_stock(const std::vector<array>& inputs, mx::StreamOrDevice s) {
  const int n = int(inputs.size()) / 2;
  const array zero(0.f), minus_inf(-kInf);
  array top = inputs[n];
  for (int i = 1; i < n; ++i) top = mx::maximum(top, inputs[n + i], s);
  top = mx::stop_gradient(mx::where(mx::equal(top, minus_inf, s), zero, top, s), s);
  array total = zero, out = zero;
  for (int i = 0; i < n; ++i) {
    array weight = mx::exp(mx::subtract(inputs[n + i], top, s), s);
    array part =
        mx::multiply(mx::astype(inputs[i], mx::float32, s), mx::expand_dims(weight, -1, s), s);
    // a part without keys contributes nothing, whatever stands in it
    part = mx::where(mx::expand_dims(mx::equal(inputs[n + i], minus_inf, s), -1, s), zero, part, s);
    total = mx::add(total, weight, s);
    out = mx::add(out, part, s);
  }
  array empty = mx::equal(total, zero, s);
  array safe_total = mx::where(empty, array(1.f), total, s);
  out = mx::astype(mx::divide(out, mx::expand_dims(safe_total, -1, s), s), inputs[0].dtype(), s);
  return {out, mx::where(empty, minus_inf, mx::add(mx::log(safe_total, s), top, s), s)};
}

}  // namespace sdpa
