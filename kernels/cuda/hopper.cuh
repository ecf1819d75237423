// Hopper's (sm_90a) barriers, register budgets and clusters. Names and rules: PTX ISA, "Parallel Synchronization and
// Communication Instructions". Shared memory is addressed by 32-bit addresses of the shared window.
#pragma once

#include "kernels/cuda/mma.cuh"

namespace sdpa {

// ---- mbarrier: 8 bytes; a phase ends when `arrivals` have arrived and all expected bytes have come.

__device__ inline void init_barrier(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers known to the copy engine and to the cluster; a block or cluster barrier must follow.
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void arrive_expecting(unsigned barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ inline void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// At the same barrier of another block of the cluster, where nothing but finished reads came before: as a release, the
// arrival would cost a fence of the whole GPU
// (MEMBAR.ALL.GPU), some hundred cycles.
__device__ inline void arrive_after_reads_at(unsigned barrier, int block) {
  asm volatile(
      "{ .reg .b32 there;\n"
      "  mapa.shared::cluster.u32 there, %0, %1;\n"
      "  mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [there]; }" ::"r"(barrier),
      "r"(block)
      : "memory");
}

// Whether the phase of this parity has ended; waits a moment for it.
__device__ inline bool try_wait(unsigned barrier, unsigned parity) {
  unsigned done;
  asm volatile(
      "{ .reg .pred done;\n"
      "  mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "  selp.b32 %0, 1, 0, done; }"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done;
}

// A fresh barrier is in the phase of parity 0: waiting for parity 1 then returns at once.
__device__ inline void wait(unsigned barrier, unsigned parity) {
  while (!try_wait(barrier, parity)) {}
}

// A place in a ring of stages, and the parity of its turn.
template <int stages>
struct RingOf {
  int stage = 0;
  unsigned turn = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == stages) stage = 0, turn ^= 1;
  }
};

// ---- Named barriers 1..15 of a block (0 is __syncthreads); `threads` counts those that sync and those that arrive.

__device__ inline void sync_named(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ inline void arrive_named(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Proxies: orders this thread's ordinary writes of shared memory before what wgmma and TMA do with it later; each
// writing thread fences, and then a barrier follows.

__device__ inline void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- Registers: a warpgroup gives registers back or takes more; a multiple of 8 in [24, 256]. Needs
// __launch_bounds__(threads, 1), and every warp of the warpgroup.

template <int N>
__device__ inline void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
__device__ inline void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- Warps

// Whether this lane is the one of its whole warp that ptxas knows to be alone: it issues copies without a loop over lanes.
__device__ inline bool elect_lane() {
  unsigned elected;
  asm volatile(
      "{ .reg .pred it;\n"
      "  elect.sync _|it, 0xffffffff;\n"
      "  selp.b32 %0, 1, 0, it; }"
      : "=r"(elected));
  return elected;
}

// ---- Clusters

__device__ inline int cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
}

__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace sdpa
