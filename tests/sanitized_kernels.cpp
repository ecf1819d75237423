// Random calls of the CPU kernels from several threads at once, through the plan and the thread pool, for sanitizers to watch:
// a process without Python and MLX, so that all of it is instrumented.
//
// sanitized_kernels SEED CALLS    0 if every value of every result was written
#include <atomic>
#include <cstdio>
#include <thread>

#include "kernels/cpu/backward_task.h"
#include "src/backends/cpu_pool.h"
#include "src/backends/cpu_tasks.h"
#include "src/plan_backward.h"
#include "tests/sanitized_operands.h"

namespace sdpa::cpu {

namespace SDPA_ISA {
extern const Kernels kernels;
}
static const Kernels& kernels = SDPA_ISA::kernels;

namespace {

constexpr int kThreads = 3, kCallers = 2;
// A small one, so that a few hundred keys are several tiles
const Device kDevice{.arch = "sanitized", .threads = kThreads, .l2_bytes = 1 << 15};

class Call {
 public:
  explicit Call(Random& random) : random_(random) {
    p.B = 1 + random.below(2);
    p.Hkv = 1 + random.below(2);
    p.group = 1 + random.below(3);
    p.Hq = p.Hkv * p.group;
    p.Lq = random.once_in(2) ? 1 + random.below(3) : 1 + random.below(150);
    p.Lk = random.once_in(4) ? 1 + random.below(1500) : 1 + random.below(200);
    p.D = random.one_of({1, 16, 33, 64, 72, 129});
    p.Dv = random.one_of({p.D, 1, 20, 64, 95});
    p.q_offset = p.Lk - p.Lq;
    p.causal = random.once_in(2);
    p.window = p.causal && random.once_in(2) ? 1 + random.below(40) : 0;
    p.scale = 0.2f;
    p.softcap = random.once_in(3) ? 3.f : 0.f;
    p.dtype = DType(random.below(3));
    p.mask = p.causal ? MaskKind::None : MaskKind(random.below(3));
    p.mask_dtype = DType(random.below(3));
    q_ = random.operand(p.B, p.Hq, p.Lq, p.D, p.dtype);
    // The scores of a row are NaN: in tanh the largest number that there is as bits. Not what blocks are filled with.
    if (p.softcap != 0.f && p.dtype == DType::F32) *q_.block.at<uint32_t>() = 0xfffffffe;
    k_ = random.operand(p.B, p.Hkv, p.Lk, p.D, p.dtype);
    v_ = random.operand(p.B, p.Hkv, p.Lk, p.Dv, p.dtype);
    p.Qs = q_.s, p.Ks = k_.s, p.Vs = v_.s;
    x.Q = q_.block.at(), x.K = k_.block.at(), x.V = v_.block.at();
    if (p.mask != MaskKind::None) add_mask();
    if (random.once_in(3)) {
      sinks_ = values(p.Hq, p.dtype);
      random.fill(sinks_.at(), p.Hq, p.dtype);
      x.sinks = sinks_.at();
      p.sink_head = 1;
    }
  }

  bool forward() {
    const Plan plan = std::get<Plan>(sdpa::plan(problem(), kDevice));
    const bool prefill = plan.tile.kernel == Kernel::prefill;
    const auto bytes = prefill ? kernels.prefill_scratch : kernels.decode_scratch;
    add_scratch(bytes(p, plan.tile.bq, plan.tile.bk));
    O_ = values(rows() * p.Dv, p.dtype);
    lse_ = floats(rows());
    carry_O_ = floats(rows() * p.Dv);
    carry_lse_ = floats(rows());
    for (int c = 0; c < plan.chunks; ++c)
      chunk(plan, prefill ? kernels.prefill : kernels.decode, c);
    return written(O_, rows() * p.Dv);
  }

  bool backward();  // after forward()

 private:
  Problem problem() const {
    return {.B = p.B,
            .Hq = p.Hq,
            .Hkv = p.Hkv,
            .Lq = p.Lq,
            .Lk = p.Lk,
            .D = p.D,
            .Dv = p.Dv,
            .dtype = p.dtype,
            .causal = p.causal != 0,
            .window = p.window,
            .mask = p.mask,
            .mask_dtype = p.mask_dtype,
            .softcap = p.softcap != 0,
            .sinks = x.sinks != nullptr,
            .want_lse = true,
            .q_offset = p.q_offset,
            .chunk_size = chunk_size_};
  }

  void add_mask() {
    const bool boolean = p.mask == MaskKind::Bool;
    const int64_t n = int64_t(p.Lq) * p.Lk;
    p.Ms = {0, 0, p.Lk, 1};
    mask_ = boolean ? Block(n, 0) : values(n, p.mask_dtype);
    if (!boolean) random_.fill(mask_.at(), n, p.mask_dtype);
    for (int64_t i = 0; boolean && i < n; ++i) mask_.at<uint8_t>()[i] = random_.below(2);
    x.mask = mask_.at();
  }

  void add_scratch(size_t bytes) {
    for (Block& s : scratch_) s = Block((bytes + 63) / 64 * 64);
  }

  int64_t rows() const { return int64_t(p.B) * p.Hq * p.Lq; }

  template <class Run>
  void chunk(const Plan& plan, Run run, int c) {
    const bool first = c == 0, last = c + 1 == plan.chunks;
    Operands in = x;
    if (!first) in.carry_O = carry_O_.at<float>(), in.carry_lse = carry_lse_.at<float>();
    void* out = last ? O_.at() : carry_O_.at();
    float* out_lse = last ? lse_.at<float>() : carry_lse_.at<float>();
    std::vector<Block> parts, part_lses;
    for (int i = 0; plan.splits > 1 && i < plan.splits; ++i)
      parts.push_back(floats(rows() * p.Dv)), part_lses.push_back(floats(rows()));

    Pool::instance().run(plan.tasks, kThreads, [&](int64_t i, int worker) {
      const int split = split_of(plan, i);
      const bool whole = plan.splits == 1;
      Task task = task_of(plan, p, c, i);
      task.with_sinks = first && split == 0 && in.sinks;
      task.with_carry = split == 0 && in.carry_O;
      task.O = whole ? out : parts[split].at();
      task.O_is_f32 = !whole || !last;
      task.lse = whole ? out_lse : part_lses[split].at<float>();
      run(p, in, task, scratch_[worker].at());
    });
    if (plan.splits == 1) return;
    std::vector<const void*> O;
    std::vector<const float*> lse;
    for (int i = 0; i < plan.splits; ++i)
      O.push_back(parts[i].at()), lse.push_back(part_lses[i].at<float>());
    Pool::instance().run(ceil_div(rows(), 64), kThreads, [&](int64_t i, int) {
      kernels.merge({.n = plan.splits,
                     .O = O.data(),
                     .lse = lse.data(),
                     .row0 = i * 64,
                     .row1 = std::min(rows(), i * 64 + 64),
                     .Dv = p.Dv,
                     .dtype = p.dtype,
                     .in_f32 = true,
                     .out_f32 = !last,
                     .out = out,
                     .out_lse = out_lse});
    });
  }

  bool written(const Block& block, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      const bool blank = p.dtype == DType::F32 ? block.at<uint32_t>()[i] == 0xffffffff
                                               : block.at<uint16_t>()[i] == 0xffff;
      if (blank) return false;
    }
    return true;
  }

  Random& random_;
  Params p{};
  Operands x{};
  int chunk_size_ = random_.once_in(3) ? 1 + random_.below(100) : 0;
  Operand q_, k_, v_;
  Block mask_, sinks_, O_, lse_, carry_O_, carry_lse_, scratch_[kThreads];
};

bool Call::backward() {
  if (p.mask == MaskKind::Additive) return true;
  const BackwardPlan plan = *plan_backward(problem(), kDevice);
  const BackwardKernels& run = *kernels.backward;
  add_scratch(run.scratch(p, plan.bq, plan.bk));
  const Block row_lse = floats(rows()), row_pull = floats(rows()), dlse = floats(rows());
  random_.fill(dlse.at(), rows(), DType::F32);
  const Operand dO = random_.operand(p.B, p.Hq, p.Lq, p.Dv, p.dtype);
  const int64_t Lq = p.Lq, of_rows = p.Lq * p.group, heads = p.B * p.Hkv;
  const BackwardOperands g{.O = O_.at(),
                           .dO = dO.block.at(),
                           .lse = lse_.at<float>(),
                           .dlse = dlse.at<float>(),
                           .Os = {p.Hq * Lq * p.Dv, Lq * p.Dv, p.Dv, 1},
                           .dOs = dO.s,
                           .lses = {p.Hq * Lq, Lq, 1, 0},
                           .dlses = {p.Hq * Lq, Lq, 1, 0},
                           .row_lse = row_lse.at<float>(),
                           .row_pull = row_pull.at<float>()};
  Pool& pool = Pool::instance();
  pool.run(heads * plan.row_tiles, kThreads, [&](int64_t i, int) {
    const int head = int(i / plan.row_tiles), row0 = int(i % plan.row_tiles) * plan.bq;
    run.rows(p, g, head / p.Hkv, head % p.Hkv, row0,
             int(std::min<int64_t>(row0 + plan.bq, of_rows)));
  });
  if (x.sinks)
    for (int i = 0; i < p.B * p.Hq; ++i) run.sink(p, x, g, i / p.Hq, i % p.Hq);

  const int ld = run.sum_leading(p.D), ldv = run.sum_leading(p.Dv);
  bool ok = true;
  for (int head = 0; head < heads; ++head) {
    const int64_t padded_keys = int64_t(plan.key_tiles) * plan.bk;
    const int64_t sizes[] = {int64_t(plan.row_tiles) * plan.bq * ld, padded_keys * ld,
                             padded_keys * ldv};
    Block sums[3];
    for (int i = 0; i < 3; ++i) {
      sums[i] = Block((sizes[i] * sizeof(float) + 63) / 64 * 64);
      std::memset(sums[i].at(), 0, sizes[i] * sizeof(float));
    }
    for (int round = 0; round < plan.rounds; ++round)
      pool.run(plan.key_tiles, kThreads, [&](int64_t j, int worker) {
        const int block = int(j + round) % plan.rounds, block_rows = plan.block_tiles * plan.bq;
        if (block >= plan.row_blocks) return;
        const BackwardTask task{
            .b = head / p.Hkv,
            .hkv = head % p.Hkv,
            .row0 = block * block_rows,
            .row1 = int(std::min<int64_t>((block + 1) * block_rows, of_rows)),
            .bq = plan.bq,
            .key0 = int(j) * plan.bk,
            .key1 = std::min(int(j + 1) * plan.bk, p.Lk),
            .bk = plan.bk,
            .sums = {sums[0].at<float>(), sums[1].at<float>(), sums[2].at<float>()}};
        run.tile(p, x, g, task, scratch_[worker].at());
      });
    for (int i = 0; i < 3; ++i) {
      const int64_t n = i == 0 ? of_rows : p.Lk;
      const int columns = i == 2 ? p.Dv : p.D;
      const Block out = values(n * columns, p.dtype);
      run.store({.sums = sums[i].at<float>(),
                 .leading = i == 2 ? ldv : ld,
                 .row0 = 0,
                 .row1 = n,
                 .columns = columns,
                 .scale = 1.f,
                 .out = out.at(),
                 .dtype = p.dtype});
      ok &= written(out, n * columns);
    }
  }
  return ok;
}

}  // namespace

}  // namespace sdpa::cpu

int main(int, char** arguments) {
  using namespace sdpa::cpu;
  Pool::instance().reserve(kThreads);
  std::atomic<int> unwritten{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i)
    callers.emplace_back([&, i] {
      Random random{std::mt19937(std::atoi(arguments[1]) + i)};
      for (int n = 0; n < std::atoi(arguments[2]); ++n) {
        Call call(random);
        if (!call.forward() || !call.backward()) ++unwritten;
      }
    });
  for (std::thread& caller : callers) caller.join();
  if (unwritten) std::printf("%d calls left values unwritten\n", unwritten.load());
  return unwritten != 0;
}
