#include "src/backends/cuda/driver.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace sdpa::cuda {

namespace {

template <class F>
void load(F& f, void* library, const char* name) {
  f = reinterpret_cast<F>(dlsym(library, name));
  if (!f) throw std::runtime_error(std::string("the CUDA driver has no ") + name);
}

Driver load_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(std::string("there is no CUDA driver here: ") + dlerror());
  Driver d;
  load(d.cuGetErrorString, library, "cuGetErrorString");
  load(d.cuCtxGetDevice, library, "cuCtxGetDevice");
  load(d.cuDeviceGetAttribute, library, "cuDeviceGetAttribute");
  load(d.cuModuleLoadData, library, "cuModuleLoadData");
  load(d.cuModuleGetFunction, library, "cuModuleGetFunction");
  load(d.cuFuncSetAttribute, library, "cuFuncSetAttribute");
  load(d.cuTensorMapEncodeTiled, library, "cuTensorMapEncodeTiled");
  load(d.cuGraphCreate, library, "cuGraphCreate");
  load(d.cuGraphAddKernelNode_v2, library, "cuGraphAddKernelNode_v2");
  load(d.cuGraphDestroy, library, "cuGraphDestroy");
  return d;
}

}  // namespace

const Driver& driver() {
  static const Driver one = load_driver();
  return one;
}

void check(CUresult result, const char* call) {
  if (result == 0) return;
  const char* text = nullptr;
  driver().cuGetErrorString(result, &text);
  throw std::runtime_error(std::string(call) + ": " +
                           (text ? text : ("CUDA error " + std::to_string(result)).c_str()));
}

}  // namespace sdpa::cuda
