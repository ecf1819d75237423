#include "src/transforms.h"

#include <stdexcept>

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include "src/unfused.h"

namespace sdpa {

using mx::array;

// The inputs with K and V as if they had never been quantized.
static Arrays dequantized(const Arrays& inputs, const Attributes& a, mx::Stream s) {
  const size_t scales = inputs.size() - 4;
  Arrays out(inputs.begin(), inputs.begin() + scales);
  for (size_t i : {0, 1})
    out[1 + i] = mx::dequantize(inputs[1 + i], inputs[scales + 2 * i], inputs[scales + 2 * i + 1],
                                a.group_size, a.bits, "affine", std::nullopt, std::nullopt, s);
  return out;
}

Graph attention_graph(const Attributes& a, mx::Stream s) {
  return [a, s](const Arrays& inputs) {
    Arrays out = unfused(a.bits ? dequantized(inputs, a, s) : inputs, a, 0, /*exact_lse=*/true, s);
    if (a.want_f32) out[0] = mx::astype(out[0], mx::float32, s);
    if (!a.want_lse) out.pop_back();
    return out;
  };
}

// f with all arguments fixed but those in argnums.
static Graph with_fixed(const Graph& f, const Arrays& primals, const std::vector<int>& argnums) {
  return [f, primals, argnums](const Arrays& free) {
    Arrays all = primals;
    for (size_t i = 0; i < argnums.size(); ++i) all[argnums[i]] = free[i];
    return f(all);
  };
}

bool differentiable(const array& x) { return mx::issubdtype(x.dtype(), mx::inexact); }

Arrays vjp_through(const Graph& f, const Arrays& primals, const Arrays& cotangents,
                   const std::vector<int>& argnums, mx::Stream s) {
  std::vector<int> wanted;
  Arrays free;
  for (int i : argnums) {
    if (!differentiable(primals[i])) continue;  // a bool mask
    wanted.push_back(i);
    free.push_back(primals[i]);
  }
  Arrays found;
  if (!free.empty()) found = mx::vjp(with_fixed(f, primals, wanted), free, cotangents).second;
  Arrays out;
  size_t next = 0;
  for (int i : argnums)
    out.push_back(differentiable(primals[i]) ? found[next++] : mx::zeros_like(primals[i], s));
  return out;
}

Arrays jvp_through(const Graph& f, const Arrays& primals, const Arrays& tangents,
                   const std::vector<int>& argnums) {
  std::vector<int> wanted;
  Arrays free, directions;
  for (size_t i = 0; i < argnums.size(); ++i) {
    if (!differentiable(primals[argnums[i]])) continue;
    wanted.push_back(argnums[i]);
    free.push_back(primals[argnums[i]]);
    directions.push_back(tangents[i]);
  }
  return mx::jvp(with_fixed(f, primals, wanted), free, directions).second;
}

int mapped_size(const Arrays& inputs, const std::vector<int>& axes) {
  for (size_t i = 0; i < inputs.size(); ++i)
    if (axes[i] >= 0) return inputs[i].shape(axes[i]);
  throw std::invalid_argument("[Sdpa::vmap] no input is mapped");
}

array fold_into_batch(const array& x, int axis, int N, int B, mx::Stream s) {
  array y = axis >= 0 ? mx::moveaxis(x, axis, 0, s) : mx::expand_dims(x, 0, s);
  if (axis < 0 && y.shape(1) == 1 && B >= 1)
    return mx::squeeze(y, 0, s);  // broadcast over N and B alike
  mx::Shape shape = y.shape();
  shape[0] = N;
  if (shape[1] == 1) shape[1] = B;  // masks and sinks may be broadcast over the batch
  return mx::flatten(mx::broadcast_to(y, std::move(shape), s), 0, 1, s);
}

Arrays fold_all(const Arrays& inputs, const std::vector<int>& axes, int N, int B, int may_broadcast,
                mx::Stream s) {
  Arrays folded;
  for (int i = 0; i < int(inputs.size()); ++i) {
    const bool broadcast = i >= 3 && i < may_broadcast;
    array x = fold_into_batch(inputs[i], axes[i], N, broadcast ? B : 1, s);
    if (!broadcast && x.shape(0) != N * B) {
      mx::Shape shape = x.shape();
      shape[0] = N * B;
      x = mx::broadcast_to(x, std::move(shape), s);
    }
    folded.push_back(x);
  }
  return folded;
}

std::pair<Arrays, std::vector<int>> unfold_batch(const Arrays& outputs, int N, int B,
                                                 mx::Stream s) {
  Arrays out;
  for (const array& x : outputs) out.push_back(mx::unflatten(x, 0, {N, B}, s));
  return {out, std::vector<int>(out.size(), 0)};
}

}  // namespace sdpa
