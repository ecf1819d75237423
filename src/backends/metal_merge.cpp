#include "src/backends/metal_merge.h"

#include <algorithm>

#include "kernels/metal/arguments.h"
#include "src/backends/metal.h"
#include "src/backends/metal_device.h"
#include "src/launch.h"

namespace sdpa::metal {

namespace {

using mx::array;

constexpr int kSimdgroups = 8;  // of a threadgroup, a row each
constexpr int kFewRows = 64;    // then one, so that the rows spread over the cores

// Vector loads: every row of every operand starts at a multiple of four elements.
bool vector_rows(const std::vector<array>& inputs, int Dv) {
  return Dv % 4 == 0 && std::all_of(inputs.begin(), inputs.end(), [](const array& x) {
           return x.offset() % (4 * int64_t(x.itemsize())) == 0;
         });
}

}  // namespace

void merge(Commands& commands, const Pipeline& pipeline, const MergeArrays& x, int n, int64_t rows,
           int Dv) {
  const int simdgroups = std::min(rows <= kFewRows ? 1 : kSimdgroups, pipeline.max_threads / 32);
  commands.reserve(4. * double(n) * double(rows) * Dv);
  auto& encoder = commands.encoder();
  encoder.set_compute_pipeline_state(pipeline.state);
  encoder.set_input_array(x.parts, kBufferParts);
  encoder.set_input_array(x.part_lses, kBufferPartLses);
  encoder.set_input_array(x.carry_out ? *x.carry_out : x.parts, kBufferCarryO);
  encoder.set_input_array(x.carry_lse ? *x.carry_lse : x.part_lses, kBufferCarryLse);
  encoder.set_output_array(x.out, kBufferO);
  if (x.lse) {
    encoder.set_output_array(*x.lse, kBufferLse);
  } else {
    encoder.set_input_array(x.part_lses, kBufferLse);
  }
  encoder.set_bytes(
      MergeParams{.n = n, .Dv = Dv, .rows = rows, .with_carry = x.carry_out != nullptr},
      kBufferMerge);
  encoder.dispatch_threadgroups(
      MTL::Size(ceil_div(Dv, kMergedColumns), ceil_div(rows, simdgroups), 1),
      MTL::Size(32 * simdgroups, 1, 1));
}

void prepare_merge(mx::Dtype dtype) {
  const DType in = dtype_of(dtype);
  for (DType out : {in, DType::F32}) merge_pipeline(in, out, {.lse = true});
}

// The parts lie in arrays of their own, so they are added up one after the other, in float.
void eval_merge(const std::vector<array>& inputs, std::vector<array>& outputs, mx::Stream stream) {
  const int n = int(inputs.size()) / 2, Dv = outputs[0].shape(-1);
  const int64_t rows = int64_t(outputs[1].size());
  const DType dtype = dtype_of(outputs[0].dtype());
  const bool vector = vector_rows(inputs, Dv);
  if (rows == 0 || Dv == 0) {
    for (array& x : outputs) allocate(x);
    return;
  }
  const auto compiled = [&](DType out, bool carry) {
    return merge_pipeline(dtype, out, {.lse = true, .carry = carry, .vector = vector});
  };
  const Pipeline last = compiled(dtype, n > 1);
  const Pipeline first = n > 1 ? compiled(DType::F32, false) : last;
  const Pipeline inner = n > 2 ? compiled(DType::F32, true) : last;

  for (array& x : outputs) allocate(x);
  Commands commands(stream, device().dispatch_flops);
  // The sum of the parts so far: each element is read and written by one thread, but the lse of a row is read by
  // several, so it changes places.
  array sum = dtype == DType::F32 || n == 1 ? outputs[0]
                                            : commands.scratch(outputs[0].shape(), mx::float32);
  array lse[2] = {outputs[1], outputs[1]};
  if (n > 1)
    for (array& x : lse) x = commands.scratch(outputs[1].shape(), mx::float32);
  for (int i = 0; i < n; ++i) {
    const bool end = i + 1 == n;
    merge(commands,
          end ? last
          : i ? inner
              : first,
          {.parts = inputs[i],
           .part_lses = inputs[n + i],
           .out = end ? outputs[0] : sum,
           .lse = end ? &outputs[1] : &lse[i % 2],
           .carry_out = i ? &sum : nullptr,
           .carry_lse = i ? &lse[(i + 1) % 2] : nullptr},
          1, rows, Dv);
  }
  commands.finish();
}

}  // namespace sdpa::metal
