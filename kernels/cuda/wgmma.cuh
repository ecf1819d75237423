// wgmma: D[64, N] (+)= A[64, 16] B[16, N] by a warpgroup of T into float, asynchronously (PTX ISA, "Asynchronous Warpgroup
// Level Matrix Instructions"). With lane l of warp w of the warpgroup:
//   D  element 4 n + e is row 16 w + l / 4 + 8 (e / 2), column 8 n + 2 (l % 4) + e % 2
//   A  word i holds row 16 w + l / 4 + 8 (i % 2), columns 8 (i / 2) + 2 (l % 4) + {0, 1}: the D of two neighbouring 8
//      columns, rounded and packed, is the A of these 16
// A sequence is: fence_wgmma, multiplies, commit_wgmma, wait_wgmma<n>. Until the wait, the registers of D and A belong to
// the tensor core; `pin` them on both sides, or the compiler may move uses across the wait.
#pragma once

#include "kernels/cuda/hopper.cuh"

namespace sdpa {

__device__ inline void fence_wgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void commit_wgmma() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most the `n` newest committed groups run.
template <int n>
__device__ inline void wait_wgmma() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}

template <int n>
__device__ inline void pin(float (&x)[n]) {
  SDPA_FOR (i, n) asm volatile("" : "+f"(x[i])::"memory");
}

template <int n>
__device__ inline void pin(unsigned (&x)[n]) {
  SDPA_FOR (i, n) asm volatile("" : "+r"(x[i])::"memory");
}

// ---- Descriptors of matrices of 128-byte rows (64 elements) with the 128-byte swizzle, as TMA writes them: the address
// and two distances in units of 16 bytes, and swizzle mode 1. The pattern repeats after 8 rows = 1024 bytes; an address
// inside it may be advanced by 32 bytes (16 columns).

constexpr int kSwizzledColumns = 64;

__device__ inline uint64_t swizzled_matrix(unsigned address, unsigned leading, unsigned stride) {
  return uint64_t(1) << 62 | uint64_t(stride >> 4) << 32 | uint64_t(leading >> 4) << 16 |
         (address & 0x3ffff) >> 4;
}

// Rows are the outer dimension (M of A, N of B), columns the inner one (k): Q and K in Q K^T. 16 columns from `address`.
__device__ inline uint64_t k_major(unsigned address) { return swizzled_matrix(address, 16, 1024); }

// Rows are the inner dimension (k), columns the outer one (N): V in P V. 16 rows from `address`; every 64 columns are a
// box of their own, `box_bytes` after the last.
__device__ inline uint64_t k_rows(unsigned address, unsigned box_bytes) {
  return swizzled_matrix(address, box_bytes, 1024);
}

// ---- The instruction. Operands of the asm: N / 2 floats of D, then A and the rest, whose numbers are given by name.

#if SDPA_DTYPE == 1
#define SDPA_WGMMA_TYPES "k16.f32.f16.f16 "
#else
#define SDPA_WGMMA_TYPES "k16.f32.bf16.bf16 "
#endif

#define SDPA_TEN(t) \
  "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9"
#define SDPA_TENS_3 SDPA_TEN() "," SDPA_TEN(1) "," SDPA_TEN(2)
#define SDPA_TENS_6 SDPA_TENS_3 "," SDPA_TEN(3) "," SDPA_TEN(4) "," SDPA_TEN(5)
#define SDPA_TENS_9 SDPA_TENS_6 "," SDPA_TEN(6) "," SDPA_TEN(7) "," SDPA_TEN(8)
#define SDPA_LIST_32 SDPA_TENS_3 ",%30,%31"
#define SDPA_LIST_40 SDPA_TENS_3 "," SDPA_TEN(3)
#define SDPA_LIST_48 SDPA_LIST_40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define SDPA_LIST_64 SDPA_TENS_6 ",%60,%61,%62,%63"
#define SDPA_LIST_96 SDPA_TENS_9 ",%90,%91,%92,%93,%94,%95"
#define SDPA_TENS_12 SDPA_TENS_9 "," SDPA_TEN(9) "," SDPA_TEN(10) "," SDPA_TEN(11)
#define SDPA_LIST_128 SDPA_TENS_12 ",%120,%121,%122,%123,%124,%125,%126,%127"

#define SDPA_D8(i)                                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define SDPA_D_16 SDPA_D8(0), SDPA_D8(8)
#define SDPA_D_32 SDPA_D_16, SDPA_D8(16), SDPA_D8(24)
#define SDPA_D_40 SDPA_D_32, SDPA_D8(32)
#define SDPA_D_48 SDPA_D_40, SDPA_D8(40)
#define SDPA_D_64 SDPA_D_48, SDPA_D8(48), SDPA_D8(56)
#define SDPA_D_96 SDPA_D_64, SDPA_D8(64), SDPA_D8(72), SDPA_D8(80), SDPA_D8(88)
#define SDPA_D_128 SDPA_D_96, SDPA_D8(96), SDPA_D8(104), SDPA_D8(112), SDPA_D8(120)

// D = A B, plus D if `accumulate`. A comes in registers or by descriptor (k_major); b_rows: B lies as k_rows, not k_major.
template <int N>
struct Wgmma;

// After D's H = N / 2 operands come those of these numbers.
#define SDPA_WGMMA(N, H, i0, i1, i2, i3, i4, i5, i6)                                            \
  template <>                                                                                   \
  struct Wgmma<N> {                                                                             \
    template <bool b_rows>                                                                      \
    static __device__ void run(float (&d)[H], const unsigned (&a)[4], uint64_t b,               \
                               int accumulate) {                                                \
      asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #i5                                   \
                   ", 0;\n"                                                                     \
                   "wgmma.mma_async.sync.aligned.m64n" #N SDPA_WGMMA_TYPES "{" SDPA_LIST_##H    \
                   "}, {%" #i0 ",%" #i1 ",%" #i2 ",%" #i3 "}, %" #i4 ", add, 1, 1, %" #i6 "; }" \
                   : SDPA_D_##H                                                                 \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),       \
                     "n"(int(b_rows)));                                                         \
    }                                                                                           \
    template <bool b_rows>                                                                      \
    static __device__ void run(float (&d)[H], uint64_t a, uint64_t b, int accumulate) {         \
      asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #i2                                   \
                   ", 0;\n"                                                                     \
                   "wgmma.mma_async.sync.aligned.m64n" #N SDPA_WGMMA_TYPES "{" SDPA_LIST_##H    \
                   "}, %" #i0 ", %" #i1 ", add, 1, 1, 0, %" #i3 "; }"                           \
                   : SDPA_D_##H                                                                 \
                   : "l"(a), "l"(b), "r"(accumulate), "n"(int(b_rows)));                        \
    }                                                                                           \
  };

SDPA_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
SDPA_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46)
SDPA_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
SDPA_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
SDPA_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)
SDPA_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134)

}  // namespace sdpa
