#include "src/primitive.h"

#include <stdexcept>

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include "src/backends/cpu.h"
#include "src/backends/gpu.h"
#include "src/launch.h"
#include "src/unfused.h"

namespace sdpa {

namespace {

using mx::array;
using Arrays = std::vector<array>;
using Graph = std::function<Arrays(const Arrays&)>;

// The inputs with K and V as if they had never been quantized.
Arrays dequantized(const Arrays& inputs, const Attributes& a, mx::Stream s) {
  const size_t scales = inputs.size() - 4;
  Arrays out(inputs.begin(), inputs.begin() + scales);
  for (size_t i : {0, 1})
    out[1 + i] = mx::dequantize(inputs[1 + i], inputs[scales + 2 * i], inputs[scales + 2 * i + 1],
                                a.group_size, a.bits, "affine", std::nullopt, std::nullopt, s);
  return out;
}

// What each primitive computes, on stock operations, for the transforms to run through.
Graph graph_of(const Attributes& a, mx::Stream s) {
  return [a, s](const Arrays& inputs) {
    Arrays out = unfused(a.bits ? dequantized(inputs, a, s) : inputs, a, 0, /*exact_lse=*/true, s);
    if (a.want_f32) out[0] = mx::astype(out[0], mx::float32, s);
    if (!a.want_lse) out.pop_back();
    return out;
  };
}
Graph merge_graph(mx::Stream s) {
  return [s](const Arrays& in) { return merge_on_stock(in, s); };
}

// f with all arguments fixed but those in argnums.
Graph with_fixed(const Graph& f, const Arrays& primals, const std::vector<int>& argnums) {
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

// Number of mapped elements.
int mapped_size(const Arrays& inputs, const std::vector<int>& axes) {
  for (size_t i = 0; i < inputs.size(); ++i)
    if (axes[i] >= 0) return inputs[i].shape(axes[i]);
  throw std::invalid_argument("[Sdpa::vmap] no input is mapped");
}

// The mapped axis folded into the batch: [N, B, ...] -> [N * B, ...]. An input without it is broadcast, which costs
// no copy at batch 1.
array fold_into_batch(const array& x, int axis, int N, int B, mx::Stream s) {
  array y = axis >= 0 ? mx::moveaxis(x, axis, 0, s) : mx::expand_dims(x, 0, s);
  if (axis < 0 && y.shape(1) == 1 && B >= 1)
    return mx::squeeze(y, 0, s);  // broadcast over N and B alike
  mx::Shape shape = y.shape();
  shape[0] = N;
  if (shape[1] == 1) shape[1] = B;  // masks and sinks may be broadcast over the batch
  return mx::flatten(mx::broadcast_to(y, std::move(shape), s), 0, 1, s);
}

std::pair<Arrays, std::vector<int>> unfold_batch(const Arrays& outputs, int N, int B,
                                                 mx::Stream s) {
  Arrays out;
  for (const array& x : outputs) out.push_back(mx::unflatten(x, 0, {N, B}, s));
  return {out, std::vector<int>(out.size(), 0)};
}

[[noreturn]] void no_gpu(const char* name, mx::Primitive& p) {
  throw std::runtime_error(std::string("[") + name +
                           "::eval_gpu] this build has no GPU kernels, but the stream is on " +
                           (p.device() == mx::Device::gpu ? "the GPU" : "an unknown device") +
                           "; the router sends such calls to stock operations");
}

}  // namespace

std::vector<array> Sdpa::make(Arrays inputs, const Attributes& a, mx::Stream stream) {
  auto primitive = std::make_shared<Sdpa>(stream, a);
  std::vector<mx::Shape> shapes = primitive->output_shapes(inputs);
  std::vector<mx::Dtype> dtypes{a.want_f32 ? mx::float32 : inputs[0].dtype()};
  if (a.want_lse) dtypes.push_back(mx::float32);
  return array::make_arrays(std::move(shapes), dtypes, primitive, std::move(inputs));
}

void Sdpa::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  if (const GpuBackend* gpu = gpu_backend(mx::Device::cpu)) return eval_on(*gpu, inputs, outputs);
  cpu::eval_attention(Inputs(inputs, attributes_), attributes_, outputs, stream());
}
void Sdpa::eval_gpu(const Arrays& inputs, Arrays& outputs) {
  if (const GpuBackend* gpu = gpu_backend(mx::Device::gpu)) return eval_on(*gpu, inputs, outputs);
  no_gpu("Sdpa", *this);
}
void Sdpa::eval_on(const GpuBackend& gpu, const Arrays& inputs, Arrays& outputs) {
  noting_failures(
      [&] { gpu.eval_attention(Inputs(inputs, attributes_), attributes_, outputs, stream()); });
}

std::vector<mx::Shape> Sdpa::output_shapes(const Arrays& in) {
  const mx::Shape& q = in[0].shape();
  std::vector<mx::Shape> shapes{{q[0], q[1], q[2], columns_of(in[2], attributes_)}};
  if (attributes_.want_lse) shapes.push_back({q[0], q[1], q[2]});
  return shapes;
}

bool Sdpa::is_equivalent(const Primitive& other) const {
  return attributes_ == static_cast<const Sdpa&>(other).attributes_;
}

Arrays Sdpa::vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
                 const Arrays&) {
  return vjp_through(graph_of(attributes_, stream()), primals, cotangents, argnums, stream());
}

Arrays Sdpa::jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) {
  return jvp_through(graph_of(attributes_, stream()), primals, tangents, argnums);
}

std::pair<Arrays, std::vector<int>> Sdpa::vmap(const Arrays& inputs, const std::vector<int>& axes) {
  const int N = mapped_size(inputs, axes), B = inputs[0].shape(axes[0] == 0 ? 1 : 0);
  const mx::Stream s = stream();
  Arrays folded;
  const size_t sinks = 3 + attributes_.has_mask;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool may_broadcast = i >= 3 && i < sinks + attributes_.has_sinks;
    array x = fold_into_batch(inputs[i], axes[i], N, may_broadcast ? B : 1, s);
    if (!may_broadcast && x.shape(0) != N * B) {
      mx::Shape shape = x.shape();
      shape[0] = N * B;
      x = mx::broadcast_to(x, std::move(shape), s);
    }
    if (i >= sinks + attributes_.has_sinks) x = mx::contiguous(x, false, s);  // the carry
    folded.push_back(x);
  }
  return unfold_batch(make(std::move(folded), attributes_, s), N, B, s);
}

std::vector<array> SdpaMerge::make(Arrays inputs, mx::Stream stream) {
  auto primitive = std::make_shared<SdpaMerge>(stream);
  std::vector<mx::Shape> shapes = primitive->output_shapes(inputs);
  return array::make_arrays(std::move(shapes), {inputs[0].dtype(), mx::float32}, primitive,
                            std::move(inputs));
}

void SdpaMerge::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  if (const GpuBackend* gpu = gpu_backend(mx::Device::cpu)) return eval_on(*gpu, inputs, outputs);
  cpu::eval_merge(inputs, outputs, stream());
}
void SdpaMerge::eval_gpu(const Arrays& inputs, Arrays& outputs) {
  if (const GpuBackend* gpu = gpu_backend(mx::Device::gpu)) return eval_on(*gpu, inputs, outputs);
  no_gpu("SdpaMerge", *this);
}
void SdpaMerge::eval_on(const GpuBackend& gpu, const Arrays& inputs, Arrays& outputs) {
  noting_failures([&] { gpu.eval_merge(inputs, outputs, stream()); });
}

std::vector<mx::Shape> SdpaMerge::output_shapes(const Arrays& in) {
  return {in[0].shape(), in[in.size() / 2].shape()};
}

Arrays SdpaMerge::vjp(const Arrays& primals, const Arrays& cotangents,
                      const std::vector<int>& argnums, const Arrays&) {
  return vjp_through(merge_graph(stream()), primals, cotangents, argnums, stream());
}

Arrays SdpaMerge::jvp(const Arrays& primals, const Arrays& tangents,
                      const std::vector<int>& argnums) {
  return jvp_through(merge_graph(stream()), primals, tangents, argnums);
}

std::pair<Arrays, std::vector<int>> SdpaMerge::vmap(const Arrays& inputs,
                                                    const std::vector<int>& axes) {
  const int N = mapped_size(inputs, axes), B = inputs[0].shape(axes[0] == 0 ? 1 : 0);
  const mx::Stream s = stream();
  Arrays folded;
  for (size_t i = 0; i < inputs.size(); ++i) {
    array x =
        axes[i] >= 0 ? mx::moveaxis(inputs[i], axes[i], 0, s) : mx::expand_dims(inputs[i], 0, s);
    mx::Shape shape = x.shape();
    shape[0] = N;
    folded.push_back(
        mx::contiguous(mx::flatten(mx::broadcast_to(x, std::move(shape), s), 0, 1, s), false, s));
  }
  return unfold_batch(make(std::move(folded), s), N, B, s);
}

}  // namespace sdpa
