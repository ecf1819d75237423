// What the module _ext loads this one for.
#include <string>

#include "src/backends/cuda/attention.h"
#include "src/backends/cuda/compiler.h"
#include "src/backends/cuda/device.h"
#include "src/backends/cuda/merge.h"

namespace sdpa::cuda {

namespace {

void set_kernel_folder(const std::string& path) {
  set_source_folder(path.substr(0, path.rfind('/')));
}
std::string kernel_folder() { return source_folder() + "/kernels"; }

}  // namespace

const GpuBackend& backend() {
  static const GpuBackend one{
      .name = "cuda",
      .on_cpu_stream = false,
      .device = device,
      .set_limits = set_limits,
      .set_kernel_folder = set_kernel_folder,
      .kernel_folder = kernel_folder,
      .set_cache_folder = set_cache_folder,
      .prepare = prepare,
      .prepare_merge = prepare_merge,
      .eval_attention = eval_attention,
      .eval_merge = eval_merge,
  };
  return one;
}

}  // namespace sdpa::cuda

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* sdpa_gpu_abi() {
  static const std::string abi = sdpa::gpu_abi();
  return abi.c_str();
}

EXPORT const sdpa::GpuBackend* sdpa_gpu_backend(const char*) { return &sdpa::cuda::backend(); }
