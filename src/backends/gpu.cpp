#include "src/backends/gpu.h"

#include <dlfcn.h>

#include <mutex>

#include "src/backends/cpu_device.h"
#if SDPA_HAS_METAL
#include "src/backends/metal.h"
#endif

namespace sdpa {

namespace {

struct Registry {
  std::mutex mutex;
  const GpuBackend* backend = nullptr;
  std::vector<std::pair<std::string, std::string>> failures;
};

Registry& registry() {
  static Registry one;
  return one;
}

// Beside this module, where the package is installed.
std::string kernel_folder() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&gpu_abi), &info) || !info.dli_fname) return "kernels";
  const std::string module = info.dli_fname;
  const size_t slash = module.rfind('/');
  return slash == std::string::npos ? "kernels" : module.substr(0, slash) + "/kernels";
}

const GpuBackend* built_in() {
#if SDPA_HAS_METAL
  static const GpuBackend* one = [] {
    metal::backend().set_kernel_folder(kernel_folder());
    return &metal::backend();
  }();
  return one;
#else
  return nullptr;
#endif
}

template <class F>
F symbol(void* library, const char* name, const std::string& path) {
  void* found = dlsym(library, name);
  if (!found)
    throw std::runtime_error("'" + path + "' is not a GPU backend of mlx_sdpa_ext: it exports no " +
                             name);
  return reinterpret_cast<F>(found);
}

const GpuBackend* open(const std::string& path, const std::string& arch) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* why = dlerror();
    throw std::runtime_error("the GPU backend '" + path + "' does not load: " + (why ? why : ""));
  }
  const std::string theirs = symbol<const char* (*)()>(library, "sdpa_gpu_abi", path)();
  if (theirs != gpu_abi())
    throw std::runtime_error("the GPU backend '" + path + "' is built for " + theirs +
                             ", this module for " + gpu_abi() + ": rebuild it");
  using Export = const GpuBackend* (*)(const char*);
  const GpuBackend* backend = symbol<Export>(library, "sdpa_gpu_backend", path)(arch.c_str());
  backend->set_kernel_folder(kernel_folder());
  return backend;  // the library stays open: kernels of it may be under way
}

}  // namespace

const GpuBackend* gpu_backend() {
  std::lock_guard lock(registry().mutex);
  return registry().backend ? registry().backend : built_in();
}

const GpuBackend* gpu_backend(mx::Device device) {
  const GpuBackend* found = gpu_backend();
  const auto type = found && found->on_cpu_stream ? mx::Device::cpu : mx::Device::gpu;
  return found && device.type == type ? found : nullptr;
}

bool cpu_kernels_on(mx::Device device) { return device == mx::Device::cpu && !gpu_backend(device); }

Device device_of(mx::Device device) {
  const GpuBackend* gpu = gpu_backend(device);
  return gpu ? gpu->device() : cpu::device();
}

void load_gpu_backend(const std::string& path, const std::string& arch) {
  const GpuBackend* found = path.empty() ? nullptr : open(path, arch);
  std::lock_guard lock(registry().mutex);
  registry().backend = found;
}

void note_failure(const KernelFailure& failure) {
  std::lock_guard lock(registry().mutex);
  for (const auto& [kernel, error] : registry().failures)
    if (kernel == failure.kernel()) return;
  registry().failures.emplace_back(failure.kernel(), failure.error());
}

std::vector<std::pair<std::string, std::string>> gpu_failures() {
  std::lock_guard lock(registry().mutex);
  return registry().failures;
}

}  // namespace sdpa
