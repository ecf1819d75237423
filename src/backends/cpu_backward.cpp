#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "kernels/cpu/backward_task.h"
#include "src/backends/cpu.h"
#include "src/backends/cpu_device.h"
#include "src/backends/cpu_pool.h"
#include "src/backends/cpu_scratch.h"
#include "src/launch.h"
#include "src/plan_backward.h"

namespace sdpa::cpu {

namespace {

using mx::array;

Strides row_strides(const array& x) {  // of [B, Hq, Lq]
  return {
      x.shape(0) == 1 ? 0 : x.strides(0),
      x.shape(1) == 1 ? 0 : x.strides(1),
      x.shape(2) == 1 ? 0 : x.strides(2),
      0,
  };
}

// One evaluation, complete with its memory: what runs on the stream's thread.
struct Launch {
  BackwardPlan plan;
  Params p;
  Operands x;
  BackwardOperands g;
  const BackwardKernels* kernels;
  int threads;
  int leading_d, leading_dv;

  char* tile_scratch = nullptr;  // threads * tile_bytes
  size_t tile_bytes = 0;
  float* sums = nullptr;                             // [plan.heads, head_floats()]
  char *dQ = nullptr, *dK = nullptr, *dV = nullptr;  // the results, contiguous
  float* dsinks = nullptr;                           // [B, Hq], or null

  int64_t q_floats() const { return int64_t(plan.row_tiles) * plan.bq * leading_d; }
  int64_t k_floats() const { return int64_t(plan.key_tiles) * plan.bk * leading_d; }
  int64_t v_floats() const { return int64_t(plan.key_tiles) * plan.bk * leading_dv; }
  int64_t head_floats() const { return q_floats() + k_floats() + v_floats(); }
  int rows() const { return p.Lq * p.group; }  // of a KV head

  void operator()() const {
    const int all = p.B * p.Hkv;
    Pool& pool = Pool::instance();
    pool.run(int64_t(all) * plan.row_tiles, threads, [&](int64_t i, int) {
      const int head = int(i / plan.row_tiles), row0 = int(i % plan.row_tiles) * plan.bq;
      kernels->rows(p, g, head / p.Hkv, head % p.Hkv, row0, std::min(row0 + plan.bq, rows()));
    });
    if (dsinks)
      pool.run(int64_t(p.B) * p.Hq, threads, [&](int64_t i, int) {
        dsinks[i] = kernels->sink(p, x, g, int(i / p.Hq), int(i % p.Hq));
      });
    for (int head0 = 0; head0 < all; head0 += plan.heads)
      some_heads(head0, std::min(plan.heads, all - head0));
  }

 private:
  void some_heads(int head0, int heads) const {
    Pool& pool = Pool::instance();
    pool.run(heads, threads, [&](int64_t i, int) {
      std::memset(sums + i * head_floats(), 0, head_floats() * sizeof(float));
    });
    for (int round = 0; round < plan.rounds; ++round)
      pool.run(int64_t(heads) * plan.key_tiles, threads, [&](int64_t i, int worker) {
        const int slot = int(i / plan.key_tiles), j = int(i % plan.key_tiles);
        const int block = (j + round) % plan.rounds;
        if (block < plan.row_blocks) tile(head0 + slot, sums_of(slot), block, j, worker);
      });
    pool.run(heads * parts(), threads,
             [&](int64_t i, int) { store(head0, int(i / parts()), int(i % parts())); });
  }

  BackwardSums sums_of(int slot) const {
    float* dQ = sums + slot * head_floats();
    return {dQ, dQ + q_floats(), dQ + q_floats() + k_floats()};
  }

  void tile(int head, const BackwardSums& into, int block, int j, int worker) const {
    const int block_rows = plan.block_tiles * plan.bq;
    const BackwardTask task{
        .b = head / p.Hkv,
        .hkv = head % p.Hkv,
        .row0 = block * block_rows,
        .row1 = std::min((block + 1) * block_rows, rows()),
        .bq = plan.bq,
        .key0 = j * plan.bk,
        .key1 = std::min((j + 1) * plan.bk, p.Lk),
        .bk = plan.bk,
        .sums = into,
    };
    kernels->tile(p, x, g, task, tile_scratch + worker * tile_bytes);
  }

  // What of a KV head is stored: dQ of each of its query heads, dK, dV.
  int parts() const { return p.group + 2; }

  void store(int head0, int slot, int part) const {
    const BackwardSums from = sums_of(slot);
    const int64_t head = head0 + slot, itemsize = p.dtype == DType::F32 ? 4 : 2;
    BackwardStore task{};
    task.dtype = p.dtype;
    if (part < p.group) {  // rows of the heads of a group lie in turns
      task.sums = from.dQ + int64_t(part) * leading_d;
      task.leading = leading_d * p.group;
      task.row1 = p.Lq;
      task.columns = p.D;
      task.scale = p.scale;
      task.out = dQ + (head * p.group + part) * p.Lq * p.D * itemsize;
    } else {
      const bool keys = part == p.group;
      task.sums = keys ? from.dK : from.dV;
      task.leading = keys ? leading_d : leading_dv;
      task.row1 = p.Lk;
      task.columns = keys ? p.D : p.Dv;
      task.scale = keys ? p.scale : 1.f;
      task.out = (keys ? dK : dV) + head * p.Lk * task.columns * itemsize;
    }
    kernels->store(task);
  }
};

}  // namespace

bool has_backward(const Problem& problem) { return plan_backward(problem, device()).has_value(); }

void eval_backward(const Inputs& in, const Attributes& a, const Cotangents& c,
                   std::vector<array>& outputs, mx::Stream stream) {
  for (array& x : outputs) allocate_output(x);
  const Problem problem = problem_of(in, a);
  const Device on = device();
  const auto plan = plan_backward(problem, on);
  if (!plan)
    throw std::invalid_argument("[scaled_dot_product_attention] no kernel for this gradient");

  auto& encoder = mx::cpu::get_command_encoder(stream);
  for (const array* x :
       {&in.q, &in.k, &in.v, in.mask, in.sinks, &c.out, &c.lse, &c.d_out, &c.d_lse})
    if (x) encoder.set_input_array(*x);
  for (array& x : outputs) encoder.set_output_array(x);

  auto launch = std::make_shared<Launch>();
  launch->plan = *plan;
  launch->p = params_of(problem, in, a);
  launch->kernels = kernels_in_use().backward;
  launch->threads = on.threads;
  launch->leading_d = launch->kernels->sum_leading(problem.D);
  launch->leading_dv = launch->kernels->sum_leading(problem.Dv);
  launch->x = Operands{
      .Q = in.q.data<void>(),
      .K = in.k.data<void>(),
      .V = in.v.data<void>(),
      .mask = in.mask ? in.mask->data<void>() : nullptr,
      .sinks = in.sinks ? in.sinks->data<void>() : nullptr,
      .carry_O = nullptr,
      .carry_lse = nullptr,
  };
  const int64_t rows = int64_t(problem.B) * problem.Hq * problem.Lq;
  float* row_values = scratch<float>(2 * rows * int64_t(sizeof(float)), encoder);
  launch->g = BackwardOperands{
      .O = c.out.data<void>(),
      .dO = c.d_out.data<void>(),
      .lse = c.lse.data<float>(),
      .dlse = c.d_lse.data<float>(),
      .Os = strides_of(c.out),
      .dOs = strides_of(c.d_out),
      .lses = row_strides(c.lse),
      .dlses = row_strides(c.d_lse),
      .row_lse = row_values,
      .row_pull = row_values + rows,
  };
  launch->tile_bytes = (launch->kernels->scratch(launch->p, plan->bq, plan->bk) + 63) / 64 * 64;
  launch->tile_scratch = scratch<char>(int64_t(launch->tile_bytes) * launch->threads, encoder);
  launch->sums =
      scratch<float>(plan->heads * launch->head_floats() * int64_t(sizeof(float)), encoder);
  launch->dQ = outputs[0].data<char>();
  launch->dK = outputs[1].data<char>();
  launch->dV = outputs[2].data<char>();
  if (in.sinks) launch->dsinks = outputs[3].data<float>();
  Pool::instance().reserve(launch->threads);
  encoder.dispatch([launch] { (*launch)(); });
}

}  // namespace sdpa::cpu
