#include "src/backward.h"

#include <algorithm>
#include <stdexcept>

#include <mlx/ops.h>

#include "src/backends/cpu.h"
#include "src/backends/gpu.h"
#include "src/launch.h"
#include "src/transforms.h"

namespace sdpa {

namespace {

using mx::array;

constexpr size_t kMore = 4;  // inputs after Sdpa's own: out, lse and their cotangents

// Index of the mask and of the sinks among the inputs.
constexpr int kMask = 3;
int sinks_at(const Attributes& a) { return kMask + a.has_mask; }

// What the node computes, on stock operations.
Graph backward_graph(const Attributes& a, mx::Stream s) {
  return [a, s](const Arrays& inputs) {
    const size_t own = inputs.size() - kMore;
    Arrays primals(inputs.begin(), inputs.begin() + own);
    std::vector<int> argnums{0, 1, 2};
    if (a.has_sinks) {
      const int i = sinks_at(a);
      const array& q = primals[0];
      primals[i] =
          mx::broadcast_to(mx::astype(primals[i], mx::float32, s), {q.shape(0), q.shape(1)}, s);
      argnums.push_back(i);
    }
    return vjp_through(attention_graph(a, s), primals, {inputs[own + 2], inputs[own + 3]}, argnums,
                       s);
  };
}

// The inputs that the graph above depends on, out and lse left out.
struct Dependent {
  std::vector<int> argnums;
  std::vector<size_t> places;  // in the argnums that were asked for

  Dependent(const std::vector<int>& asked, size_t inputs) {
    const int out = int(inputs - kMore), lse = out + 1;
    for (size_t i = 0; i < asked.size(); ++i) {
      if (asked[i] == out || asked[i] == lse) continue;
      argnums.push_back(asked[i]);
      places.push_back(i);
    }
  }
};

}  // namespace

bool SdpaBackward::serves(const Arrays& primals, const Attributes& a,
                          const std::vector<int>& argnums, mx::Stream s) {
  const bool of_mask = a.has_mask && differentiable(primals[kMask]) &&
                       std::count(argnums.begin(), argnums.end(), kMask) > 0;
  return cpu_kernels_on(s.device) && a.want_lse && !a.want_f32 && !a.has_carry && !a.bits &&
         !of_mask && cpu::has_backward(problem_of({primals, a}, a));
}

Arrays SdpaBackward::gradients(const Arrays& primals, const Arrays& cotangents,
                               const std::vector<int>& argnums, const Arrays& outputs,
                               const Attributes& a, mx::Stream s) {
  Arrays inputs = primals;
  inputs.insert(inputs.end(), outputs.begin(), outputs.end());
  for (size_t i = 0; i < 2; ++i) inputs.push_back(mx::astype(cotangents[i], outputs[i].dtype(), s));
  const Arrays all = make(std::move(inputs), a, s);
  Arrays out;
  for (int i : argnums) {
    if (i < kMask) {
      out.push_back(all[i]);
    } else if (a.has_sinks && i == sinks_at(a)) {
      array d_sinks = all[kMask];
      if (primals[i].shape(0) == 1) d_sinks = mx::sum(d_sinks, 0, true, s);
      out.push_back(mx::astype(d_sinks, primals[i].dtype(), s));
    } else {
      out.push_back(mx::zeros_like(primals[i], s));
    }
  }
  return out;
}

Arrays SdpaBackward::make(Arrays inputs, const Attributes& a, mx::Stream stream) {
  auto primitive = std::make_shared<SdpaBackward>(stream, a);
  std::vector<mx::Shape> shapes = primitive->output_shapes(inputs);
  std::vector<mx::Dtype> dtypes(3, inputs[0].dtype());
  if (a.has_sinks) dtypes.push_back(mx::float32);
  return array::make_arrays(std::move(shapes), dtypes, primitive, std::move(inputs));
}

void SdpaBackward::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const size_t own = inputs.size() - kMore;
  cpu::eval_backward(Inputs(inputs, attributes_), attributes_,
                     {inputs[own], inputs[own + 1], inputs[own + 2], inputs[own + 3]}, outputs,
                     stream());
}

void SdpaBackward::eval_gpu(const Arrays&, Arrays&) {
  throw std::runtime_error("[SdpaBackward::eval_gpu] gradients have a kernel on the CPU only");
}

std::vector<mx::Shape> SdpaBackward::output_shapes(const Arrays& in) {
  std::vector<mx::Shape> shapes{in[0].shape(), in[1].shape(), in[2].shape()};
  if (attributes_.has_sinks) shapes.push_back({in[0].shape(0), in[0].shape(1)});
  return shapes;
}

bool SdpaBackward::is_equivalent(const Primitive& other) const {
  return attributes_ == static_cast<const SdpaBackward&>(other).attributes_;
}

Arrays SdpaBackward::vjp(const Arrays& primals, const Arrays& cotangents,
                         const std::vector<int>& argnums, const Arrays&) {
  const Dependent on(argnums, primals.size());
  const Arrays found =
      vjp_through(backward_graph(attributes_, stream()), primals, cotangents, on.argnums, stream());
  Arrays out;
  for (int i : argnums) out.push_back(mx::zeros_like(primals[i], stream()));
  for (size_t i = 0; i < found.size(); ++i) out[on.places[i]] = found[i];
  return out;
}

Arrays SdpaBackward::jvp(const Arrays& primals, const Arrays& tangents,
                         const std::vector<int>& argnums) {
  const Dependent on(argnums, primals.size());
  Arrays along;
  for (size_t i : on.places) along.push_back(tangents[i]);
  return jvp_through(backward_graph(attributes_, stream()), primals, along, on.argnums);
}

std::pair<Arrays, std::vector<int>> SdpaBackward::vmap(const Arrays& inputs,
                                                       const std::vector<int>& axes) {
  const int N = mapped_size(inputs, axes), B = inputs[0].shape(axes[0] == 0 ? 1 : 0);
  const int may_broadcast = sinks_at(attributes_) + attributes_.has_sinks;
  Arrays folded = fold_all(inputs, axes, N, B, may_broadcast, stream());
  return unfold_batch(make(std::move(folded), attributes_, stream()), N, B, stream());
}

}  // namespace sdpa
