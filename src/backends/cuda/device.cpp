#include "src/backends/cuda/device.h"

#include <mutex>

#include "src/backends/cuda/driver.h"
#include "src/backends/cuda/mlx_cuda.h"

namespace sdpa::cuda {

namespace {

std::mutex mutex;
GpuLimits limits;

int attribute(int which, CUdevice device) {
  int value = 0;
  check(driver().cuDeviceGetAttribute(&value, which, device), "cuDeviceGetAttribute");
  return value;
}

// MLX makes a device current on the threads that evaluate, and not on those that build a graph.
CUdevice current() {
  CUdevice device = 0;
  if (driver().cuCtxGetDevice(&device) != 0) {
    mx::cu::device(mx::Device::gpu).make_current();
    check(driver().cuCtxGetDevice(&device), "cuCtxGetDevice");
  }
  return device;
}

}  // namespace

int current_device() { return current(); }

Device device() {
  const CUdevice here = current();
  Device found = nvidia_gpu("sm_" + std::to_string(attribute(kCapabilityMajor, here)) +
                            std::to_string(attribute(kCapabilityMinor, here)));
  found.fill = attribute(kMultiprocessors, here);
  found.shared_bytes = attribute(kSharedBytesOptin, here);
  std::lock_guard lock(mutex);
  if (limits.fill > 0) found.fill = limits.fill;
  if (limits.memory > 0) found.memory = limits.memory;
  return found;
}

void set_limits(const GpuLimits& wanted) {
  std::lock_guard lock(mutex);
  limits = wanted;
}

}  // namespace sdpa::cuda
