#include "src/backends/cuda/commands.h"

#include <mutex>
#include <unordered_map>

#include <mlx/allocator.h>
#include <mlx/ops.h>
#include <mlx/primitives.h>

#include "src/backends/cuda/driver.h"

namespace sdpa::cuda {

namespace {

using mx::array;

// The primitive of stock's concatenation on a stream: given no inputs, all it does is to allocate its output the way
// that MLX's own kernels do, for which there is no public function.
std::shared_ptr<mx::Primitive> allocating(mx::Stream stream) {
  static std::mutex mutex;
  static std::unordered_map<int, std::shared_ptr<mx::Primitive>> all;
  std::lock_guard lock(mutex);
  auto& found = all[stream.index];
  if (!found) {
    const array x = mx::zeros({1}, stream);
    found = mx::concatenate({x, x}, 0, stream).primitive_ptr();
  }
  return found;
}

}  // namespace

Commands::Commands(mx::Stream stream)
    : stream_(stream), encoder_(mx::cu::get_command_encoder(stream)) {}

Commands::~Commands() {
  if (!scratch_.empty()) encoder_.add_completed_handler([kept = std::move(scratch_)] {});
}

void Commands::allocate(array& x) {
  if (x.size() == 0) {
    x.set_data(mx::allocator::malloc(0));
    return;
  }
  std::vector<array> out{x};
  allocating(stream_)->eval_gpu({}, out);
}

array Commands::scratch(mx::Shape shape, mx::Dtype dtype) {
  array x(std::move(shape), dtype, nullptr, {});
  allocate(x);
  scratch_.push_back(x);
  return x;
}

// MLX updates a graph that it has instantiated with the kernels of the next one whose nodes and edges are of the same kinds.
// A node whose kernel has clusters is not updated to one without, or back: the kernel then does not run, and no call
// says so (MLX 0.32.4, CUDA 13.0). So one with clusters is a graph of its own in MLX's, of its own kind.
void Commands::add(CUfunc_st* kernel, const Grid& grid, void** params) {
  if (grid.cluster == 1) {
    encoder_.add_kernel_node_raw(kernel, grid.blocks, grid.threads, {}, grid.shared_bytes, params);
    return;
  }
  const auto [gx, gy, gz] = grid.blocks;
  const auto [tx, ty, tz] = grid.threads;
  const KernelNode node{.function = kernel,
                        .grid = {gx, gy, gz},
                        .block = {tx, ty, tz},
                        .shared_bytes = grid.shared_bytes,
                        .params = params,
                        .extra = nullptr,
                        .kernel = nullptr,
                        .context = nullptr};
  CUgraph_st* graph = nullptr;
  CUgraphNode_st* added = nullptr;
  check(driver().cuGraphCreate(&graph, 0), "cuGraphCreate");
  const CUresult result = driver().cuGraphAddKernelNode_v2(&added, graph, nullptr, 0, &node);
  if (result == 0) encoder_.add_graph_node(graph, "(C" + std::to_string(grid.cluster) + ")", true);
  driver().cuGraphDestroy(graph);  // MLX's graph has a copy
  check(result, "cuGraphAddKernelNode");
}

void Commands::reads(const array& x) { encoder_.set_input_array(x); }
void Commands::writes(array& x) { encoder_.set_output_array(x); }

}  // namespace sdpa::cuda
