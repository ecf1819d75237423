// A GPU backend: part of this module on Apple systems, loaded from a library elsewhere.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "src/attention.h"
#include "src/plan.h"

namespace sdpa {

// A kernel that does not compile, or that the device refuses. A loaded library throws it into this module.
class __attribute__((visibility("default"))) KernelFailure : public std::runtime_error {
 public:
  KernelFailure(std::string kernel, std::string error)
      : std::runtime_error("[mlx_sdpa_ext] kernel " + kernel + ": " + error),
        kernel_(std::move(kernel)), error_(std::move(error)) {}

  const std::string& kernel() const { return kernel_; }
  const std::string& error() const { return error_; }

 private:
  std::string kernel_, error_;
};

// What is set from outside, by the profile of the device; 0 = the default.
struct GpuLimits {
  double dispatch_flops = 0;  // work of the longest dispatch and of a command buffer
  int fill = 0;               // threadgroups that keep the GPU busy
  int64_t memory = 0;         // bytes that the scratch of one call may take; default: no bound
};

struct GpuBackend {
  const char* name;
  bool on_cpu_stream;  // its arrays are those of MLX's CPU device

  Device (*device)();
  void (*set_limits)(const GpuLimits&);
  void (*set_kernel_folder)(const std::string&);  // holds params.h and the kernels of the backend
  std::string (*kernel_folder)();
  void (*set_cache_folder)(const std::string&);  // for compiled kernels; null where MLX keeps them

  // Compiles what the problem needs. Throws KernelFailure, or std::invalid_argument where there is no kernel.
  void (*prepare)(const Problem&);
  // Compiles what eval_merge() needs for outputs of this type. Throws KernelFailure.
  void (*prepare_merge)(mx::Dtype);
  // As prepare(), then allocates `outputs` and encodes the work. All that can fail fails before the first dispatch.
  void (*eval_attention)(const Inputs&, const Attributes&, std::vector<mx::array>& outputs,
                         mx::Stream);
  // inputs: n outputs, n lse, all row-contiguous.
  void (*eval_merge)(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs,
                     mx::Stream);
};

// What a library and this module must agree on: both are compiled against the same MLX and the same structs.
std::string gpu_abi();

// The backend in use; null if there is none.
const GpuBackend* gpu_backend();

// The backend that evaluates on streams of this device; null where the CPU kernels do.
const GpuBackend* gpu_backend(mx::Device);

// Whether the CPU kernels evaluate on streams of this device.
bool cpu_kernels_on(mx::Device);

// The Device that plans for streams of this MLX device are made for.
Device device_of(mx::Device);

// Takes the backend of a library, which exports `const char* sdpa_gpu_abi()` and
// `const GpuBackend* sdpa_gpu_backend(const char* arch)`; arch is for a device that plays several. An empty path goes
// back to the backend that this module was built with, if any. Throws std::runtime_error.
void load_gpu_backend(const std::string& path, const std::string& arch);

// The kernels that failed so far, each with its first error.
std::vector<std::pair<std::string, std::string>> gpu_failures();

// Calls f and notes a KernelFailure that it throws.
template <class F>
void noting_failures(F f);
void note_failure(const KernelFailure&);

template <class F>
void noting_failures(F f) {
  try {
    f();
  } catch (const KernelFailure& failure) {
    note_failure(failure);
    throw;
  }
}

}  // namespace sdpa
