#include "src/backends/cuda/merge.h"

#include "kernels/cuda/merge_tile.h"
#include "src/backends/cuda/kernels.h"
#include "src/launch.h"

namespace sdpa::cuda {

using mx::array;

void merge(Commands& commands, DType dtype, const MergeArrays& x, int n, int64_t rows, int Dv) {
  const bool parts_f32 = x.parts.dtype() == mx::float32, out_f32 = x.out.dtype() == mx::float32;
  commands.reads(x.parts);
  commands.reads(x.part_lses);
  if (x.carry_out) {
    commands.reads(*x.carry_out);
    commands.reads(*x.carry_lse);
  }
  commands.writes(x.out);
  if (x.lse) commands.writes(*x.lse);
  MergeArguments arguments{
      .parts = pointer(x.parts),
      .part_lses = static_cast<const float*>(pointer(x.part_lses)),
      .carry_O = x.carry_out ? static_cast<const float*>(pointer(*x.carry_out)) : nullptr,
      .carry_lse = x.carry_lse ? static_cast<const float*>(pointer(*x.carry_lse)) : nullptr,
      .O = pointer(x.out),
      .lse = x.lse ? static_cast<float*>(pointer(*x.lse)) : nullptr,
      .m = {.n = n, .Dv = Dv, .rows = rows, .with_carry = x.carry_out != nullptr},
  };
  const MergeLaunch l = merge_launch(n, rows, Dv, x.carry_out != nullptr);
  commands.launch(merge_kernel(dtype, parts_f32, out_f32),
                  {.blocks = {unsigned(l.blocks), unsigned(l.chunks), 1},
                   .threads = {32, unsigned(l.groups), unsigned(l.rows)},
                   .shared_bytes = 0},
                  arguments);
}

void prepare_merge(mx::Dtype dtype) {
  const DType t = dtype_of(dtype);
  const bool f32 = t == DType::F32;
  merge_kernel(t, f32, f32);
  merge_kernel(t, f32, true);
}

// The parts lie in arrays of their own, so they are added up one after the other, in float.
void eval_merge(const std::vector<array>& inputs, std::vector<array>& outputs, mx::Stream stream) {
  const int n = int(inputs.size()) / 2, Dv = outputs[0].shape(-1);
  const int64_t rows = int64_t(outputs[1].size());
  const DType dtype = dtype_of(outputs[0].dtype());
  prepare_merge(outputs[0].dtype());  // all that can fail fails before the first launch
  Commands commands(stream);
  for (array& x : outputs) commands.allocate(x);
  if (rows == 0 || Dv == 0) return;
  const bool in_place = n == 1 || dtype == DType::F32;
  array sum = in_place ? outputs[0] : commands.scratch(outputs[0].shape(), mx::float32);
  for (int i = 0; i < n; ++i) {
    merge(commands, dtype,
          {.parts = inputs[i],
           .part_lses = inputs[n + i],
           .out = i + 1 == n ? outputs[0] : sum,
           .lse = &outputs[1],
           .carry_out = i ? &sum : nullptr,
           .carry_lse = i ? &outputs[1] : nullptr},
          1, rows, Dv);
  }
}

}  // namespace sdpa::cuda
