// The encoding of one call into the CUDA graph that MLX builds.
#pragma once

#include <vector>

#include "kernels/cuda/arguments.h"
#include "src/attention.h"
#include "src/backends/cuda/mlx_cuda.h"

namespace sdpa::cuda {

struct Grid {
  dim3 blocks, threads;
  unsigned shared_bytes;
  unsigned cluster = 1;  // blocks of a cluster, as compiled into the kernel
};

class Commands {
 public:
  explicit Commands(mx::Stream);
  ~Commands();  // scratch is kept until the kernels are done

  // From MLX's stream-ordered memory pool: allocator::malloc would give managed memory, whose pages are made one by
  // one (8.9 ms for the first 128 MB on an H200, where the pool takes 1.3).
  void allocate(mx::array&);
  mx::array scratch(mx::Shape, mx::Dtype);

  void reads(const mx::array&);
  void writes(mx::array&);
  template <class A>
  void launch(CUfunc_st* kernel, const Grid& grid, A& arguments) {
    void* params[] = {&arguments};
    add(kernel, grid, params);
  }

 private:
  void add(CUfunc_st*, const Grid&, void** params);

  mx::Stream stream_;
  mx::cu::CommandEncoder& encoder_;
  std::vector<mx::array> scratch_;
};

}  // namespace sdpa::cuda
