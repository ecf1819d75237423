#include "src/op.h"

#include <limits>
#include <sstream>
#include <stdexcept>

#include <mlx/ops.h>

#include "src/backends/gpu.h"
#include "src/launch.h"
#include "src/plan.h"
#include "src/primitive.h"
#include "src/unfused.h"

namespace sdpa {

namespace {

using mx::array;

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  message << "[scaled_dot_product_attention] ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

const array* mask_array(const Arguments& x) { return std::get_if<array>(&x.mask); }

bool is_causal(const Arguments& x) { return std::holds_alternative<std::string>(x.mask); }

void check_shapes(const Arguments& x) {
  const std::pair<const char*, const array*> operands[] = {{"q", &x.q}, {"k", &x.k}, {"v", &x.v}};
  for (auto [name, a] : operands)
    if (a->ndim() != 4)
      refuse(name, " with shape ", a->shape(),
             " is expected to be rank 4: [batch, heads, length, head_dim]");
  for (auto [name, a] : operands)
    if (a->shape(0) != x.q.shape(0))
      refuse("mismatching batch dimension: ", name, " with shape ", a->shape(),
             " against q with shape ", x.q.shape());
  if (x.q.shape(3) != x.k.shape(3))
    refuse("q and k are expected to have the same last dimension; found q with shape ", x.q.shape(),
           " and k with shape ", x.k.shape());
  if (x.k.shape(1) != x.v.shape(1))
    refuse("k and v are expected to have the same number of heads; found k with shape ",
           x.k.shape(), " and v with shape ", x.v.shape());
  if (x.k.shape(2) != x.v.shape(2))
    refuse("k and v are expected to have the same length; found k with shape ", x.k.shape(),
           " and v with shape ", x.v.shape());
  if (x.k.shape(1) == 0 || x.q.shape(1) == 0 || x.q.shape(1) % x.k.shape(1) != 0)
    refuse("the heads of q must be a multiple of those of k; found ", x.q.shape(1), " and ",
           x.k.shape(1));
}

void check_mask(const Arguments& x, mx::Dtype dtype) {
  if (const auto* mode = std::get_if<std::string>(&x.mask)) {
    if (*mode != "causal")
      refuse("invalid mask option '", *mode, "'. Must be 'causal', or an array.");
    return;
  }
  const array* mask = mask_array(x);
  if (!mask) return;
  if (mask->ndim() > 4)
    refuse("the mask with shape ", mask->shape(), " is expected to have at most rank 4");
  const mx::Shape full{x.q.shape(0), x.q.shape(1), x.q.shape(2), x.k.shape(2)};
  const int skip = 4 - mask->ndim();
  for (int i = skip; i < 4; ++i)
    if (mask->shape(i - skip) != 1 && mask->shape(i - skip) != full[i])
      refuse("the mask with shape ", mask->shape(),
             " cannot be broadcast to [B, Hq, Lq, Lk] = ", full);
  if (mx::promote_types(mask->dtype(), dtype) != dtype)
    refuse("the mask's type ", mask->dtype(), " must promote to the output type ", dtype);
}

void check_sinks(const Arguments& x, mx::Dtype dtype) {
  if (!x.sinks) return;
  if (mx::promote_types(x.sinks->dtype(), dtype) != dtype)
    refuse("the type of sinks ", x.sinks->dtype(), " must promote to the output type ", dtype);
  if (x.sinks->ndim() != 1 || x.sinks->shape(0) != x.q.shape(1))
    refuse("sinks with shape ", x.sinks->shape(),
           " is expected to have one entry per query head: [", x.q.shape(1), "]");
}

// What the kernels read a mask as, in a computation in `dtype`.
mx::Dtype mask_dtype(const array& mask, mx::Dtype dtype) {
  const mx::Dtype have = mask.dtype();
  const bool kernels_read =
      have == mx::bool_ || have == mx::float32 || have == mx::float16 || have == mx::bfloat16;
  return kernels_read ? have : dtype;
}

// Mask [Bm, Hm, Lqm, Lkm] in a type the kernels read; broadcast dimensions stay as they are.
array four_dimensional(array mask, mx::Dtype dtype, mx::StreamOrDevice s) {
  mask = mx::astype(mask, mask_dtype(mask, dtype), s);
  if (mask.ndim() == 4) return mask;
  std::vector<int> axes;
  for (int i = 0; i < 4 - int(mask.ndim()); ++i) axes.push_back(i);
  return mx::expand_dims(mask, axes, s);
}

// Longer than any sequence: kernels and masks add positions to it in 32 bits.
constexpr int kLongestWindow = 1 << 30;

int window_of(const Arguments& x) { return std::min(x.window.value_or(0), kLongestWindow); }

// Inputs in the primitive's order, and the attributes but for scale and the options.
std::pair<std::vector<array>, Attributes> lower(const Arguments& x, const Checked& checked,
                                                float scale, mx::StreamOrDevice s) {
  Attributes a{
      .scale = scale,
      .causal = is_causal(x),
      .window = window_of(x),
      .softcap = x.softcap.value_or(0.f),
      .has_mask = mask_array(x) != nullptr,
      .has_sinks = x.sinks.has_value(),
  };
  std::vector<array> inputs;
  for (const array& in : {x.q, x.k, x.v}) inputs.push_back(mx::astype(in, checked.dtype, s));
  if (a.has_mask) inputs.push_back(four_dimensional(*mask_array(x), checked.dtype, s));
  if (a.has_sinks) inputs.push_back(mx::expand_dims(mx::astype(*x.sinks, checked.dtype, s), 0, s));
  return {std::move(inputs), a};
}

// A stand-in with the shape and the type of the rows before they were packed; it is never computed.
array unpacked(const char* name, const Packed& x, Quantization quantization) {
  const auto [group_size, bits] = quantization;
  if (bits != 4 && bits != 8) refuse("bits is ", bits, "; kernels read rows of 4 or 8 bits");
  if (group_size != 32 && group_size != 64 && group_size != 128)
    refuse("group_size is ", group_size, "; allowed are 32, 64 and 128");
  if (x.words.ndim() != 4 || x.words.dtype() != mx::uint32)
    refuse(
        name, " with shape ", x.words.shape(), " and type ", x.words.dtype(),
        " is expected to be packed words [batch, heads, length, head_dim * bits / 32] in uint32");
  mx::Shape shape = x.words.shape();
  const int64_t columns = int64_t(shape[3]) * 32 / bits;
  shape[3] = int(columns / group_size);
  for (const array* part : {&x.scales, &x.biases})
    if (part->shape() != shape || columns % group_size != 0)
      refuse("scales and biases of ", name, " with shape ", part->shape(), " are expected to be ",
             shape, " for rows of ", columns, " elements");
  shape[3] = int(columns);
  return mx::broadcast_to(array(0.f, x.scales.dtype()), std::move(shape));
}

// The call as if the cache had never been quantized.
std::pair<Arguments, Checked> check_quantized(const QuantizedArguments& x) {
  Arguments as_if{x.q,
                  unpacked("k", x.k, x.quantization),
                  unpacked("v", x.v, x.quantization),
                  x.mask,
                  x.sinks,
                  x.window,
                  x.softcap};
  Checked checked = check(as_if);
  checked.problem.bits = x.quantization.bits;
  checked.problem.group_size = x.quantization.group_size;
  return {std::move(as_if), checked};
}

// Compiles what the problem runs on the GPU backend, if there is one: the kernel that fails, if one does.
std::optional<Failed> prepare(const Problem& p) {
  const GpuBackend* gpu = gpu_backend();
  if (!gpu) return std::nullopt;
  try {
    noting_failures([&] { gpu->prepare(p); });
  } catch (const KernelFailure& failure) {
    return Failed{failure.kernel(), failure.error()};
  }
  return std::nullopt;
}

void check_carry(const Checked& c, const FusedOptions& o) {
  if (!o.carry) return;
  const Problem& p = c.problem;
  const auto& [out, lse] = *o.carry;
  if (p.sinks) refuse("sinks are counted once: pass them with the first keys, not with a carry");
  if (out.shape() != mx::Shape{p.B, p.Hq, p.Lq, p.Dv} || lse.shape() != mx::Shape{p.B, p.Hq, p.Lq})
    refuse("carry with shapes ", out.shape(), " and ", lse.shape(),
           " is expected to be [B, Hq, Lq, Dv] and [B, Hq, Lq]");
  if (out.dtype() != mx::float32 || lse.dtype() != mx::float32)
    refuse("carry is expected to be float32");
}

// Whether a kernel of ours merges there. One that does not compile is noted, and stock operations take its place.
bool merges_by_kernel(mx::Device device, mx::Dtype dtype) {
  const GpuBackend* gpu = gpu_backend(device);
  if (!gpu) return device == mx::Device::cpu;
  try {
    noting_failures([&] { gpu->prepare_merge(dtype); });
  } catch (const KernelFailure&) {
    return false;
  }
  return true;
}

}  // namespace

Checked check(const Arguments& x) {
  check_shapes(x);
  const mx::Dtype dtype = mx::result_type({x.q, x.k, x.v});
  if (!mx::issubdtype(dtype, mx::floating))
    refuse("received unsupported type ", dtype, "; q, k and v must be floating");
  check_mask(x, dtype);
  check_sinks(x, dtype);
  if (x.window) {
    if (!is_causal(x)) refuse("window needs mask='causal'");
    if (*x.window < 1) refuse("window is ", *x.window, "; it counts keys and must be at least 1");
  }
  if (x.softcap && !(*x.softcap > 0.f && *x.softcap < std::numeric_limits<float>::infinity()))
    refuse("softcap is ", *x.softcap, "; it must be positive and finite");
  const array* mask = mask_array(x);
  return {
      {
          .B = x.q.shape(0),
          .Hq = x.q.shape(1),
          .Hkv = x.k.shape(1),
          .Lq = x.q.shape(2),
          .Lk = x.k.shape(2),
          .D = x.q.shape(3),
          .Dv = x.v.shape(3),
          .dtype = dtype_of(dtype),
          .causal = is_causal(x),
          .window = window_of(x),
          .mask = !mask                        ? MaskKind::None
                  : mask->dtype() == mx::bool_ ? MaskKind::Bool
                                               : MaskKind::Additive,
          .mask_dtype = mask ? dtype_of(mask_dtype(*mask, dtype)) : DType::F32,
          .softcap = x.softcap.has_value(),
          .sinks = x.sinks.has_value(),
          .q_offset = x.k.shape(2) - x.q.shape(2),
      },
      dtype,
  };
}

std::vector<array> fused_attention(const Arguments& x, float scale, const FusedOptions& o,
                                   mx::StreamOrDevice s) {
  const Checked checked = check(x);
  if (checked.dtype == mx::float64)
    refuse("the fused kernels compute in float32; float64 needs path='stock' or 'unfused'");
  if (o.chunk_size < 0)
    refuse("chunk_size is ", o.chunk_size, "; it counts keys, 0 means all at once");
  check_carry(checked, o);
  const mx::Stream stream = mx::to_stream(s);
  // The plan is asked again at evaluation; here it refuses early, where the caller's line is still on the stack.
  if (const auto no = unsupported(checked.problem, device_of(stream.device))) refuse(no->reason);
  auto [inputs, a] = lower(x, checked, scale, s);
  a.chunk_size = o.chunk_size;
  // The CPU's gradient kernel starts from it, and whether a gradient is traced cannot be asked of MLX.
  a.want_lse = o.return_lse || cpu_kernels_on(stream.device);
  a.want_f32 = o.float32_out;
  a.q_offset = o.q_offset;
  if (o.carry) {
    a.has_carry = true;
    inputs.push_back(mx::contiguous(o.carry->first, false, s));
    inputs.push_back(mx::contiguous(o.carry->second, false, s));
  }
  std::vector<array> out = Sdpa::make(std::move(inputs), a, stream);
  if (!o.return_lse) out.resize(1, out[0]);
  return out;
}

std::vector<array> quantized_attention(const QuantizedArguments& x, float scale, bool return_lse,
                                       mx::StreamOrDevice s) {
  const auto [as_if, checked] = check_quantized(x);
  if (checked.dtype == mx::float64)
    refuse("the kernels for quantized caches compute in float32, not in float64");
  const mx::Stream stream = mx::to_stream(s);
  if (const auto no = unsupported(checked.problem, device_of(stream.device))) refuse(no->reason);
  auto [inputs, a] = lower(as_if, checked, scale, s);
  a.want_lse = return_lse;
  a.bits = x.quantization.bits;
  a.group_size = x.quantization.group_size;
  inputs[1] = x.k.words;
  inputs[2] = x.v.words;
  for (const array* part : {&x.k.scales, &x.k.biases, &x.v.scales, &x.v.biases})
    inputs.push_back(mx::astype(*part, checked.dtype, s));
  return Sdpa::make(std::move(inputs), a, stream);
}

std::optional<Failed> prepare(const Arguments& x, const FusedOptions& o, bool carry) {
  Problem p = check(x).problem;
  p.chunk_size = o.chunk_size;
  p.want_lse = o.return_lse;
  p.want_f32 = o.float32_out;
  p.carry = carry;
  return prepare(p);
}

std::optional<Failed> prepare_quantized(const QuantizedArguments& x) {
  return prepare(check_quantized(x).second.problem);
}

std::vector<array> unfused_attention(const Arguments& x, float scale, int block_rows,
                                     bool return_lse, mx::StreamOrDevice s) {
  const Checked checked = check(x);
  if (block_rows < 0)
    refuse("block_rows is ", block_rows, "; it counts query rows, 0 means all at once");
  auto [inputs, a] = lower(x, checked, scale, s);
  a.want_lse = return_lse;
  return unfused(inputs, a, block_rows, return_lse, s);
}

std::vector<array> merge(const std::vector<array>& outputs, const std::vector<array>& lses,
                         mx::StreamOrDevice s) {
  auto refuse_merge = [](const auto&... parts) {
    std::ostringstream message;
    message << "[merge] ";
    (message << ... << parts);
    throw std::invalid_argument(message.str());
  };
  if (outputs.empty() || outputs.size() != lses.size())
    refuse_merge("expected as many outputs as lses, and at least one; got ", outputs.size(),
                 " and ", lses.size());
  const mx::Dtype dtype = mx::result_type(outputs);
  if (dtype != mx::float32 && dtype != mx::float16 && dtype != mx::bfloat16)
    refuse_merge("outputs must be float32, float16 or bfloat16; got ", dtype);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const mx::Shape& shape = outputs[i].shape();
    if (shape.size() != 4 || shape != outputs[0].shape())
      refuse_merge("outputs[", i, "] with shape ", shape,
                   " is expected to be [B, Hq, Lq, Dv] like outputs[0], ", outputs[0].shape());
    if (lses[i].shape() != mx::Shape{shape[0], shape[1], shape[2]} ||
        lses[i].dtype() != mx::float32)
      refuse_merge("lses[", i, "] with shape ", lses[i].shape(), " and type ", lses[i].dtype(),
                   " is expected to be float32 [B, Hq, Lq]");
  }
  std::vector<array> inputs;
  for (const array& x : outputs)
    inputs.push_back(mx::contiguous(mx::astype(x, dtype, s), false, s));
  for (const array& x : lses) inputs.push_back(mx::contiguous(x, false, s));
  const mx::Stream stream = mx::to_stream(s);
  if (!merges_by_kernel(stream.device, dtype)) return merge_on_stock(inputs, s);
  return SdpaMerge::make(std::move(inputs), stream);
}

}  // namespace sdpa
