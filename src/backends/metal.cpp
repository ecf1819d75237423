#include "src/backends/metal.h"

#include <mlx/backend/common/utils.h>

#include "kernels/metal/arguments.h"
#include "src/backends/metal_commands.h"
#include "src/backends/metal_device.h"
#include "src/backends/metal_merge.h"
#include "src/backends/metal_ready.h"
#include "src/backends/metal_source.h"
#include "src/launch.h"

namespace sdpa::metal {

namespace {

using mx::array;

// O may take Q's place when nobody reads Q after the first byte of O is written. Merged splits write O in a dispatch
// after all that read Q. Else that holds where one threadgroup has all rows of a KV head, as in decode: Q and O of a
// head lie in the same place, and the kernel copies its Q to threadgroup memory, behind a barrier, before the first
// key. Chunks read Q again after the first one. Kernels store 16 bytes at a time, so Q must start at such a place.
bool donates(const array& q, const array& out, const Plan& plan) {
  const bool read_first = plan.splits > 1 || plan.tile.kernel == Kernel::decode;
  return read_first && plan.chunks == 1 && mx::is_donatable(q, out) && q.flags().row_contiguous &&
         q.offset() % 16 == 0 && q.dtype() == out.dtype() && q.shape() == out.shape();
}

// The encoding of one call.
class Attention {
 public:
  Attention(const Inputs& in, const Problem& p, const Params& params, const Ready& ready,
            std::vector<array>& outputs, Commands& commands)
      : in_(in), p_(p), params_(params), ready_(ready), plan_(ready.plan), commands_(commands),
        O_(outputs[0]), lse_(p.want_lse ? &outputs[1] : nullptr), carry_O_(O_), carry_lse_{O_, O_},
        partial_O_(O_), partial_lse_(O_) {
    const bool O_is_f32 = p.dtype == DType::F32 || p.want_f32;
    if (plan_.chunks > 1) {
      if (!O_is_f32) carry_O_ = commands.scratch(O_.shape(), mx::float32);
      for (int i = 0; i < std::min(plan_.chunks - 1, 2); ++i)
        carry_lse_[i] = commands.scratch({p.B, p.Hq, p.Lq}, mx::float32);
    }
    if (plan_.splits > 1) {
      partial_O_ = commands.scratch({plan_.splits, p.B, p.Hq, p.Lq, p.Dv}, mx::float32);
      partial_lse_ = commands.scratch({plan_.splits, p.B, p.Hq, p.Lq}, mx::float32);
    }
  }

  void run() {
    int splits = 0;  // of the chunk, so far
    for (size_t i = 0; i < plan_.dispatches.size(); ++i) {
      const Dispatch& d = plan_.dispatches[i];
      dispatch(d);
      splits = std::max(splits, d.split0 + d.part.splits);
      const bool chunk_ends =
          i + 1 == plan_.dispatches.size() || plan_.dispatches[i + 1].chunk != d.chunk;
      if (!chunk_ends) continue;
      if (plan_.splits > 1) merge_splits(d.chunk, splits);
      splits = 0;
    }
    commands_.finish();
  }

 private:
  int64_t rows() const { return int64_t(p_.B) * p_.Hq * p_.Lq; }
  bool last(int chunk) const { return chunk + 1 == plan_.chunks; }
  array& out(int chunk) { return last(chunk) ? O_ : carry_O_; }
  array* out_lse(int chunk) { return last(chunk) ? lse_ : &carry_lse_[chunk % 2]; }

  void dispatch(const Dispatch& d) {
    commands_.reserve(d.flops);
    auto& encoder = commands_.encoder();
    encoder.set_compute_pipeline_state(ready_.stage(d.chunk).attention.state);
    encoder.set_input_array(in_.q, kBufferQ);
    encoder.set_input_array(in_.k, kBufferK);
    encoder.set_input_array(in_.v, kBufferV);
    input_or_q(in_.mask, kBufferMask);
    input_or_q(in_.sinks, kBufferSinks);
    const bool first = d.chunk == 0;
    input_or_q(first ? in_.carry_out : &carry_O_, kBufferCarryO);
    input_or_q(first ? in_.carry_lse : &carry_lse_[(d.chunk + 1) % 2], kBufferCarryLse);
    if (plan_.splits > 1) {
      const int64_t bytes = d.split0 * rows() * int64_t(sizeof(float));
      encoder.set_output_array(partial_O_, kBufferO, bytes * p_.Dv);
      encoder.set_output_array(partial_lse_, kBufferLse, bytes);
    } else {
      encoder.set_output_array(out(d.chunk), kBufferO);
      if (array* lse = out_lse(d.chunk)) {
        encoder.set_output_array(*lse, kBufferLse);
      } else {
        encoder.set_input_array(in_.q, kBufferLse);
      }
    }
    encoder.set_bytes(params_, kBufferParams);
    encoder.set_bytes(d.part, kBufferPart);
    encoder.dispatch_threadgroups(MTL::Size(d.part.row_tiles, d.part.heads, d.part.splits),
                                  MTL::Size(plan_.threads, 1, 1));
  }

  // No index may be left unbound; kernels do not read what their constants leave out.
  void input_or_q(const array* x, int index) {
    commands_.encoder().set_input_array(x ? *x : in_.q, index);
  }

  void merge_splits(int chunk, int splits) {
    merge(
        commands_, ready_.stage(chunk).merge,
        {.parts = partial_O_, .part_lses = partial_lse_, .out = out(chunk), .lse = out_lse(chunk)},
        splits, rows(), p_.Dv);
  }

  const Inputs& in_;
  const Problem& p_;
  const Params& params_;
  const Ready& ready_;
  const Plan& plan_;
  Commands& commands_;
  array& O_;
  array* lse_;     // null if not wanted
  array carry_O_;  // running result between chunks, float: O itself where that is float
  array carry_lse_
      [2];           // in turns: an lse is read by several simdgroups, one of which writes the next
  array partial_O_;  // [splits, B, Hq, Lq, Dv]
  array partial_lse_;  // [splits, B, Hq, Lq]
};

void prepare(const Problem& p) {
  for (bool vector : {true, false}) make_ready(p, vector);
}

}  // namespace

void eval_attention(const Inputs& in, const Attributes& a, std::vector<array>& outputs,
                    mx::Stream stream) {
  if (outputs[0].size() == 0) {
    for (array& x : outputs) allocate(x);
    return;
  }
  const Problem p = problem_of(in, a);
  const Params params = params_of(p, in, a);
  const Ready ready = make_ready(p, vector_rows(in.q) && vector_rows(in.k) && vector_rows(in.v));

  if (donates(in.q, outputs[0], ready.plan)) {
    outputs[0].copy_shared_buffer(in.q);
  } else {
    allocate(outputs[0]);
  }
  if (a.want_lse) allocate(outputs[1]);
  Commands commands(stream, device().dispatch_flops);
  Attention(in, p, params, ready, outputs, commands).run();
}

const GpuBackend& backend() {
  static const GpuBackend one{
      .name = "metal",
      .on_cpu_stream = false,
      .device = device,
      .set_limits = set_limits,
      .set_kernel_folder = set_kernel_folder,
      .kernel_folder = kernel_folder,
      .set_cache_folder = nullptr,
      .prepare = prepare,
      .prepare_merge = prepare_merge,
      .eval_attention = eval_attention,
      .eval_merge = eval_merge,
  };
  return one;
}

}  // namespace sdpa::metal
