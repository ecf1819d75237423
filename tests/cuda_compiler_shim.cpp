// The compiler of the CUDA backend with its cache, for ctypes: it needs NVRTC but no GPU and no MLX.
#include <cstdio>
#include <string>

#include "src/backends/cuda/compiler.h"

extern "C" {

void shim_folders(const char* sources, const char* cache) {
  sdpa::cuda::set_source_folder(sources);
  sdpa::cuda::set_cache_folder(cache);
}

// The size of the cubin, of which `out` gets what fits; or -1 and the error as text.
long shim_compile(const char* file, const char* arch, const char* macro, char* out, long room) {
  try {
    const std::string cubin = sdpa::cuda::compile(file, arch, {macro});
    cubin.copy(out, size_t(room));
    return long(cubin.size());
  } catch (const std::exception& error) {
    std::snprintf(out, size_t(room), "%s", error.what());
    return -1;
  }
}

}  // extern "C"
