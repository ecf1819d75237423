#include "src/backends/metal_ready.h"

#include <algorithm>
#include <stdexcept>

#include "src/backends/gpu.h"
#include "src/backends/metal_device.h"

namespace sdpa::metal {

namespace {

Stage compile(const Problem& p, const Plan& plan, bool vector, bool first, bool last) {
  const bool split = plan.splits > 1;
  const bool f32 = p.dtype == DType::F32;
  Constants c{
      .mask_kind = int(p.mask),
      .mask_type = int(p.mask_dtype),
      .causal = p.causal,
      .softcap = p.softcap,
      .sinks = p.sinks,
      .lse = split || !last || p.want_lse,
      .carry = !first || p.carry,
      .out_f32 = split || !last || p.want_f32 || f32,
      .vector = vector,
      .window = p.causal && p.window > 0,
  };
  Stage stage;
  stage.attention = attention_pipeline(plan, p.dtype, c);
  if (split) {
    const DType out = last && !p.want_f32 ? p.dtype : DType::F32;
    stage.merge =
        merge_pipeline(DType::F32, out, {.lse = !last || p.want_lse, .vector = p.Dv % 4 == 0});
  }
  return stage;
}

Ready compile(const Problem& p, Plan plan, bool vector) {
  Ready ready{.plan = std::move(plan), .first = {}, .inner = {}, .last = {}};
  const int chunks = ready.plan.chunks;
  ready.last = compile(p, ready.plan, vector, chunks == 1, true);
  if (chunks > 1) ready.first = compile(p, ready.plan, vector, true, false);
  if (chunks > 2) ready.inner = compile(p, ready.plan, vector, false, false);
  return ready;
}

// Threads that all of its pipelines take.
int most_threads(const Ready& ready) {
  int most = ready.last.attention.max_threads;
  if (ready.plan.chunks > 1) most = std::min(most, ready.first.attention.max_threads);
  if (ready.plan.chunks > 2) most = std::min(most, ready.inner.attention.max_threads);
  return most;
}

}  // namespace

Ready make_ready(const Problem& p, bool vector) {
  Device on = device();
  std::string refused;  // the kernel that was planned first
  for (;;) {
    auto answer = plan(p, on);
    if (const auto* no = std::get_if<Unsupported>(&answer)) {
      if (!refused.empty()) throw KernelFailure(refused, no->reason);
      throw std::invalid_argument("[scaled_dot_product_attention] " + no->reason);
    }
    Ready ready = compile(p, std::get<Plan>(std::move(answer)), vector);
    const int most = most_threads(ready);
    if (most >= ready.plan.threads) return ready;
    if (refused.empty()) refused = ready.plan.kernel;
    on.max_threads = most;
  }
}

}  // namespace sdpa::metal
