#include <mlx/version.h>

#include "src/backends/gpu.h"

namespace sdpa {

namespace {

// Raised with every change of the structs and signatures that a library sees and that their sizes do not show.
constexpr int kRevision = 2;

}  // namespace

std::string gpu_abi() {
  std::string text = "MLX " + std::to_string(MLX_VERSION_MAJOR) + "." +
                     std::to_string(MLX_VERSION_MINOR) + "." + std::to_string(MLX_VERSION_PATCH) +
                     ", revision " + std::to_string(kRevision) + ", sizes";
  for (size_t size : {sizeof(GpuBackend), sizeof(GpuLimits), sizeof(Device), sizeof(Problem),
                      sizeof(Attributes), sizeof(Inputs), sizeof(KernelFailure)})
    text.append(" ").append(std::to_string(size));
  return text;
}

}  // namespace sdpa
