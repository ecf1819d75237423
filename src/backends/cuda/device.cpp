#include "src/backends/cuda/device.h"

#include <map>
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

// What the driver says of a device, asked once: every call of attention is planned for it.
Device detected(CUdevice device) {
  static std::map<CUdevice, Device> all;
  std::lock_guard lock(mutex);
  const auto known = all.find(device);
  if (known != all.end()) return known->second;
  Device found = nvidia_gpu("sm_" + std::to_string(attribute(kCapabilityMajor, device)) +
                            std::to_string(attribute(kCapabilityMinor, device)));
  found.fill = attribute(kMultiprocessors, device);
  found.shared_bytes = attribute(kSharedBytesOptin, device);
  return all.emplace(device, found).first->second;
}

}  // namespace

int current_device() { return current(); }

Device device() {
  Device found = detected(current());
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
