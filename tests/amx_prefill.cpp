// The prefill kernel of AMX on software tiles, for Python.
#include "tests/amx_tiles.h"

#define SDPA_ISA amx_in_software
#include <cmath>
#include <vector>

#include "kernels/cpu/prefill.h"

namespace kernel = sdpa::cpu::SDPA_ISA;

// Q [Hq, Lq, D], K [Hkv, Lk, D], V [Hkv, Lk, Dv] of 16 bits, O [Hq, Lq, Dv], lse [Hq, Lq]
extern "C" __attribute__((visibility("default"))) void prefill(
    int bfloat16, int Hq, int Hkv, int Lq, int Lk, int D, int Dv, int causal, int bq, int bk,
    float scale, const void* Q, const void* K, const void* V, float* O, float* lse) {
  sdpa::Params p{};
  p.B = 1;
  p.Hq = Hq;
  p.Hkv = Hkv;
  p.group = Hq / Hkv;
  p.Lq = Lq;
  p.Lk = Lk;
  p.D = D;
  p.Dv = Dv;
  p.q_offset = Lk - Lq;
  p.causal = causal;
  p.scale = scale;
  p.dtype = bfloat16 ? sdpa::DType::BF16 : sdpa::DType::F16;
  p.Qs = {0, int64_t(Lq) * D, D, 1};
  p.Ks = {0, int64_t(Lk) * D, D, 1};
  p.Vs = {0, int64_t(Lk) * Dv, Dv, 1};
  sdpa::cpu::Operands x{};
  x.Q = Q;
  x.K = K;
  x.V = V;
  std::vector<float> scratch(kernel::prefill_scratch(p, bq, bk) / sizeof(float) + 16);
  const auto address = reinterpret_cast<uintptr_t>(scratch.data());
  const int rows = Lq * p.group;
  for (int head = 0; head < Hkv; ++head) {
    for (int row0 = 0; row0 < rows; row0 += bq) {
      std::fill(scratch.begin(), scratch.end(), NAN);
      sdpa::cpu::Task t{};
      t.hkv = head;
      t.row0 = row0;
      t.rows = rows - row0 < bq ? rows - row0 : bq;
      t.bk = bk;
      t.key1 = Lk;
      t.O = O;
      t.O_is_f32 = true;
      t.lse = lse;
      kernel::prefill(p, x, t, reinterpret_cast<void*>((address + 63) / 64 * 64));
      if (amx_tiles::configured) std::abort();
    }
  }
}
