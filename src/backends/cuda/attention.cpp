#include "src/backends/cuda/attention.h"

#include <stdexcept>

#include "src/backends/cuda/commands.h"
#include "src/backends/cuda/device.h"
#include "src/backends/cuda/kernels.h"
#include "src/backends/cuda/merge.h"
#include "src/backends/cuda/tensor_map.h"
#include "src/launch.h"

namespace sdpa::cuda {

namespace {

using mx::array;

Problem problem_here(const Inputs& in, const Attributes& a) {
  Problem p = problem_of(in, a);
  p.rows_are = !(vector_rows(in.q) && vector_rows(in.k) && vector_rows(in.v)) ? Rows::Any
               : p.Lk > 0 && tiled(in.k) && tiled(in.v)                       ? Rows::Tiled
                                                                              : Rows::Vector;
  return p;
}

Plan plan_or_throw(const Problem& p) {
  auto answer = plan(p, device());
  if (const auto* no = std::get_if<Unsupported>(&answer)) throw std::invalid_argument(no->reason);
  return std::get<Plan>(std::move(answer));
}

Variant variant_of(const Problem& p, const Plan& plan) {
  return {
      .dtype = p.dtype,
      .mask = p.mask,
      .mask_dtype = p.mask_dtype,
      .softcap = p.softcap,
      .out_f32 = plan.merges || p.want_f32,
      .vector = p.rows_are != Rows::Any,
      .bits = p.bits,
      .group = p.group_size,
  };
}

// All that can fail fails here, before the first launch.
CUfunc_st* compiled(const Problem& p, const Plan& plan) {
  if (plan.merges) {
    merge_kernel(p.dtype, true, p.want_f32);
    if (plan.chunks > 1) merge_kernel(p.dtype, true, true);
  }
  return attention_kernel(plan, variant_of(p, plan));
}

QuantizedRows groups(const array& scales, const array& biases) {
  const Strides s = strides_of(scales), t = strides_of(biases);
  if (s.batch != t.batch || s.head != t.head || s.row != t.row)
    throw std::invalid_argument(
        "[scaled_dot_product_attention] the scales and the biases of a quantized cache are "
        "expected to have the same strides");
  return {pointer(scales), pointer(biases), s.batch, s.head, s.row};
}

class Attention {
 public:
  Attention(const Inputs& in, const Problem& p, const Params& params, const Plan& plan,
            CUfunc_st* kernel, std::vector<array>& outputs, Commands& commands)
      : in_(in), p_(p), plan_(plan), kernel_(kernel), commands_(commands), O_(outputs[0]),
        lse_(p.want_lse ? &outputs[1] : nullptr), sum_(O_), sum_lse_(O_), parts_(O_),
        part_lses_(O_) {
    if (plan.merges) {
      parts_ = commands.scratch({plan.splits, p.B, p.Hq, p.Lq, p.Dv}, mx::float32);
      part_lses_ = commands.scratch({plan.splits, p.B, p.Hq, p.Lq}, mx::float32);
    }
    if (plan.chunks > 1) {
      if (!p.want_f32) sum_ = commands.scratch(O_.shape(), mx::float32);
      sum_lse_ = lse_ ? *lse_ : commands.scratch({p.B, p.Hq, p.Lq}, mx::float32);
    }
    if (plan.tile.kernel == Kernel::narrow || plan.tile.kernel == Kernel::wide) {
      arguments_.K_map = tensor_map(in.k, plan.launch.box_rows_k);
      arguments_.V_map = tensor_map(in.v, plan.launch.box_rows_v);
    }
    arguments_.Q = pointer(in.q);
    arguments_.K = pointer(in.k);
    arguments_.V = pointer(in.v);
    arguments_.mask = in.mask ? pointer(*in.mask) : nullptr;
    arguments_.sinks = in.sinks ? pointer(*in.sinks) : nullptr;
    if (in.k_scales) {
      arguments_.K_groups = groups(*in.k_scales, *in.k_biases);
      arguments_.V_groups = groups(*in.v_scales, *in.v_biases);
    }
    arguments_.p = params;
  }

  void run() {
    for (size_t i = 0; i < plan_.dispatches.size(); ++i) {
      const Dispatch& d = plan_.dispatches[i];
      dispatch(d);
      const bool ends =
          i + 1 == plan_.dispatches.size() || plan_.dispatches[i + 1].chunk != d.chunk;
      if (ends && plan_.merges) merge_parts(d.chunk, d.split0 + d.part.splits);
    }
  }

 private:
  int64_t rows() const { return int64_t(p_.B) * p_.Hq * p_.Lq; }

  void dispatch(const Dispatch& d) {
    array& O = plan_.merges ? parts_ : O_;
    array* lse = plan_.merges ? &part_lses_ : lse_;
    for (const array* x : {&in_.q, &in_.k, &in_.v, in_.mask, in_.sinks, in_.k_scales, in_.k_biases,
                           in_.v_scales, in_.v_biases})
      if (x) commands_.reads(*x);
    // MLX orders a write after the write before it, not after the reads of that; the merge of the last chunk reads the
    // parts that this one overwrites, so wait for what it writes.
    if (d.chunk > 0) commands_.reads(sum_lse_);
    commands_.writes(O);
    if (lse) commands_.writes(*lse);
    const int64_t first = int64_t(d.split0) * rows();
    arguments_.O = static_cast<char*>(pointer(O)) + first * p_.Dv * int64_t(sizeof(float));
    arguments_.lse = lse ? static_cast<float*>(pointer(*lse)) + first : nullptr;
    arguments_.part = d.part;
    arguments_.part.with_carry = false;  // the merge continues from it
    const unsigned cluster = unsigned(plan_.launch.cluster);
    const unsigned tiles = unsigned(ceil_div(d.part.row_tiles, cluster)) * cluster;
    commands_.launch(kernel_,
                     {.blocks = {tiles, unsigned(d.part.heads), unsigned(d.part.splits)},
                      .threads = {unsigned(plan_.threads), 1, 1},
                      .shared_bytes = unsigned(plan_.threadgroup_bytes),
                      .cluster = cluster},
                     arguments_);
  }

  void merge_parts(int chunk, int splits) {
    const bool last = chunk + 1 == plan_.chunks;
    const array* carry = chunk ? &sum_ : in_.carry_out;
    merge(commands_, p_.dtype,
          {.parts = parts_,
           .part_lses = part_lses_,
           .out = last ? O_ : sum_,
           .lse = last ? lse_ : &sum_lse_,
           .carry_out = carry,
           .carry_lse = chunk ? &sum_lse_ : in_.carry_lse},
          splits, rows(), p_.Dv);
  }

  const Inputs& in_;
  const Problem& p_;
  const Plan& plan_;
  CUfunc_st* const kernel_;
  Commands& commands_;
  array& O_;
  array* lse_;           // null if not wanted
  array sum_, sum_lse_;  // running result between chunks, float: O itself where that is float
  array parts_;          // [splits, B, Hq, Lq, Dv], float
  array part_lses_;      // [splits, B, Hq, Lq]
  Arguments arguments_{};
};

}  // namespace

void prepare(const Problem& problem) {
  for (Rows rows : {Rows::Tiled, Rows::Any}) {
    Problem p = problem;
    p.rows_are = rows;
    compiled(p, plan_or_throw(p));
  }
}

void eval_attention(const Inputs& in, const Attributes& a, std::vector<array>& outputs,
                    mx::Stream stream) {
  Commands commands(stream);
  if (outputs[0].size() == 0) {
    for (array& x : outputs) commands.allocate(x);
    return;
  }
  const Problem p = problem_here(in, a);
  const Plan plan = plan_or_throw(p);
  CUfunc_st* kernel = compiled(p, plan);
  for (array& x : outputs) commands.allocate(x);
  Attention(in, p, params_of(p, in, a), plan, kernel, outputs, commands).run();
}

}  // namespace sdpa::cuda
