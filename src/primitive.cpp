#include "src/primitive.h"

#include <stdexcept>

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include "src/backends/cpu.h"
#include "src/backends/gpu.h"
#include "src/backward.h"
#include "src/launch.h"
#include "src/transforms.h"
#include "src/unfused.h"

namespace sdpa {

namespace {

using mx::array;

Graph merge_graph(mx::Stream s) {
  return [s](const Arrays& in) { return merge_on_stock(in, s); };
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
                 const Arrays& outputs) {
  if (SdpaBackward::serves(primals, attributes_, argnums, stream()))
    return SdpaBackward::gradients(primals, cotangents, argnums, outputs, attributes_, stream());
  return vjp_through(attention_graph(attributes_, stream()), primals, cotangents, argnums,
                     stream());
}

Arrays Sdpa::jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) {
  return jvp_through(attention_graph(attributes_, stream()), primals, tangents, argnums);
}

std::pair<Arrays, std::vector<int>> Sdpa::vmap(const Arrays& inputs, const std::vector<int>& axes) {
  const int N = mapped_size(inputs, axes), B = inputs[0].shape(axes[0] == 0 ? 1 : 0);
  const mx::Stream s = stream();
  const size_t carry = 3 + attributes_.has_mask + attributes_.has_sinks;
  Arrays folded = fold_all(inputs, axes, N, B, int(carry), s);
  for (size_t i = carry; i < folded.size(); ++i) folded[i] = mx::contiguous(folded[i], false, s);
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
