#include "src/backends/metal_device.h"

#include <mutex>

#include <mlx/backend/metal/device.h>

namespace sdpa::metal {

namespace {

std::mutex mutex;
GpuLimits limits;

}  // namespace

Device device() {
  Device found = apple_gpu(mx::metal::device(mx::Device::gpu).get_architecture());
  std::lock_guard lock(mutex);
  if (limits.dispatch_flops > 0) found.dispatch_flops = limits.dispatch_flops;
  if (limits.fill > 0) found.fill = limits.fill;
  if (limits.memory > 0) found.memory = limits.memory;
  return found;
}

void set_limits(const GpuLimits& wanted) {
  std::lock_guard lock(mutex);
  limits = wanted;
}

}  // namespace sdpa::metal
