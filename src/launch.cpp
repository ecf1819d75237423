#include "src/launch.h"

#include <mlx/allocator.h>

namespace sdpa {

using mx::array;

DType dtype_of(mx::Dtype t) {
  return t == mx::float16 ? DType::F16 : t == mx::bfloat16 ? DType::BF16 : DType::F32;
}

int columns_of(const array& x, const Attributes& a) {
  return a.bits ? int(int64_t(x.shape(3)) * 32 / a.bits) : x.shape(3);
}

Strides strides_of(const array& x) {
  return {
      x.shape(0) == 1 ? 0 : x.strides(0),
      x.shape(1) == 1 ? 0 : x.strides(1),
      x.shape(2) == 1 ? 0 : x.strides(2),
      // a single column is as good as contiguous, and lets vector loads be chosen
      x.shape(3) == 1 ? 1 : x.strides(3),
  };
}

bool vector_rows(const array& x) {
  const Strides s = strides_of(x);
  bool aligned = s.col == 1 && x.offset() % 16 == 0;
  for (int64_t step : {s.batch, s.head, s.row})
    aligned = aligned && step * int64_t(x.itemsize()) % 16 == 0;
  return aligned;
}

Problem problem_of(const Inputs& in, const Attributes& a) {
  return {
      .B = in.q.shape(0),
      .Hq = in.q.shape(1),
      .Hkv = in.k.shape(1),
      .Lq = in.q.shape(2),
      .Lk = in.k.shape(2),
      .D = in.q.shape(3),
      .Dv = columns_of(in.v, a),
      .dtype = dtype_of(in.q.dtype()),
      .causal = a.causal,
      .window = a.window,
      .mask = !in.mask                        ? MaskKind::None
              : in.mask->dtype() == mx::bool_ ? MaskKind::Bool
                                              : MaskKind::Additive,
      .mask_dtype =
          in.mask && in.mask->dtype() != mx::bool_ ? dtype_of(in.mask->dtype()) : DType::F32,
      .softcap = a.softcap != 0.f,
      .sinks = in.sinks != nullptr,
      .carry = in.carry_out != nullptr,
      .want_lse = a.want_lse,
      .want_f32 = a.want_f32,
      .q_offset = in.q_offset(a),
      .chunk_size = a.chunk_size,
      .bits = a.bits,
      .group_size = a.group_size,
  };
}

Params params_of(const Problem& p, const Inputs& in, const Attributes& a) {
  Params out{
      .B = p.B,
      .Hq = p.Hq,
      .Hkv = p.Hkv,
      .group = p.Hq / p.Hkv,
      .Lq = p.Lq,
      .Lk = p.Lk,
      .D = p.D,
      .Dv = p.Dv,
      .q_offset = p.q_offset,
      .causal = p.causal,
      .window = p.window,
      .scale = a.scale,
      .softcap = a.softcap,
      .dtype = p.dtype,
      .mask = p.mask,
      .mask_dtype = p.mask_dtype,
      .Qs = strides_of(in.q),
      .Ks = strides_of(in.k),
      .Vs = strides_of(in.v),
      .Ms = {},
      .sink_batch = 0,
      .sink_head = 0,
  };
  if (in.mask) {
    out.Ms = strides_of(*in.mask);
    if (in.mask->shape(3) == 1) out.Ms.col = p.Lk == 1 ? 1 : 0;  // broadcast over the keys
  }
  if (in.sinks) {
    out.sink_batch = in.sinks->shape(0) == 1 ? 0 : in.sinks->strides(0);
    out.sink_head = in.sinks->strides(1);
  }
  return out;
}

void allocate(array& x) { x.set_data(mx::allocator::malloc(x.nbytes())); }

}  // namespace sdpa
