#include "src/backends/cpu.h"

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "kernels/cpu/kernels.h"
#include "src/backends/cpu_device.h"
#include "src/backends/cpu_pool.h"
#include "src/backends/cpu_scratch.h"
#include "src/backends/cpu_tasks.h"
#include "src/launch.h"

namespace sdpa::cpu {

namespace {

using mx::array;

// One evaluation, complete with its memory: what runs on the stream's thread.
struct Launch {
  Plan plan;
  Params p;
  Operands x;
  const Kernels* kernels;
  int threads;
  bool want_f32;

  char* tile_scratch = nullptr;  // threads * tile_bytes
  size_t tile_bytes = 0;
  void* O = nullptr;         // the result
  float* lse = nullptr;      // the result, or null
  float* carry_O = nullptr;  // running result between chunks, may be O itself
  float* carry_lse = nullptr;
  float* partial_O = nullptr;    // [splits, B, Hq, Lq, Dv]
  float* partial_lse = nullptr;  // [splits, B, Hq, Lq]

  std::vector<const void*> parts;       // partial_O by split
  std::vector<const float*> part_lses;  // partial_lse by split

  int64_t rows() const { return int64_t(p.B) * p.Hq * p.Lq; }

  void operator()() const {
    for (int c = 0; c < plan.chunks; ++c) chunk(c);
  }

 private:
  void chunk(int c) const {
    const bool first = c == 0, last = c + 1 == plan.chunks;
    Operands in = x;
    if (!first) {
      in.carry_O = carry_O;
      in.carry_lse = carry_lse;
    }
    void* out = last ? O : carry_O;
    const bool out_f32 = !last || want_f32;
    float* out_lse = last ? lse : carry_lse;

    const auto run = in.bits                               ? kernels->quantized
                     : plan.tile.kernel == Kernel::prefill ? kernels->prefill
                                                           : kernels->decode;
    Pool::instance().run(plan.tasks, threads, [&](int64_t i, int worker) {
      const int split = split_of(plan, i);
      Task task = task_of(plan, p, c, i);
      task.with_sinks = first && split == 0 && in.sinks;
      task.with_carry = split == 0 && in.carry_O;
      task.O = out;
      task.O_is_f32 = out_f32;
      task.lse = out_lse;
      if (plan.splits > 1) {
        task.O = partial_O + split * rows() * p.Dv;
        task.O_is_f32 = true;
        task.lse = partial_lse + split * rows();
      }
      run(p, in, task, tile_scratch + worker * tile_bytes);
    });
    if (plan.splits > 1) merge(out, out_f32, out_lse);
  }

  void merge(void* out, bool out_f32, float* out_lse) const {
    const MergeTask task{
        .n = plan.splits,
        .O = parts.data(),
        .lse = part_lses.data(),
        .row0 = 0,
        .row1 = 0,
        .Dv = p.Dv,
        .dtype = p.dtype,
        .in_f32 = true,
        .out_f32 = out_f32,
        .out = out,
        .out_lse = out_lse,
    };
    merge_in_parallel(*kernels, task, rows(), threads);
  }

 public:
  static void merge_in_parallel(const Kernels& kernels, const MergeTask& task, int64_t rows,
                                int threads) {
    constexpr int64_t kRows = 64;
    Pool::instance().run((rows + kRows - 1) / kRows, threads, [&](int64_t i, int) {
      MergeTask part = task;
      part.row0 = i * kRows;
      part.row1 = std::min(rows, part.row0 + kRows);
      kernels.merge(part);
    });
  }
};

Groups groups_of(const array& scales, const array& biases) {
  return {scales.data<void>(), biases.data<void>(), strides_of(scales), strides_of(biases)};
}

}  // namespace

void eval_attention(const Inputs& in, const Attributes& a, std::vector<array>& outputs,
                    mx::Stream stream) {
  for (array& x : outputs) allocate_output(x);
  if (outputs[0].size() == 0 && (!a.want_lse || outputs[1].size() == 0)) return;

  const Problem problem = problem_of(in, a);
  const Device on = device();
  const auto answer = plan(problem, on);
  if (const auto* no = std::get_if<Unsupported>(&answer))
    throw std::invalid_argument("[scaled_dot_product_attention] " + no->reason);

  auto& encoder = mx::cpu::get_command_encoder(stream);
  encoder.set_input_array(in.q);
  encoder.set_input_array(in.k);
  encoder.set_input_array(in.v);
  for (const array* x : {in.mask, in.sinks, in.carry_out, in.carry_lse, in.k_scales, in.k_biases,
                         in.v_scales, in.v_biases})
    if (x) encoder.set_input_array(*x);
  for (array& x : outputs) encoder.set_output_array(x);

  auto launch = std::make_shared<Launch>();
  launch->plan = std::get<Plan>(answer);
  const Plan& plan = launch->plan;
  launch->p = params_of(problem, in, a);
  launch->kernels = &kernels_in_use();
  launch->threads = int(std::min<int64_t>(on.threads, std::max<int64_t>(plan.tasks, 1)));
  launch->want_f32 = a.want_f32;
  launch->x = Operands{
      .Q = in.q.data<void>(),
      .K = in.k.data<void>(),
      .V = in.v.data<void>(),
      .mask = in.mask ? in.mask->data<void>() : nullptr,
      .sinks = in.sinks ? in.sinks->data<void>() : nullptr,
      .carry_O = in.carry_out ? in.carry_out->data<float>() : nullptr,
      .carry_lse = in.carry_lse ? in.carry_lse->data<float>() : nullptr,
  };
  if (a.bits) {
    launch->x.bits = a.bits;
    launch->x.group_size = a.group_size;
    launch->x.K_groups = groups_of(*in.k_scales, *in.k_biases);
    launch->x.V_groups = groups_of(*in.v_scales, *in.v_biases);
    launch->x.exact = a.want_lse || problem.dtype == DType::F32;
  }
  launch->O = outputs[0].data<void>();
  launch->lse = a.want_lse ? outputs[1].data<float>() : nullptr;

  const Kernels& kernels = *launch->kernels;
  const int bq = plan.tile.bq, bk = plan.tile.bk;
  const size_t tile_bytes = a.bits ? kernels.quantized_scratch(launch->p, launch->x, bq, bk)
                            : plan.tile.kernel == Kernel::prefill
                                ? kernels.prefill_scratch(launch->p, bq, bk)
                                : kernels.decode_scratch(launch->p, bq, bk);
  launch->tile_bytes = (tile_bytes + 63) / 64 * 64;
  launch->tile_scratch = scratch<char>(int64_t(launch->tile_bytes) * launch->threads, encoder);
  const int64_t rows = launch->rows();
  if (plan.splits > 1) {
    launch->partial_O = scratch<float>(plan.partial_bytes, encoder);
    launch->partial_lse = launch->partial_O + plan.splits * rows * problem.Dv;
    for (int i = 0; i < plan.splits; ++i) {
      launch->parts.push_back(launch->partial_O + i * rows * problem.Dv);
      launch->part_lses.push_back(launch->partial_lse + i * rows);
    }
  }
  if (plan.chunks > 1) {
    const bool in_place = problem.dtype == DType::F32 || a.want_f32;
    launch->carry_O =
        in_place ? static_cast<float*>(launch->O) : scratch<float>(rows * problem.Dv * 4, encoder);
    launch->carry_lse = a.want_lse ? launch->lse : scratch<float>(rows * 4, encoder);
  }
  Pool::instance().reserve(launch->threads);
  encoder.dispatch([launch] { (*launch)(); });
}

void eval_merge(const std::vector<array>& inputs, std::vector<array>& outputs, mx::Stream stream) {
  for (array& x : outputs) allocate_output(x);
  if (outputs[1].size() == 0) return;
  const int n = int(inputs.size()) / 2;
  auto& encoder = mx::cpu::get_command_encoder(stream);
  std::vector<const void*> parts;
  std::vector<const float*> lses;
  for (int i = 0; i < n; ++i) {
    encoder.set_input_array(inputs[i]);
    encoder.set_input_array(inputs[n + i]);
    parts.push_back(inputs[i].data<void>());
    lses.push_back(inputs[n + i].data<float>());
  }
  for (array& x : outputs) encoder.set_output_array(x);
  const MergeTask task{
      .n = n,
      .O = nullptr,
      .lse = nullptr,
      .row0 = 0,
      .row1 = 0,
      .Dv = outputs[0].shape(-1),
      .dtype = dtype_of(outputs[0].dtype()),
      .in_f32 = false,
      .out_f32 = false,
      .out = outputs[0].data<void>(),
      .out_lse = outputs[1].data<float>(),
  };
  const int on = device().threads;
  Pool::instance().reserve(on);
  encoder.dispatch(
      [task, parts, lses, rows = int64_t(outputs[1].size()), on, k = &kernels_in_use()] {
        MergeTask filled = task;
        filled.O = parts.data();
        filled.lse = lses.data();
        Launch::merge_in_parallel(*k, filled, rows, on);
      });
}

}  // namespace sdpa::cpu
