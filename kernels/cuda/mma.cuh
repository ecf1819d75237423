// Tensor-core and copy instructions of sm_80 and later.
//
// A fragment of mma m16n8k16, in a lane with i = lane / 4 and t = lane % 4, two elements to a register:
//   A [16, 16]   a0 (i, 2t)  a1 (i + 8, 2t)  a2 (i, 2t + 8)  a3 (i + 8, 2t + 8)      each with the column after
//   B [16, 8]    b0 (2t, i)  b1 (2t + 8, i)                                          each with the row after
//   C [16, 8]    c0 (i, 2t)  c1 (i, 2t + 1)  c2 (i + 8, 2t)  c3 (i + 8, 2t + 1)      float
#pragma once

#include "kernels/cuda/convert.cuh"

namespace sdpa {

// C += A B
template <typename E>
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1);

template <>
__device__ inline void multiply_add<__half>(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                            unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void multiply_add<__nv_bfloat16>(float (&c)[4], const unsigned (&a)[4],
                                                   unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// m16n8k8 of tf32: a register holds one element, which has a twin of its own 4 columns (A) or rows (B) further on.
__device__ inline void multiply_add_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// What the 11 bits of a tf32 leave of a float.
__device__ inline unsigned tf32_rest(unsigned x) {
  return __float_as_uint(__uint_as_float(x) - __uint_as_float(x & 0xffffe000));
}

// float as two tf32 each, without the product of the rests: right to 2^-20. The multiplier ignores the bits below a tf32.
template <>
__device__ inline void multiply_add<float>(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                           unsigned b1) {
  const unsigned rest[4] = {tf32_rest(a[0]), tf32_rest(a[1]), tf32_rest(a[2]), tf32_rest(a[3])};
  multiply_add_tf32(c, rest, b0, b1);
  multiply_add_tf32(c, a, tf32_rest(b0), tf32_rest(b1));
  multiply_add_tf32(c, a, b0, b1);
}

// The shared-memory address of a pointer, as instructions take it.
__device__ inline unsigned shared_address(const void* p) {
  return unsigned(__cvta_generic_to_shared(p));
}

// Four 8x8 matrices of 16-bit elements: lane j gives the address of row j % 8 of matrix j / 8 and receives, of each
// matrix, the elements (i, 2t) and (i, 2t + 1).
__device__ inline void load_matrices(unsigned (&x)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}

// The same of the transposed matrices: the elements (2t, i) and (2t + 1, i).
__device__ inline void load_transposed(unsigned (&x)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}

// Shared memory by address.
__device__ inline unsigned load_4_bytes(unsigned address) {
  unsigned x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}

__device__ inline unsigned load_2_bytes(unsigned address) {
  unsigned short x;
  asm volatile("ld.shared.b16 %0, [%1];" : "=h"(x) : "r"(address) : "memory");
  return x;
}

__device__ inline void store_4_bytes(unsigned address, unsigned x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}

__device__ inline void store_2_bytes(unsigned address, unsigned x) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"((unsigned short)x) : "memory");
}

// Two elements side by side.
template <typename E>
__device__ inline void store_pair(unsigned address, float x, float y) {
  if constexpr (sizeof(E) == 4)
    asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(address), "f"(x), "f"(y) : "memory");
  else
    store_4_bytes(address, pack<E>(x, y));
}

__device__ inline void store_16_bytes(unsigned address, uint4 x) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}

// 16 bytes to shared memory, asynchronously: the first `bytes` of them from `source`, zeros after.
__device__ inline void copy_16_bytes(unsigned address, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(source),
               "r"(bytes)
               : "memory");
}

// The same of 4 bytes.
__device__ inline void copy_4_bytes(unsigned address, const void* source, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(source),
               "r"(bytes)
               : "memory");
}

// Ends a group of copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the N last groups of this thread are under way.
template <int N>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace sdpa
