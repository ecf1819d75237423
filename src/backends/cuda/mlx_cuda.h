// The part of MLX's CUDA backend that this module calls. Declared here because MLX's own headers need CUDA's, cuDNN's
// and cutlass's to compile, and the wheels for a CPU have none of these. The module is built for one MLX version, which
// the gate checks, and does not load where a symbol is missing.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include <mlx/array.h>
#include <mlx/stream.h>

struct CUfunc_st;
struct CUgraph_st;

struct dim3 {  // as CUDA's: its name is part of the symbols below
  unsigned x = 1, y = 1, z = 1;
};

namespace mlx::core::cu {

// What the pointer of an allocator::Buffer of this backend points to.
struct CudaBuffer {
  void* data;
  size_t size;
  int device;  // -1 for managed memory
};

class CommandEncoder {
 public:
  void set_input_array(const array&);
  void set_output_array(const array&);
  void add_kernel_node_raw(CUfunc_st*, dim3 grid, dim3 block, dim3 cluster, uint32_t shared_bytes,
                           void** params);
  void add_graph_node(CUgraph_st*, const std::string& subgraph_key, bool is_updatable);
  void add_completed_handler(std::function<void()>);
};

class Device {
 public:
  void make_current();
};

CommandEncoder& get_command_encoder(Stream);
Device& device(mlx::core::Device);

}  // namespace mlx::core::cu

namespace sdpa::cuda {

// Where an array is on the GPU; null if it has no elements.
inline void* pointer(const mlx::core::array& x) {
  if (x.size() == 0) return nullptr;
  auto* buffer =
      static_cast<mlx::core::cu::CudaBuffer*>(const_cast<mlx::core::array&>(x).buffer().ptr());
  return static_cast<char*>(buffer->data) + x.offset();
}

}  // namespace sdpa::cuda
