// Calls functions of the extension's binary that are not exported, with numbers in and numbers out. Compiled for arm64
// macOS it runs under tools/macos/arm64.py, where the functions are those of the wheel; compiled with their sources on
// Linux it gives the answers to compare with.
#include <bit>
#include <cstring>

#include "src/launch.h"
#include "src/plan.h"

#define SDPA_PROBE extern "C" __attribute__((visibility("default")))

namespace {

using namespace sdpa;

int64_t* write(int64_t* out, std::initializer_list<int64_t> values) {
  return std::copy(values.begin(), values.end(), out);
}

int64_t* write(int64_t* out, const std::string& text) {
  *out++ = int64_t(text.size());
  return std::copy(text.begin(), text.end(), out);
}

mx::Dtype mlx_dtype(int64_t t) {
  return t == 0 ? mx::float32 : t == 1 ? mx::float16 : mx::bfloat16;
}

// An array without data: [B, H, L, C] as a view of [B, L, H, C] if `swapped`.
mx::array operand(const int64_t* shape, mx::Dtype dtype, bool swapped) {
  const int64_t B = shape[0], H = shape[1], L = shape[2], C = shape[3];
  mx::array x({int(B), int(H), int(L), int(C)}, dtype, nullptr, {});
  if (swapped) {
    static char nothing;
    x.set_data({mx::allocator::Buffer(&nothing), [](mx::allocator::Buffer) {}},
               size_t(B * H * L * C), {L * H * C, C, H * C, 1}, {});
  }
  return x;
}

}  // namespace

// problem: B, Hq, Hkv, Lq, Lk, D, Dv, dtype, causal, window, mask, softcap, sinks, want_lse, chunk_size.
// Writes 1, the numbers of the plan, its dispatches and the kernel's name; or 0 and the reason.
SDPA_PROBE void probe_plan(const int64_t* p, const char* gpu, int64_t* out) {
  const Problem problem{
      .B = int(p[0]),
      .Hq = int(p[1]),
      .Hkv = int(p[2]),
      .Lq = int(p[3]),
      .Lk = int(p[4]),
      .D = int(p[5]),
      .Dv = int(p[6]),
      .dtype = DType(p[7]),
      .causal = p[8] != 0,
      .window = int(p[9]),
      .mask = MaskKind(p[10]),
      .softcap = p[11] != 0,
      .sinks = p[12] != 0,
      .want_lse = p[13] != 0,
      .q_offset = int(p[4] - p[3]),
      .chunk_size = int(p[14]),
  };
  const auto answer = plan(problem, apple_gpu(gpu));
  if (const auto* no = std::get_if<Unsupported>(&answer)) {
    write(write(out, {0}), no->reason);
    return;
  }
  const auto& x = std::get<Plan>(answer);
  out = write(out, {1, x.tile.bq, x.tile.bk, x.row_tiles, x.splits, x.split_keys, x.chunks,
                    x.chunk_keys, x.tasks, x.tile_bytes, x.partial_bytes + x.carry_bytes, x.tile.wm,
                    x.tile.wd, x.threads, x.threadgroup_bytes,
                    std::bit_cast<int64_t>(x.longest_flops), int64_t(x.dispatches.size())});
  for (const Dispatch& d : x.dispatches) {
    const Part& part = d.part;
    out = write(out, {d.chunk, d.split0, part.row_tile0, part.row_tiles, part.head0, part.heads,
                      part.key0, part.key1, part.split_keys, part.splits, part.with_sinks,
                      part.with_carry, std::bit_cast<int64_t>(d.flops)});
  }
  write(out, x.kernel);
}

// call: the shapes of q, k, v [B, H, L, D] and of the mask [B, H, Lq, Lk]; dtype, whether operands are [B, L, H, D]
// in memory, bool mask, causal, window, sinks, chunk_size. Writes the bytes of Params, and returns their number.
SDPA_PROBE int64_t probe_params(const int64_t* call, float scale, float softcap, char* out) {
  const mx::Dtype dtype = mlx_dtype(call[16]);
  const bool swapped = call[17], masked = call[12];
  std::vector<mx::array> inputs;
  for (int i = 0; i < 3; ++i) inputs.push_back(operand(call + 4 * i, dtype, swapped));
  if (masked) inputs.push_back(operand(call + 12, call[18] ? mx::bool_ : dtype, false));
  if (call[21]) inputs.push_back(mx::array({1, int(call[1])}, mx::float32, nullptr, {}));
  const Attributes attributes{
      .scale = scale,
      .causal = call[19] != 0,
      .window = int(call[20]),
      .softcap = softcap,
      .chunk_size = int(call[22]),
      .has_mask = masked,
      .has_sinks = call[21] != 0,
  };
  const Inputs in(inputs, attributes);
  const Params params = params_of(problem_of(in, attributes), in, attributes);
  std::memcpy(out, &params, sizeof params);
  return sizeof params;
}
